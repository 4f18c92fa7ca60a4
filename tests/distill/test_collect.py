"""collect against simulators of the vendors: every answer kept with its lineage, dollars counted to the last digit."""

from __future__ import annotations

import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from distill.collect.run import collect
from distill.labels import read_labels
from distill.work import open_work
from models.prices import load_prices
from models.support.errors import CheckFailed, FoveaError, UsageError
from tests.distill.simulator import (
    KEY_VARIABLE,
    MODELS,
    TeacherSimulator,
    colour_of,
    picture,
    reply,
    write_data,
    write_recipe,
    write_rows,
)


async def no_pause(seconds: float) -> None:
    assert seconds >= 0


async def run(folder: Path, recipe: Path) -> dict[str, Any]:
    return await collect(open_work(recipe, folder / "out"), pause=no_pause)


def honest(question: str, image: bytes | None, number: int) -> str:
    return reply(colour_of(image))


@pytest.mark.parametrize("vendor", list(MODELS))
async def test_answers_lineage_and_dollars(tmp_path: Path, vendor: str) -> None:
    write_data(tmp_path, 6)
    async with TeacherSimulator(honest, vendor=vendor) as sim:
        report = await run(tmp_path, write_recipe(tmp_path, sim.base_url, vendor=vendor))
        assert sim.asked == {f"Colour of square {i}?": 1 for i in range(6)}
        again = await run(tmp_path, tmp_path / "recipe.yaml")
        assert sum(sim.asked.values()) == 6 and again["answers_bought"] == 0 and again["answers_before"] == 6
    assert Decimal(report["spent_usd"]) == sim.bill == Decimal(again["spent_usd"])
    rows = read_labels(tmp_path / "out/collect/labels.jsonl")
    assert {row.id for row in rows} == {f"r{i}" for i in range(6)}
    price = load_prices().find(MODELS[vendor])
    for row in rows:
        (one,) = row.answers
        assert (one.answer, one.confidence, one.rationale, one.problem) == (row.category, 0.9, "seen", None)
        assert one.teacher == "sim" and one.vendor == vendor and one.model.startswith(MODELS[vendor])
        assert Decimal(one.usd) == sim.one and one.price is not None and Decimal(one.price["input"]) == price.input
        assert one.at.endswith("+00:00") and len(one.prompt_sha256) == 64 and one.licence["training"] == "unclear"
    system = json.dumps(sim.script.seen[0])
    assert "Name the colour of the square." in system and "JSON Schema" in system


@pytest.mark.parametrize("vendor", list(MODELS))
async def test_the_limit_stops_exactly_and_a_higher_one_goes_on(tmp_path: Path, vendor: str) -> None:
    write_data(tmp_path, 12)
    async with TeacherSimulator(honest, vendor=vendor) as sim:
        recipe = write_recipe(tmp_path, sim.base_url, vendor=vendor)
        work = open_work(recipe, tmp_path / "probe")
        async with _shop(work) as (one, _):
            at_most = one.teacher.provider.estimate(one.ask())
        limit = 4 * sim.one + at_most
        recipe = write_recipe(tmp_path, sim.base_url, vendor=vendor, budget={"max_usd": f"{limit:f}"})
        report = await run(tmp_path, recipe)
        # in flight at first only as many as could all cost their most; then one by one to the last that fits
        bought = 1 + (limit - at_most) // sim.one
        assert report["answers_bought"] == bought == 5 and report["stopped"] == "budget"
        assert Decimal(report["spent_usd"]) == bought * sim.one <= limit
        recipe = write_recipe(tmp_path, sim.base_url, vendor=vendor, budget={"max_usd": "1"})
        report = await run(tmp_path, recipe)
    assert report["answers"] == 12 and report["stopped"] is None and set(sim.asked.values()) == {1}
    assert Decimal(report["spent_usd"]) == 12 * sim.one == sim.bill


def _shop(work: Any) -> Any:
    from contextlib import asynccontextmanager

    from distill.collect.run import open_shop, questions_of, rows_to_ask

    @asynccontextmanager
    async def opened() -> Any:
        async with open_shop(work) as shop:
            yield next(questions_of(work, shop.teachers, rows_to_ask(work))), shop

    return opened()


