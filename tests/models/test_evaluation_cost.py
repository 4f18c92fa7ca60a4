"""What an evaluation costs: a vendor's bill with its limit, and the dollars of one's own machine."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

import fovea
from models.evaluation import EvaluationSettings, evaluate
from models.evaluation.score import machine_cost
from models.golden import load_golden
from tests.models.openai_simulator import OpenAISimulator
from tests.models.vendor_simulator import KEY, Script, VendorSimulator

GOLDEN = load_golden("easy-vqa")


class TestVendor:
    """A vendor's model through its SDK, against the simulator of its wire format."""

    async def run(self, script: Script, out: Path, max_usd: str) -> dict[str, Any]:
        async with VendorSimulator("openai", script) as sim:
            values = EvaluationSettings(
                url="openai/gpt-4o-mini",
                model="",
                golden="easy-vqa",
                out=out,
                limit=20,
                concurrency=1,
                api_key=KEY,
                max_usd=Decimal(max_usd),
                vendor_url=sim.base_url,
            )
            # evaluate() runs its own event loop
            return await asyncio.to_thread(evaluate, values)

    async def test_measured_baseline(self, tmp_path: Path) -> None:
        script = Script(text="yes", input_tokens=100, output_tokens=2, image_tokens=80)
        report = await self.run(script, tmp_path, "5")
        yes = sum(item.expected == "yes" for item in GOLDEN.sample(20, 0))
        assert report["model"] == "openai/gpt-4o-mini" and report["accuracy"]["value"] == yes / 20
        one = (100 * Decimal("0.15") + 2 * Decimal("0.60")) / 10**6
        assert Decimal(report["cost"]["usd_total"]) == 20 * one
        assert Decimal(report["cost"]["usd_per_query"]) == one
        assert Decimal(report["cost"]["usd_per_right_answer"]) * yes == pytest.approx(20 * one)
        assert report["calibration"] is None and report["run"]["stopped"] is None
        # the rule says 8,500 for a small image, the vendor's usage 80: what is reported counts, the gap is shown
        assert report["cost"]["image_tokens_reported_minus_rule"] == 80 - 8500

    async def test_spend_limit_stops_at_once_and_keeps_results(self, tmp_path: Path) -> None:
        script = Script(text="yes", input_tokens=100, output_tokens=2)
        # one question can cost at most 8,500 image tokens, its text and 1,024 output tokens: a little over $0.0019
        report = await self.run(script, tmp_path, "0.00205")
        assert 1 <= report["answered"] < 20 and len(script.seen) == report["answered"]
        assert "the next request could cost" in report["run"]["stopped"]
        assert report["accuracy"]["n"] == 20 and report["accuracy_answered"]["n"] == report["answered"]
        assert report["errors"] == {"not_asked": 20 - report["answered"]}
        again = await self.run(script, tmp_path, "5")
        assert again["answered"] == 20 and again["run"]["continued_from"] == report["answered"]

    def test_needs_a_limit(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        words = ["models", "evaluate", "openai/gpt-4o-mini", "--golden", "easy-vqa", "--out", str(tmp_path / "o")]
        assert fovea.main(words) == 2
        assert "max-usd: a vendor's model costs money" in capsys.readouterr().err
        assert fovea.main([*words, "--max-usd", "-1"]) == 2
        assert "must not be negative" in capsys.readouterr().err


def test_the_machines_price_becomes_dollars_per_right_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with OpenAISimulator(lambda question, image: ("yes", 0.9)) as sim:
        command = ["models", "evaluate", sim.url, "--model", "sim", "--golden", "easy-vqa", "--limit", "100", "--json"]
        assert fovea.main([*command, "--out", str(tmp_path), "--usd-per-hour", "3.60"]) == 0
        report = json.loads(capsys.readouterr().out)
        cost, run = report["cost"], report["run"]
        # $3.60 an hour is $0.001 a second; the report rounds the seconds to a thousandth, and no dollars
        assert float(cost["usd_per_query"]) * 100 == pytest.approx(run["wall_s"] / 1000, abs=0.51e-6)
        right = report["accuracy"]["value"]
        assert float(cost["usd_per_right_answer"]) == pytest.approx(float(cost["usd_per_query"]) / right, rel=1e-9)
        for wrong in ("0", "-1", "much"):
            assert fovea.main([*command, "--out", str(tmp_path / "x"), "--usd-per-hour", wrong]) == 2
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("wall_s", [1e-6, 0.0123, 5.0, 86_400.0])
def test_dollars_keep_their_digits_however_fast_the_machine(wall_s: float) -> None:
    cost = machine_cost(Decimal("0.07"), wall_s, 9673, 0.9871)
    assert cost is not None
    each = Decimal("0.07") * Decimal(repr(wall_s)) / 3600 / 9673
    for text, exact in ((cost["usd_per_query"], each), (cost["usd_per_right_answer"], each / Decimal("0.9871"))):
        assert "E" not in text and abs(Decimal(text) / exact - 1) < Decimal("1e-11")
