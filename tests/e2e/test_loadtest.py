"""The load tester against a served model: real answers, real metrics, real conversations, real refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fovea import main
from tests.e2e.conftest import Running

pytestmark = pytest.mark.e2e
MODEL = "fovea-qwen"


def fovea(qwen: Running, out: Path, command: str, *words: str) -> tuple[int, dict[str, Any]]:
    """Run a command against the stack; return its exit code and its report."""
    base = ["--url", qwen.url, "--model", MODEL, "--max-tokens", "6", "--max-slip-ms", "5000", "--out", str(out)]
    code = main(["loadtest", command, *base, *words])
    name = "report" if command == "run" else command
    return code, json.loads((out / f"{name}.json").read_text())


def test_scored_answers_with_the_servers_own_metrics(qwen: Running, tmp_path: Path) -> None:
    words = ["--workload", "easy-vqa", "--rate", "8", "--duration", "4", "--metrics-url", f"{qwen.base}/metrics"]
    code, data = fovea(qwen, tmp_path, "run", *words)
    assert code == 0 and data["errors"] == 0 and data["requests"] >= 15
    assert data["accuracy"]["n"] == data["requests"] and data["accuracy"]["value"] > 0.5
    assert data["ttft_ms"]["p50"]["value"] <= data["latency_ms"]["p50"]["value"]
    assert data["tokens"]["replies_without_usage"] == 0
    names = {row["name"] for row in data["server"]["rows"]}
    assert {"waiting requests (queue)", "KV cache in use", "prompt tokens"} <= names, names
    assert not data["server"]["problems"]


def test_conversations_grow_by_what_the_model_said(qwen: Running, tmp_path: Path) -> None:
    words = ["--workload", "chat", "--concurrency", "2", "--requests", "12", "--workload-option", "turns=3"]
    words += ["--workload-option", "words=4", "--workload-option", "image_size=64x64"]
    code, data = fovea(qwen, tmp_path, "run", *words)
    assert code == 0 and data["errors"] == 0
    assert data["workload"][0]["conversations"]["ended"] >= 2
    lines = [line.split(",") for line in (tmp_path / "requests.csv").read_text().splitlines()]
    turn, prompt = lines[0].index("turn"), lines[0].index("prompt_tokens")
    tokens = {t: [int(line[prompt]) for line in lines[1:] if line[turn] == str(t)] for t in range(3)}
    assert max(tokens[0]) < min(tokens[1]) and max(tokens[1]) < min(tokens[2])


def test_the_messages_api_of_the_same_server(qwen: Running, tmp_path: Path) -> None:
    words = ["--api", "anthropic", "--workload", "easy-vqa", "--concurrency", "2", "--requests", "10"]
    code, data = fovea(qwen, tmp_path, "run", *words)
    assert code == 0 and data["errors"] == 0 and data["accuracy"]["n"] == 10
    assert data["tokens"]["replies_without_usage"] == 0 and data["ttft_ms"]["p50"]["n"] == 10


def test_drills_of_bad_input_pass(qwen: Running, tmp_path: Path) -> None:
    words = ["--workload", "easy-vqa", "--rate", "6", "--part", "1.5", "--slower", "100", "--bad-rate", "4"]
    for drill in ("corrupted-image", "truncated-image", "not-an-image", "oversized-prompt", "contradiction"):
        words += ["--drill", drill]
    code, data = fovea(qwen, tmp_path, "rehearse", *words)
    broken = {d["name"]: d["numbers"]["broken"] for d in data["drills"]}
    for name, seen in broken.items():
        assert seen["requests"] >= 2 and seen["5xx"] == seen["lost"] == 0, (name, seen)
        assert seen["refused"] == (0 if name == "contradiction" else seen["requests"]), (name, seen)
    # How fast the steady traffic is beside them depends on the machine (hence --slower); that none failed does not.
    for drill in data["drills"]:
        assert all(drill["numbers"][part]["errors"] == 0 for part in ("before", "during", "after")), drill["evidence"]
    assert code == 0