async def test_samples_teachers_and_what_changes_nothing(tmp_path: Path) -> None:
    write_data(tmp_path, 3)
    async with TeacherSimulator(honest) as sim:
        recipe = write_recipe(tmp_path, sim.base_url, teacher={"samples": 3})
        assert (await run(tmp_path, recipe))["answers"] == 9
        recipe = write_recipe(tmp_path, sim.base_url, teacher={"samples": 2, "concurrency": 1, "timeout_s": 9})
        assert (await run(tmp_path, recipe))["answers_bought"] == 0
        recipe = write_recipe(tmp_path, sim.base_url, teacher={"max_tokens": 61})
        assert (await run(tmp_path, recipe))["answers_bought"] == 3
        with (tmp_path / "rows.jsonl").open("a") as file:
            (tmp_path / "new.png").write_bytes(picture("red", 9))
            file.write(json.dumps({"id": "new", "image": "new.png", "question": "New?"}) + "\n")
        assert (await run(tmp_path, recipe))["answers_bought"] == 1


@pytest.mark.parametrize("fault", [429, 500, 529, "drop", "garbage"])
async def test_passing_trouble_is_retried_and_counted(tmp_path: Path, fault: int | str) -> None:
    write_data(tmp_path, 4)
    async with TeacherSimulator(honest, fault=lambda n: fault if n == 1 else None) as sim:
        report = await run(tmp_path, write_recipe(tmp_path, sim.base_url, teacher={"concurrency": 1}))
    assert report["answers"] == 4 and report["failed"] == 0
    # a dropped connection may have been billed, and is counted at the most it can have cost
    assert (Decimal(report["spent_usd"]) > 4 * sim.one) is (fault == "drop")
    lines = [json.loads(x) for x in (tmp_path / "out/collect/journal.jsonl").read_text().splitlines()]
    assert sum(Decimal(x["usd"]) for x in lines if x["t"] != "reserve") == Decimal(report["spent_usd"])


async def test_what_fails_is_kept_apart_and_asked_again_next_time(tmp_path: Path) -> None:
    write_data(tmp_path, 3)
    async with TeacherSimulator(honest, fault=lambda n: 400 if n == 1 else None) as sim:
        recipe = write_recipe(tmp_path, sim.base_url, teacher={"concurrency": 1})
        report = await run(tmp_path, recipe)
        assert report["answers"] == 2 and report["failed"] == 1 and Decimal(report["spent_usd"]) == 2 * sim.one
        report = await run(tmp_path, recipe)
        assert report["answers"] == 3 and report["failed"] == 0 and report["answers_bought"] == 1


@pytest.mark.parametrize(
    ("text", "finish", "problem"),
    [
        ("I think it is red.", "stop", "prose"),
        ("Sorry, I cannot help with that.", "refused", "refused"),
        ('{"answer": "re', "length", "truncated"),
        ('{"confidence": 1}', "stop", "no_answer"),
        ("", "stop", "empty"),
    ],
)
async def test_unusable_answers_stop_early_and_are_kept(tmp_path: Path, text: str, finish: str, problem: str) -> None:
    write_data(tmp_path, 9)
    async with TeacherSimulator(lambda *_: text, finish=finish) as sim:
        recipe = write_recipe(
            tmp_path, sim.base_url, budget={"max_usd": "1", "give_up_after": 4}, teacher={"concurrency": 1}
        )
        with pytest.raises(CheckFailed, match=f"teacher sim: 4 answers in a row are unusable; the last: {problem}"):
            await run(tmp_path, recipe)
    assert sum(sim.asked.values()) == 4
    rows = read_labels(tmp_path / "out/collect/labels.jsonl")
    assert [row.answers[0].problem for row in rows] == [problem] * 4
    report = json.loads((tmp_path / "out/collect/report.json").read_text())
    assert report["teachers"]["sim"]["unusable"] == {problem: 4} and Decimal(report["spent_usd"]) == 4 * sim.one


