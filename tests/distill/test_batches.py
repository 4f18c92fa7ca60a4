"""The batch APIs: half the price, the same lineage, and a kill that buys nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.collect.journal import Journal
from distill.labels import read_labels
from models.prices import Usage, load_prices
from models.support.errors import FoveaError, UsageError
from tests.distill.batch_simulator import BatchSimulator
from tests.distill.simulator import (
    KEY,
    KEY_VARIABLE,
    MODELS,
    TeacherSimulator,
    colour_of,
    reply,
    write_data,
    write_recipe,
)
from tests.distill.test_collect import run

ROOT = Path(__file__).resolve().parents[2]
VENDORS = pytest.mark.parametrize("vendor", list(MODELS))


def honest(question: str, image: bytes | None, number: int) -> str:
    return reply(colour_of(image))


def half(vendor: str) -> Decimal:
    """The price of one simulated answer in a batch."""
    return load_prices().find(MODELS[vendor]).cost(Usage(500, 10), batch=True).total


def recipe_of(folder: Path, sim: BatchSimulator, *, size: int = 500, **sections: Any) -> Path:
    batch = {"batch": {"size": size, "poll_s": 0}}
    return write_recipe(folder, sim.base_url, vendor=sim.vendor, teacher=batch, **sections)


@VENDORS
async def test_answers_at_the_batch_price(tmp_path: Path, vendor: str) -> None:
    write_data(tmp_path, 7)
    async with BatchSimulator(honest, vendor=vendor) as sim:
        report = await run(tmp_path, recipe_of(tmp_path, sim, size=3))
        assert [len(b) for b in sim.batches.values()] == [3, 3, 1]
        again = await run(tmp_path, recipe_of(tmp_path, sim, size=3))
        assert len(sim.batches) == 3 and again["answers_bought"] == 0
    one = half(vendor)
    assert one == sim.one / 2
    assert report["answers"] == 7 and Decimal(report["spent_usd"]) == 7 * one and report["reserved_usd"] == "0"
    assert report["batches_open"] == [] and report["dearer_than_estimated"] == 0
    for row in read_labels(tmp_path / "out/collect/labels.jsonl"):
        (said,) = row.answers
        assert said.answer == row.category and Decimal(said.usd) == one and said.vendor == vendor
        assert said.price is not None and said.price["batch_factor"] == "0.5" and said.model.startswith(MODELS[vendor])


@VENDORS
async def test_the_limit_holds_and_is_used_up(tmp_path: Path, vendor: str) -> None:
    write_data(tmp_path, 12)
    async with BatchSimulator(honest, vendor=vendor) as sim:
        recipe = recipe_of(tmp_path, sim)
        from distill.collect.plan import plan
        from distill.work import open_work

        found = await asyncio.to_thread(plan, open_work(recipe, tmp_path / "plan"))
        at_most = Decimal(found["at_most_usd"]) / 12
        limit = 4 * half(vendor) + at_most * Decimal("1.01")
        report = await run(tmp_path, recipe_of(tmp_path, sim, budget={"max_usd": f"{limit:f}"}))
        assert report["stopped"] == "budget" and Decimal(report["spent_usd"]) <= limit
        # it went on in ever smaller batches until the next single request could have passed the limit
        assert Decimal(report["spent_usd"]) + at_most * Decimal("1.05") > limit
        assert report["answers"] == sum(len(b) for b in sim.batches.values()) >= 4


@VENDORS
async def test_errors_and_requests_never_reached_are_free_and_asked_again(tmp_path: Path, vendor: str) -> None:
    write_data(tmp_path, 5)
    async with BatchSimulator(honest, vendor=vendor, skip={1: "expired", 3: 400}) as sim:
        report = await run(tmp_path, recipe_of(tmp_path, sim))
        assert report["answers"] == 3 and report["failed"] == 2
        assert Decimal(report["spent_usd"]) == 3 * half(vendor) and report["reserved_usd"] == "0"
        kinds = {f["error"]["message"].split(";")[0] for r in read_labels(tmp_path / "out/collect/labels.jsonl")
                 for f in r.failed}  # fmt: skip
        assert kinds == {"the vendor did not get to it in time", "simulated"}
        sim.skip = {}
        report = await run(tmp_path, tmp_path / "recipe.yaml")
        assert report["answers"] == 5 and len(sim.batches["batch_1"]) == 2
        assert Decimal(report["spent_usd"]) == 5 * half(vendor)


@VENDORS
async def test_trouble_while_waiting(tmp_path: Path, vendor: str) -> None:
    write_data(tmp_path, 2)
    async with BatchSimulator(honest, vendor=vendor) as sim:
        sim.trouble = [429, 500]
        assert (await run(tmp_path, recipe_of(tmp_path, sim)))["answers"] == 2
        sim.trouble = [500] * 9
        recipe_of(tmp_path, sim)
        text = (tmp_path / "recipe.yaml").read_text().replace("max_tokens: 60", "max_tokens: 61")
        (tmp_path / "recipe.yaml").write_text(text)
        with pytest.raises(FoveaError):
            await run(tmp_path, tmp_path / "recipe.yaml")
        report = json.loads((tmp_path / "out/collect/report.json").read_text())
        assert report["batches_open"] and Decimal(report["reserved_usd"]) > 0
        sim.trouble = []
        report = await run(tmp_path, tmp_path / "recipe.yaml")
        assert report["answers"] == 2 and len(sim.batches) == 2 and report["batches_open"] == []
        assert Decimal(report["spent_usd"]) == 4 * half(vendor)


@VENDORS
async def test_a_batch_that_is_refused_costs_nothing(tmp_path: Path, vendor: str) -> None:
    write_data(tmp_path, 2)
    async with BatchSimulator(honest, vendor=vendor) as sim:
        sim.refuse = 429
        with pytest.raises(FoveaError, match="simulated"):
            await run(tmp_path, recipe_of(tmp_path, sim))
        report = json.loads((tmp_path / "out/collect/report.json").read_text())
        assert report["spent_usd"] == "0" == report["reserved_usd"] and not sim.batches
        sim.refuse = None
        assert (await run(tmp_path, tmp_path / "recipe.yaml"))["answers"] == 2


@VENDORS
async def test_a_killed_process_leaves_its_batch_to_the_next(tmp_path: Path, vendor: str) -> None:
    write_data(tmp_path, 6)
    async with BatchSimulator(honest, vendor=vendor, polls=10**9) as sim:
        recipe_of(tmp_path, sim)
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(ROOT / "fovea.py"), "distill",
            "collect", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "out"),
            cwd=ROOT, env=os.environ | {KEY_VARIABLE: KEY}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 90
        while not sim.asked_about and process.returncode is None and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        process.kill()
        await process.communicate()
        with Journal(tmp_path / "out/collect/journal.jsonl") as journal:
            assert list(journal.batches) and journal.spent == 0 == journal.lost and journal.pending > 0
        sim.polls = 0
        report = await run(tmp_path, tmp_path / "recipe.yaml")
    assert len(sim.batches) == 1 and report["answers"] == 6
    assert Decimal(report["spent_usd"]) == 6 * half(vendor) and report["lost_usd"] == "0" == report["reserved_usd"]


async def test_an_open_batch_holds_its_dollars_until_it_is_settled(tmp_path: Path) -> None:
    """Nobody waits for dollars that only a batch of an earlier process holds; the batch is settled first."""
    write_data(tmp_path, 3)
    async with BatchSimulator(honest) as sim, TeacherSimulator(honest) as direct:
        teacher = {"name": "direct", "model": "openai/gpt-4o-mini", "vendor_url": direct.base_url,
                   "api_key_env": KEY_VARIABLE, "max_tokens": 59}  # fmt: skip
        recipe = recipe_of(tmp_path, sim, budget={"max_usd": "0.01"})
        sim.refuse = 429
        with pytest.raises(FoveaError):
            await run(tmp_path, recipe)
        with Journal(tmp_path / "out/collect/journal.jsonl") as journal:
            journal.reserve("of-an-older-recipe", Decimal("0.0099"))
            about = {"row": "r0", "purpose": "label", "teacher": "sim", "vendor": "openai", "prompt_sha256": "",
                     "sample": 0}  # fmt: skip
            journal.batch("batch_0", "sim", {"of-an-older-recipe": about})
        sim.batches["batch_0"], sim.refuse = [], None
        data = yaml.safe_load(recipe.read_text())
        recipe.write_text(yaml.safe_dump(data | {"teachers": [teacher, *data["teachers"]]}))
        report = await asyncio.wait_for(run(tmp_path, recipe), 60)
        assert report["answers"] == 6 and report["stopped"] is None and report["batches_open"] == []
        assert Decimal(report["spent_usd"]) == 3 * direct.one + 3 * half("openai")
        # and when its teacher is not asked any more, buying ends instead of waiting for ever
        with Journal(tmp_path / "out/collect/journal.jsonl") as journal:
            journal.reserve("x", Decimal("0.0095"))
            journal.batch("batch_9", "gone", {"x": about})
        recipe.write_text(yaml.safe_dump(data | {"teachers": [teacher | {"max_tokens": 61}]}))
        with pytest.raises(FoveaError, match="not one answer could be bought"):
            await asyncio.wait_for(run(tmp_path, recipe), 60)


async def test_a_batch_needs_a_batch_price_and_a_vendor(tmp_path: Path) -> None:
    write_data(tmp_path, 2)
    book = tmp_path / "prices.yaml"
    book.write_text("""rows: [{vendor: openai, model: gpt-4o-mini, input: "1", output: "2", effective_from: 2026-01-01,
      read: 2026-11-01, source: here}]""")
    async with BatchSimulator(honest) as sim:
        recipe = recipe_of(tmp_path, sim, budget={"max_usd": "1", "prices": "prices.yaml"})
        with pytest.raises(UsageError, match="teacher sim: batch: the price book has no batch price"):
            await run(tmp_path, recipe)
    own: dict[str, Any] = {"batch": {}, "vendor_url": None, "base_url": "http://127.0.0.1:9/v1", "model": "x"}
    with pytest.raises(UsageError, match="batch is for a vendor's batch API"):
        await run(tmp_path, write_recipe(tmp_path, "http://127.0.0.1:9", teacher=own))
