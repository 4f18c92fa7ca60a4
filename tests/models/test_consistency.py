"""Repeated runs and other wordings: agreement by hand, and the command against a simulated server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

import fovea
from models.evaluation.answers import Answer
from models.evaluation.consistency import consistency
from models.golden import GoldenItem, ImageRef, load_golden
from models.support.errors import UsageError
from tests.models.openai_simulator import OpenAISimulator, Reply
from tests.models.vendor_simulator import KEY, Script, VendorSimulator

IMAGE = ImageRef(Path("x.png"), "image/png", 8, 8)
ITEMS = [GoldenItem(f"i{n}", IMAGE, "?", "all", "red") for n in range(4)]


def run(*texts: str | None) -> dict[str, Answer]:
    return {
        f"i{n}": Answer(f"i{n}", text, 1.0, error=None if text is not None else "timeout")
        for n, text in enumerate(texts)
    }


def test_agreement_by_hand() -> None:
    runs = {
        "a": run("red", "red", "blue", None),
        "b": run("Red.", "blue", "green", None),
        "c": run("red", "red", "red", "red"),
    }
    found = consistency(ITEMS, runs)
    assert found["same_answer"]["value"] == 0.25  # only the first, punctuation and case aside
    assert found["agreement"]["value"] == pytest.approx((1 + 1 / 3 + 0 + 0) / 4)  # two errors do not agree
    assert found["flips"]["value"] == 0.75
    assert found["majority"]["value"] == 0.5  # red, red, blue (first of a tie), no answer (first of a tie)
    assert [a["value"] for a in found["accuracy"].values()] == [0.5, 0.25, 1.0] and found["spread"] == 0.75


def test_runs_that_agree() -> None:
    found = consistency(ITEMS, {"a": run(*["red"] * 4), "b": run(*["red"] * 4)})
    assert found["same_answer"]["value"] == found["agreement"]["value"] == found["majority"]["value"] == 1
    assert found["flips"]["value"] == 0 == found["spread"]


def test_one_run_is_no_comparison() -> None:
    with pytest.raises(UsageError, match="at least two runs"):
        consistency(ITEMS, {"a": run("red")})


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = {(i.question, i.image_bytes()): i.expected for i in load_golden("easy-vqa").items}

    def answer(question: str, image: bytes) -> Reply:
        polite = question.startswith("Please: ")
        return ("unsure" if polite else truth[question, image]), 0.9

    with OpenAISimulator(answer) as sim:
        command = ["models", "consistency", sim.url, "--model", "sim", "--golden", "easy-vqa", "--limit", "40"]
        command += ["--repeats", "2", "--temperature", "0.7", "--variant", "Please: {question}", "--json"]
        assert fovea.main([*command, "--out", str(tmp_path)]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report == json.loads((tmp_path / "consistency.json").read_text())
        assert report["seed"] == 0 and report["versions"] and report["hardware"] and report["golden_digest"]
        page = (tmp_path / "consistency.html").read_text()
        assert "Wordings: 2 runs" in page and "Please: {question}" in page and page.count("data:image/png") == 24
        assert report["groups"]["repeats"]["same_answer"]["value"] == 1
        assert report["groups"]["wordings"]["same_answer"]["value"] == 0
        assert report["groups"]["wordings"]["flips"]["value"] == 1
        bodies = [r for r in sim.requests if "messages" in r]
        assert sorted({(b["temperature"], b.get("seed")) for b in bodies}, key=str) == [(0.0, None), (0.7, 0), (0.7, 1)]
        assert len(bodies) == 120
        assert fovea.main([*command, "--out", str(tmp_path)]) == 0  # continues: nothing is asked again
        assert len([r for r in sim.requests if "messages" in r]) == 120
        capsys.readouterr()
        for wrong in (["--variant", "no placeholder"], ["--temperature", "3"], ["--repeats", "0"]):
            assert fovea.main([*command, "--out", str(tmp_path / "other"), *wrong]) == 2


async def test_one_spend_limit_holds_for_all_runs_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """20 questions cost $0.000324 a run, and each must leave $0.0019 for the dearest: two runs fit, ten do not."""
    script = Script(text="yes", input_tokens=100, output_tokens=2)
    async with VendorSimulator("openai", script) as sim:
        command = ["models", "consistency", "openai/gpt-4o-mini", "--golden", "easy-vqa", "--limit", "20", "--json"]
        command += ["--api-key", KEY, "--vendor-url", sim.base_url, "--concurrency", "1", "--max-usd", "0.0026"]
        few = [*command, "--repeats", "2", "--out", str(tmp_path / "few")]
        assert await asyncio.to_thread(fovea.main, few) == 0
        assert len(script.seen) == 40
        capsys.readouterr()
        many = [*command, "--repeats", "10", "--out", str(tmp_path / "many")]
        assert await asyncio.to_thread(fovea.main, many) == 1
        assert "stopped early" in capsys.readouterr().err
    assert len(script.seen) < 40 + 100