async def test_a_malformed_answer_now_and_then_stops_nothing(tmp_path: Path) -> None:
    write_data(tmp_path, 8)
    async with TeacherSimulator(lambda q, i, n: "no json" if n % 2 else reply("red")) as sim:
        recipe = write_recipe(tmp_path, sim.base_url, budget={"max_usd": "1", "give_up_after": 2},
                              teacher={"concurrency": 1})  # fmt: skip
        report = await run(tmp_path, recipe)
    assert report["answers"] == 8 and report["teachers"]["sim"]["unusable"] == {"prose": 4}


async def test_wrong_key_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(tmp_path, 5)
    async with TeacherSimulator(honest) as sim:
        recipe = write_recipe(tmp_path, sim.base_url, teacher={"concurrency": 1})
        monkeypatch.setenv(KEY_VARIABLE, "wrong")
        with pytest.raises(FoveaError) as caught:
            await run(tmp_path, recipe)
        assert caught.value.exit_code == 2 and sum(sim.asked.values()) == 1
        monkeypatch.delenv(KEY_VARIABLE)
        with pytest.raises(UsageError, match="teacher sim: api_key_env: the environment variable is not set"):
            await run(tmp_path, recipe)


async def test_a_budget_too_small_for_one_answer(tmp_path: Path) -> None:
    write_data(tmp_path, 2)
    async with TeacherSimulator(honest) as sim:
        recipe = write_recipe(tmp_path, sim.base_url, budget={"max_usd": "0.000001"})
        with pytest.raises(
            CheckFailed, match=r"budget.max_usd: not one answer could be bought .*one answer can cost \$"
        ):
            await run(tmp_path, recipe)
    assert not sim.asked


async def test_a_broken_picture_stops_before_anything_is_bought(tmp_path: Path) -> None:
    rows = write_data(tmp_path, 20)
    (tmp_path / "p16.png").write_bytes((tmp_path / "p16.png").read_bytes()[:60])
    async with TeacherSimulator(honest) as sim:
        recipe = write_recipe(tmp_path, sim.base_url)
        with pytest.raises(UsageError, match=r"rows.jsonl:17 \(row 'r16'\): .*data.max_broken_rows"):
            await run(tmp_path, recipe)
        (tmp_path / "p3.png").unlink()
        with pytest.raises(UsageError, match=r"rows.jsonl:4 \(row 'r3'\): there is no such image file; 2 rows in all"):
            await run(tmp_path, recipe)
        assert not sim.asked
        recipe = write_recipe(tmp_path, sim.base_url, data={"rows": "rows.jsonl", "max_broken_rows": 2})
        report = await run(tmp_path, recipe)
    assert report["answers"] == len(rows) - 2 and set(report["broken_pictures"]) == {"r3", "r16"}


async def test_a_self_hosted_teacher(tmp_path: Path) -> None:
    write_data(tmp_path, 4)
    plain = {"reply": "text"}
    async with TeacherSimulator(lambda q, i, n: colour_of(i)) as sim:
        base = {"model": MODELS["openai"], "vendor_url": None, "base_url": sim.base_url, "max_tokens": 8}
        report = await run(tmp_path, write_recipe(tmp_path, sim.base_url, teacher=base, prompts=plain))
        assert report["spent_usd"] == "0" and report["answers"] == 4
        assert "system" not in {m["role"] for m in sim.script.seen[0]["messages"]}
        assert report["teachers"]["sim"]["vendor"] == "self-hosted"
        priced = base | {"price": {"input": "2", "output": "4", "image_tokens_at_most": 500}, "max_tokens": 9}
        recipe = write_recipe(tmp_path, sim.base_url, teacher=priced, prompts=plain)
        report = await run(tmp_path, recipe)
    assert Decimal(report["spent_usd"]) == 4 * (500 * Decimal(2) + 10 * Decimal(4)) / 10**6
    rows = read_labels(tmp_path / "out/collect/labels.jsonl")
    assert all(row.answers[0].answer == row.category for row in rows)


