"""The benchmark: its arithmetic, its tables, what it serves, and the checkpoint that is timed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fovea import build_parser
from models.catalog import load_catalog
from models.evaluation.context import versions
from models.support.errors import CheckFailed, UsageError
from quantize import bench
from quantize.bench import print_tables
from quantize.bench_kernels import print_kernels
from quantize.bench_make import known_rows
from quantize.bench_shape import ARMS, arms_here
from quantize.bench_speed import summarize
from quantize.bench_stack import stack_entry
from quantize.engine import EngineSettings, Served
from quantize.scope import read_headers
from quantize.under_load import highest_rate, load
from serving.stack import Model
from tests.quantize.checkpoints import EMBEDDED


def test_ratios_are_of_the_same_round() -> None:
    def row(name: str, number: int, speed: float) -> dict[str, Any]:
        return {"path": "vllm", "batch": 1, "name": name, "round": number, "tokens_per_s": speed}

    runs = [row("bf16", 0, 10), row("w8a8", 0, 20), row("bf16", 1, 20), row("w8a8", 1, 30)]
    bf16, w8a8 = summarize(runs)
    assert (bf16["ratio"], bf16["tokens_per_s"]) == (1.0, 15)
    assert w8a8["ratio"] == 1.75 and w8a8["ratio_range"] == [1.5, 2.0]


def test_what_was_measured_with_other_versions_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    assert known_rows(path, "runs") == []
    path.write_text(json.dumps({"versions": versions(), "runs": [{"name": "bf16"}]}))
    assert known_rows(path, "runs") == [{"name": "bf16"}]
    path.write_text(json.dumps({"versions": versions() | {"torch": "1"}, "runs": [{"name": "bf16"}]}))
    assert known_rows(path, "runs") == []
    path.write_text("[")
    assert known_rows(path, "runs") == []


@pytest.mark.parametrize(
    ("machine", "left_out"),
    [("hopper", set()), ("cpu-bf16", set()), ("blackwell", {"w8a8"}), ("cpu-other", {"bf16, FP8 KV cache"})],
)
def test_a_shape_is_timed_in_what_the_engine_runs(machine: str, left_out: set[str]) -> None:
    assert set(arms_here(machine)) == set(ARMS) - left_out


def test_a_described_checkpoint_has_the_catalog_s_sizes(tmp_path: Path) -> None:
    from transformers import AutoConfig

    from quantize.speed_model import describe

    variant = load_catalog().variant("qwen2.5-vl-7b")
    for scheme, bits in ((None, None), ("w8a8", 8), ("w4a16", 4), ("fp8", 8)):
        describe(tmp_path / "m", "qwen2.5-vl-7b", scheme)
        config = AutoConfig.from_pretrained(tmp_path / "m")
        text = config.text_config
        assert (text.num_hidden_layers, text.hidden_size) == (variant.decoder.layers, variant.decoder.hidden)
        assert 2 * sum(text.rope_parameters["mrope_section"]) == variant.decoder.head_dim
        written = json.loads((tmp_path / "m" / "config.json").read_text()).get("quantization_config")
        assert (written["config_groups"]["group_0"]["weights"]["num_bits"] if written else None) == bits
    for shape, wanted, told in (
        ("paligemma2", None, "has no shape to time"),
        ("qwen2.5-vl-7b", "nf4", "in this scheme"),
    ):
        with pytest.raises(UsageError, match=told):
            describe(tmp_path / "n", shape, wanted)
    assert not (tmp_path / "n").exists()


def test_the_timed_checkpoint_has_the_shape_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantize import speed_model
    from quantize.scope import plan_scope

    # two layers stand for thirty: the same code with less to write
    monkeypatch.setitem(speed_model.SHAPES["smollm2"], "num_hidden_layers", 2)
    speed_model.build(tmp_path / "m")
    scope = plan_scope(tmp_path / "m")
    assert scope.expected["layers.1.mlp.up_proj"] == (1536, 576)
    assert scope.expected["layers.0.self_attn.k_proj"] == (192, 576)
    shapes = {t.shape for t in read_headers(tmp_path / "m").values()}
    assert (49152, 576) in shapes
    from transformers import AutoProcessor

    tokenizer = AutoProcessor.from_pretrained(tmp_path / "m").tokenizer
    assert len(tokenizer) == 49152
    small = AutoProcessor.from_pretrained(EMBEDDED / "qwen2_5_vl").tokenizer
    assert tokenizer.encode("what color is the shape?") == small.encode("what color is the shape?")


@pytest.mark.parametrize("scheme", [None, "w8a8", "w4a16", "nf4"])
def test_a_checkpoint_is_an_entry_of_the_stack_file(tmp_path: Path, scheme: str | None) -> None:
    entry = Model.model_validate(stack_entry(tmp_path, scheme))
    assert entry.quantization == scheme and entry.source == str(tmp_path)


def loading(monkeypatch: pytest.MonkeyPatch, stdout: str, stderr: str = "") -> list[list[str]]:
    """Make the load test's command print this; return the commands that were run."""
    ran: list[list[str]] = []

    def run(words: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        assert words[1:4] == ["-m", "fovea", "loadtest"]
        build_parser("loadtest").parse_args(words[3:])  # SystemExit when the command has no such option
        ran.append(words)
        return subprocess.CompletedProcess(words, 0, stdout, stderr)

    monkeypatch.setattr("quantize.under_load.subprocess.run", run)
    return ran


def test_a_load_test_is_a_row_or_one_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = {"value": 12.25, "low": 11.0, "high": 13.5}
    none = {"value": None, "low": None, "high": None, "note": "n too small"}
    report = {
        "valid": True, "requests": 240, "errors": 0, "throughput_rps": figure, "goodput": {"rps": figure},
        "latency_ms": {"p50": figure, "p95": none}, "accuracy": {"value": 0.985, "low": 0.97, "high": 0.99},
    }  # fmt: skip
    ran = loading(monkeypatch, json.dumps(report))
    row = load("http://127.0.0.1:1/v1", "m", tmp_path, concurrency=8, seconds=20, slo_ms=500)
    words = " ".join(ran[0])
    assert "--concurrency 8 --duration 20" in words and "--slo-latency-ms 500" in words
    print_tables({"load": [{"family": "paligemma", "scheme": "bf16", **row}]})
    value = "12.2 (11.0-13.5)"
    cells = ["paligemma", "bf16", value, value, "n too small", value, "0.985 (0.970-0.990)"]
    assert capsys.readouterr().out.splitlines()[-1] == f"| {' | '.join(cells)} |"
    loading(monkeypatch, json.dumps(report | {"valid": False, "invalid_because": ["it was late"]}))
    with pytest.raises(CheckFailed, match=r"not valid.*it was late"):
        load("http://127.0.0.1:1/v1", "m", tmp_path, concurrency=8, seconds=20, slo_ms=500)
    loading(monkeypatch, "", "fovea loadtest: url: nobody there")
    with pytest.raises(CheckFailed, match=r"no load test.*nobody there"):
        load("http://127.0.0.1:1/v1", "m", tmp_path, concurrency=8, seconds=20, slo_ms=500)


def test_the_highest_rate_is_searched_around_the_closed_loop_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {"capacity_rps": 80.0, "best_rate_rps": 88.0, "broken_rate_rps": 96.0, "reason": "", "confidence": 0.95}
    ran = loading(monkeypatch, json.dumps(found))

    def search(near: float | None) -> tuple[dict[str, Any], str]:
        rate = highest_rate(
            "http://127.0.0.1:1/v1", "m", "my-set", tmp_path, slo_ms=400, near=near, max_tokens=16, seed=3
        )
        return rate, " ".join(ran[-1])

    rate, words = search(100.0)
    assert (rate["certified_per_s"], rate["best_per_s"], rate["broken_per_s"], rate["reason"]) == (80, 88, 96, None)
    assert "--workload-option set=my-set --slo p95<400ms,errors<1% --start-rate 50 --max-rate 400 --seed 3" in words
    assert "--step 8.0 --confirm 20.0 --max-slip-ms 100" in words
    # a slow engine gets longer runs, so that a P95 has enough answers; an unknown rate begins low
    assert "--start-rate 1 --max-rate 8 --seed 3 --step 60.0 --confirm 240.0" in search(2.0)[1]
    assert "--start-rate 0.5 --max-rate 4" in search(None)[1]
    none = found | {"capacity_rps": None, "best_rate_rps": 0.0, "reason": "a queue grew"}
    loading(monkeypatch, json.dumps(none))
    rate = highest_rate("http://127.0.0.1:1/v1", "m", "s", tmp_path, slo_ms=9, near=1, max_tokens=1, seed=0)
    assert (rate["certified_per_s"], rate["best_per_s"], rate["reason"]) == (None, None, "a queue grew")
    loading(monkeypatch, '{"error": {"message": "x"}}', "fovea loadtest: --url: nobody there")
    with pytest.raises(CheckFailed, match=r"no load test.*nobody there"):
        search(1.0)


def test_a_refused_scheme_is_a_row_with_the_category_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    right = {"parent": {"value": 0.9855}, "candidate": {"value": 0.75}}
    row = {
        "family": "paligemma", "scheme": "w2-trial-rtn", "accuracy": right, "lost": 5, "won": 0, "outcome": "fail",
        "recovery": {"value": 0.76, "low": 0.74, "high": 0.78, "n": 2000}, "failed_categories": ["shape"],
        "divergence": {"value": 0.5}, "quantized_ratio": 1.0, "size_ratio": 1.0, "seconds": 42.0,
    }  # fmt: skip
    print_tables({"broken": [row]})
    lines = capsys.readouterr().out.strip().splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert lines[-1].endswith("| 0.7600 (0.7400 to 0.7800) | 5 / 0 | 0.5 | 1.000, 1.000 | fail: shape | 42 s |")


def test_every_part_has_its_measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    measures = ("kernels", "speed", "accuracy", "load_tested", "families", "shape_speed")
    for name in measures:
        monkeypatch.setattr(bench, name, lambda *args, name=name, **more: [name])
    monkeypatch.setattr(bench, "print_tables", lambda result: None)
    called = []
    for part in (*bench.PARTS, bench.SHAPE):
        monkeypatch.setattr("sys.argv", ["bench", "--part", part, "--out", str(tmp_path)])
        assert bench.main() == 0
        report = json.loads((tmp_path / f"report-{part}.json").read_text())
        called += report[bench.PARTS.get(part, part)]
    assert set(called) == set(measures)


@pytest.mark.parametrize(("machine", "own"), [("cpu-bf16", True), ("cpu-amx", False)])
def test_where_the_stack_brings_kernels_vllm_s_own_are_timed_beside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: str, own: bool
) -> None:
    from quantize import bench_speed, speed_model
    from serving import cpu_kernels

    assert all(hasattr(cpu_kernels, name) for name in bench_speed.OURS)
    asked = []

    @contextmanager
    def served(folder: Path, name: str, log: Path, settings: EngineSettings) -> Iterator[Served]:
        asked.append((folder.name, settings.without))
        yield Served("http://127.0.0.1:1/v1", name, 1, 1.0)

    @contextmanager
    def stack(folder: Path, log: Path) -> Iterator[str]:
        asked.append((folder.name, ("stack",)))
        yield "http://127.0.0.1:1/v1"

    monkeypatch.setitem(speed_model.SHAPES["wide"], "num_hidden_layers", 1)
    monkeypatch.setattr(bench_speed, "served", served)
    monkeypatch.setattr(bench_speed, "stack", stack)
    monkeypatch.setattr(bench_speed, "find_machine", lambda target: machine)
    monkeypatch.setattr(bench_speed, "make", lambda *args: {"size": {"bytes": 1}, "seconds": {"total": 1.0}})
    measured = {"batch": 1, "tokens_per_s": 10.0}
    monkeypatch.setattr(bench_speed, "tokens_per_second", lambda *args, **more: measured)
    found = bench_speed.speed(tmp_path, "wide", 1, [1], with_stack=True)
    schemes = ["w8a8", "w4a16"]
    wanted = [one for name in ["bf16", *schemes] for one in ((name, ()), (name, ("stack",)))]
    assert asked == wanted + [(name, bench_speed.OURS) for name in schemes] * own
    assert (1024, 4096) in {t.shape for t in read_headers(tmp_path / "speed-wide" / "bf16").values()}
    names = {r["name"] for r in found["table"] if r["path"] == "vllm"}
    assert names == {"bf16", *schemes, *(f"{name}{bench_speed.OWN}" for name in schemes if own)}
    # what was measured is kept
    del asked[:]
    bench_speed.speed(tmp_path, "wide", 1, [1], with_stack=True)
    assert asked == []


def test_kernels_are_a_column_per_product(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"rows": m, "inputs": 64, "outputs": 32, "kernel": name, "us": 10.0 * m, "speed": speed}
        for m in (1, 8)
        for name, speed in (("bf16", 1.0), ("W8A8", 1.5))
    ]
    print_kernels(rows[:-1])
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[0] == "| kernel | 1 x 64 x 32 | 8 x 64 x 32 |"
    assert lines[2:] == ["| bf16 | 10 us, 1.00 | 80 us, 1.00 |", "| W8A8 | 10 us, 1.50 |  |"]
