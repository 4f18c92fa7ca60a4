"""`fovea models baselines` against the vendors' simulators: measured with a key, priced without, one spend limit."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from fovea import main
from loadtest.baselines import measured_baseline, read_report
from models.golden import load_golden
from models.prices import load_prices
from models.providers import VENDORS
from tests.models.vendor_simulator import KEY, MODELS, Script, VendorSimulator

BOOK = load_prices()
ITEMS = load_golden("easy-vqa").sample(20, 0)
YES = sum(item.expected == "yes" for item in ITEMS)
ALL = [word for vendor, name in MODELS.items() for word in ("--model", f"{vendor}/{name}")]
ANSWER: dict[str, Any] = {"text": "yes", "input_tokens": 100, "output_tokens": 2}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have keys: no test may spend money."""
    for vendor in VENDORS.values():
        for variable in vendor.key_variables:
            monkeypatch.delenv(variable, raising=False)


@asynccontextmanager
async def vendors(**scripts: Script) -> AsyncIterator[list[str]]:
    """The vendors named, as simulators; yields the options that send the command there."""
    async with AsyncExitStack() as stack:
        words = []
        for vendor, script in scripts.items():
            sim = await stack.enter_async_context(VendorSimulator(vendor, script))
            words += ["--vendor-url", f"{vendor}={sim.base_url}"]
        yield words


async def baselines(out: Path, *words: str, code: int = 0) -> dict[str, dict[str, Any]]:
    given = ["models", "baselines", "--golden", "easy-vqa", "--limit", "20", "--concurrency", "1", "--out", str(out)]
    # the command runs an event loop of its own
    assert await asyncio.to_thread(main, [*given, *words]) == code
    data = json.loads((out / "baselines.json").read_text())
    return {"": data, **{row["vendor"]: row for row in data["rows"]}}


async def test_measured_where_a_key_is_there_and_priced_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    async with vendors(openai=Script(**ANSWER, image_tokens=80), google=Script(**ANSWER)) as words:
        rows = await baselines(tmp_path, *ALL, *words, "--max-usd", "1")
    for vendor in ("openai", "google"):
        price = BOOK.find(MODELS[vendor])
        each = (100 * price.input + 2 * price.output) / 10**6
        assert rows[vendor]["label"] == "measured" and rows[vendor]["accuracy"]["value"] == YES / 20
        assert Decimal(rows[vendor]["usd_per_query"]) == each
        assert abs(Decimal(rows[vendor]["usd_per_right_answer"]) - each * 20 / YES) < Decimal("1e-20")
    assert rows["openai"]["image_tokens_reported_minus_rule"] == 80 - 8500
    other = rows["anthropic"]
    assert (other["label"], other["why"]) == ("priced, not measured", "no ANTHROPIC_API_KEY")
    assert other["accuracy"] is None and Decimal(other["usd_per_query"]) > 0 and other["source"] and other["read"]
    spent = sum(20 * Decimal(rows[v]["usd_per_query"]) for v in ("openai", "google"))
    assert Decimal(rows[""]["spent_usd"]) == spent
    out = capsys.readouterr().out
    assert "priced, not measured (no ANTHROPIC_API_KEY)" in out and "openai gpt-4o-mini" in out
    # an evaluation of it is a measured baseline of a cost report
    report = read_report(str(tmp_path / "openai-gpt-4o-mini"))
    assert measured_baseline(report, "x", BOOK).label == "measured"


async def test_one_limit_for_all_stops_at_once_and_keeps_what_was_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for vendor in VENDORS.values():
        monkeypatch.setenv(vendor.key_variables[0], KEY)
    first, second, third = (Script(**ANSWER) for _ in range(3))
    async with vendors(openai=first, anthropic=second, google=third) as words:
        # a question to GPT-4o mini can cost a little over $0.0019 at most, and costs $0.0000162
        rows = await baselines(tmp_path, *ALL, *words, "--max-usd", "0.00205", code=1)
        assert 1 <= len(first.seen) < 20
        assert rows["openai"]["stopped"] and rows["openai"]["accuracy"]["n"] == len(first.seen)
        assert Decimal(rows[""]["spent_usd"]) <= Decimal("0.00205")
        error = capsys.readouterr().err
        assert "the spend limit was reached at gpt-4o-mini" in error and "raise the limit" in error
        kept = len(first.seen)
        rows = await baselines(tmp_path, *ALL, *words, "--max-usd", "1")
    assert len(first.seen) == 20 > kept and rows["openai"]["accuracy"]["n"] == 20  # it went on where it had stopped
    assert len(second.seen) == len(third.seen) == 20
    assert all(row["label"] == "measured" and not row["stopped"] for row in rows[""]["rows"])


async def test_a_vendor_that_fails_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("openai", "google"):
        monkeypatch.setenv(VENDORS[name].key_variables[0], KEY)
    async with vendors(openai=Script(fault=lambda n: 400), google=Script(**ANSWER)) as words:
        rows = await baselines(tmp_path, *ALL, *words, "--max-usd", "1")
    assert rows["openai"]["label"] == "priced, not measured" and "no answer" in rows["openai"]["why"]
    assert rows["google"]["label"] == "measured"
    assert "no item was answered" in capsys.readouterr().err


async def test_nothing_is_asked_without_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    script = Script()
    async with vendors(openai=script) as words:
        rows = await baselines(tmp_path, *ALL, *words)
    assert script.seen == [] and rows["openai"]["why"] == "no --max-usd"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "gpt-4oo"], "did you mean gpt-4o"),
        (["--model", "openai/gpt-4oo"], "did you mean gpt-4o"),
        (["--model", "nobody/x"], "unknown vendor"),
        (["--max-usd", "-1"], "must not be negative"),
        (["--max-usd", "much"], "is not a decimal number"),
        (["--vendor-url", "http://x"], "is not VENDOR=URL"),
        (["--golden", "none"], "golden set not found"),
        (["--prices", "none.yaml"], "cannot read"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    out = tmp_path / "out"
    assert main(["models", "baselines", "--golden", "easy-vqa", "--limit", "2", "--out", str(out), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not out.exists()