async def test_human_labels_are_not_bought_and_audit_the_teacher(tmp_path: Path) -> None:
    rows = write_data(tmp_path, 8)
    human = [{"id": r["id"], "answer": r["category"], "by": "ann", "at": "2026-11-20"} for r in rows[:4]]
    human[3]["answer"] = "blue"  # r3 is red: here the teacher and the human differ
    write_rows(tmp_path / "human.jsonl", human)
    data = {"rows": "rows.jsonl", "human": ["human.jsonl"]}
    async with TeacherSimulator(honest) as sim:
        report = await run(tmp_path, write_recipe(tmp_path, sim.base_url, data=data))
        assert sum(sim.asked.values()) == 4 and report["rows_labelled"] == 8 and report["human_rows"] == 4
        report = await run(tmp_path, write_recipe(tmp_path, sim.base_url, data=data | {"audit_human_rows": 4}))
    assert sum(sim.asked.values()) == 8
    noise = report["teachers"]["sim"]["noise"]
    assert noise["n"] == 4 and noise["value"] == 0.75


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"id": "nobody", "answer": "red", "by": "ann"}, "human.jsonl:1: no row has this id"),
        ({"id": "r0", "answer": 7, "by": "ann"}, "human.jsonl:1: answer does not fit task.answer_schema"),
        ({"id": "r0", "answr": "red", "by": "ann"}, "human.jsonl:1: .*(unknown|missing) key"),
    ],
)
async def test_wrong_human_labels(tmp_path: Path, line: dict[str, Any], says: str) -> None:
    write_data(tmp_path, 2)
    write_rows(tmp_path / "human.jsonl", [line])
    recipe = write_recipe(tmp_path, "http://127.0.0.1:9", data={"rows": "rows.jsonl", "human": ["human.jsonl"]})
    with pytest.raises(UsageError, match=says):
        open_work(recipe)


async def test_synthetic_rows_over_the_limit_are_not_bought(tmp_path: Path) -> None:
    rows = write_data(tmp_path, 20)
    write_rows(tmp_path / "rows.jsonl", [r | {"synthetic": i >= 7} for i, r in enumerate(rows)])
    async with TeacherSimulator(honest) as sim:
        report = await run(tmp_path, write_recipe(tmp_path, sim.base_url))
    # 3 of 10 is 30 %
    assert report["rows"] == 10 and report["synthetic_left_out"] == 10 and sum(sim.asked.values()) == 10


async def test_two_processes_do_not_buy_into_one_folder(tmp_path: Path) -> None:
    write_data(tmp_path, 2)
    recipe = write_recipe(tmp_path, "http://127.0.0.1:9")
    work = open_work(recipe, tmp_path / "out")
    async with _shop(work):
        with pytest.raises(UsageError, match="another process is buying"):
            await collect(work)


@pytest.mark.parametrize("seed", range(3))
async def test_in_any_trouble_the_limit_holds_and_nothing_is_bought_twice(tmp_path: Path, seed: int) -> None:
    """Refusals, lost connections and broken replies at random, in several commands one after the other."""
    draw = random.Random(seed)
    write_data(tmp_path, 30)
    trouble = [draw.choice([None, None, None, 429, 500, "drop", "garbage"]) for _ in range(400)]
    async with TeacherSimulator(honest, fault=lambda n: trouble[n]) as sim:
        spent = Decimal(0)
        answered: set[str] = set()
        for limit in ("0.004", "0.008", "0.05"):
            recipe = write_recipe(tmp_path, sim.base_url, teacher={"concurrency": 5, "attempts": 2},
                                  budget={"max_usd": limit})  # fmt: skip
            report = await run(tmp_path, recipe)
            assert spent <= Decimal(report["spent_usd"]) <= Decimal(limit)
            spent = Decimal(report["spent_usd"])
            lines = [json.loads(x) for x in (tmp_path / "out/collect/journal.jsonl").read_text().splitlines()]
            keys = [x["key"] for x in lines if x["t"] == "answer"]
            assert len(keys) == len(set(keys)) and answered <= set(keys)
            answered = set(keys)
            assert sum(Decimal(x["usd"]) for x in lines if x["t"] != "reserve") == spent
    assert len(answered) * sim.one <= spent and len(answered) > 10
