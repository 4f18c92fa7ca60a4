"""The ladder: which rungs, in which order, and where it stops."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from models.support.errors import UsageError
from quantize import artifact
from quantize.ladder import Rung, climb, parse_rungs, print_ladder
from quantize.smoothing import check_method
from tests.quantize.checkpoints import EMBEDDED


def test_rungs() -> None:
    found = parse_rungs("w4a16:gptq:32, w8a8", "here")
    assert found == [Rung("w4a16", "gptq", 32), Rung("w8a8", "gptq")]
    assert [r.name for r in found] == ["w4a16-gptq-32", "w8a8-gptq"]
    hopper = [r.name for r in parse_rungs(None, "H100")]
    assert hopper == ["w4a16-gptq", "w4a16-awq", "w4a16-gptq-32", "w8a8-gptq", "fp8-rtn"]
    assert "w8a8-gptq" not in [r.name for r in parse_rungs(None, "B200")]
    with pytest.raises(UsageError, match="the group must be a number"):
        parse_rungs("w4a16:gptq:many", "here")
    with pytest.raises(UsageError, match="unknown scheme"):
        parse_rungs("w5", "here")


class Steps:
    """Stands in for making and gating: a rung passes when its name is in `passing`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, passing: set[str]) -> None:
        self.made: list[str] = []
        self.gated: list[str] = []
        self.pages: list[list[str]] = []
        self.passing = passing
        monkeypatch.setattr("quantize.ladder.quantize", self.make)
        monkeypatch.setattr("quantize.ladder.run_gate", self.gate)
        monkeypatch.setattr("quantize.ladder.write_ladder_page", self.page)

    def make(self, settings: Any, say: Any, held: Any) -> dict[str, Any]:
        self.made.append(settings.out.name)
        settings.out.mkdir(parents=True)
        manifest = {"kind": artifact.KIND, "parent": {"files": artifact.files_of(EMBEDDED / "qwen2_5_vl")}}
        (settings.out / "manifest.json").write_text(json.dumps(manifest))
        return manifest

    def page(self, path: Path, result: dict[str, Any], reports: list[dict[str, Any]]) -> None:
        self.pages.append([s["rung"] for s in result["steps"]])
        assert len(reports) == len(result["steps"])

    def gate(self, settings: Any, say: Any, held: Any) -> dict[str, Any]:
        name = settings.candidate.name
        self.gated.append(name)
        outcome = "pass" if name in self.passing else "fail"
        recovery = {"value": 1.0, "low": 0.9, "high": 1.1, "n": 10}
        side = {
            "latency_ms": {"p95": {"value": 80.0}}, "requests_per_s": 50.0, "memory_bytes": 2**30, "picture": None,
            "rate_at_slo": {"certified_per_s": 30.0}, "usd_per_query": 0.002,
        }  # fmt: skip
        failed = [] if outcome == "pass" else ["shape"]
        return {
            "verdict": {"outcome": outcome, "sentence": outcome, "failed_categories": failed},
            "recovery": recovery,
            "figures": {"size_ratio": 0.5},
            "sides": {"parent": side, "candidate": side},
        }


def arguments(out: Path) -> argparse.Namespace:
    return argparse.Namespace(
        model="embedded:qwen2_5_vl", out=out, calibration="easy-vqa-train", samples=64, traffic=None, target="here",
        seed=0, max_tokens=2048, golden="easy-vqa", limit=None, concurrency=8, thresholds=None, usd_per_hour=None,
        slo_ms=None, max_model_len=2048, kv_gib=1, kv_dtype="auto", engine_args="", parents=None,
    )  # fmt: skip


RUNGS = [Rung("w4a16", "gptq"), Rung("w4a16", "awq"), Rung("w8a8", "gptq")]


def test_it_stops_at_the_first_that_passes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = Steps(monkeypatch, {"w4a16-awq", "w8a8-gptq"})
    found = climb(arguments(tmp_path), RUNGS, lambda text: None)
    assert steps.made == ["w4a16-gptq", "w4a16-awq"]
    assert found["passed"] == "w4a16-awq"
    assert [s["outcome"] for s in found["steps"]] == ["fail", "pass"]
    assert json.loads((tmp_path / "ladder.json").read_text()) == found
    assert steps.pages == [["w4a16-gptq"], ["w4a16-gptq", "w4a16-awq"]]  # after every rung
    print_ladder(found, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    figures = ["80.0", "50.0", "30.0", "1.00", "2.00000"]
    assert lines[1].split() == ["parent", "1.00", *figures]
    assert lines[2].split()[:3] == ["w4a16-gptq", "fail", "(shape)"] and lines[2].split()[-5:] == figures
    assert lines[3].split()[:2] == ["w4a16-awq", "pass"]
    assert lines[4].split()[:2] == ["passed", "w4a16-awq:"]


def test_what_was_made_is_not_made_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    steps = Steps(monkeypatch, set())
    assert climb(arguments(tmp_path), RUNGS, lambda text: None)["passed"] is None
    climb(arguments(tmp_path), RUNGS, lambda text: None)
    assert len(steps.made) == 3 and len(steps.gated) == 6


def test_a_method_without_pairs_is_refused_before_the_work_and_left_out_of_the_ladder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    check_method("gptq", "Llama4ForConditionalGeneration")
    check_method("awq", "PaliGemmaForConditionalGeneration")
    with pytest.raises(UsageError, match="knows no pairs of layers of Llama4"):
        check_method("awq", "Llama4ForConditionalGeneration")
    steps = Steps(monkeypatch, set())
    monkeypatch.setattr("quantize.ladder.SMOOTHING", {})
    told: list[str] = []
    climb(arguments(tmp_path), RUNGS, told.append)
    assert steps.made == ["w4a16-gptq", "w8a8-gptq"]
    assert any("w4a16-awq left out" in line for line in told)
