"""Filters: what each drops, what it leaves, and what the data card says of it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from distill.answers import parse_reply, same_answer
from distill.filters.shares import _common_size
from distill.labels import Labelled, read_labels
from distill.recipe.filters import Unit
from distill.rows import most_beside
from distill.steps import run_steps
from distill.units import UnitProblem, apply_units
from distill.work import open_work
from models.support.errors import CheckFailed, UsageError
from tests.distill.simulator import (
    COLOURS,
    TeacherSimulator,
    colour_of,
    picture,
    reply,
    write_data,
    write_recipe,
    write_rows,
)

GOOD = {"dropped": 0, "reasons": {}}


async def both(folder: Path, recipe: Path) -> tuple[dict[str, Any], list[Labelled]]:
    """Collect and filter; return the filter's report and the kept rows."""
    import asyncio

    work = open_work(recipe, folder / "out")
    # the steps have event loops of their own, as on the command line
    reports = await asyncio.to_thread(run_steps, work, ["collect", "filter"])
    return reports["filter"], read_labels(folder / "out/filter/kept.jsonl")


def by_name(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {f["name"]: {"dropped": f["dropped"], "reasons": f["reasons"]} for f in report["filters"]}


def dropped(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "out/filter/dropped.jsonl").read_text().splitlines()
    return {line["id"]: line for line in map(json.loads, lines)}


def honest(question: str, image: bytes | None, number: int) -> str:
    return reply(colour_of(image))


async def test_what_is_fine_is_kept_and_the_second_run_is_cached(tmp_path: Path) -> None:
    write_data(tmp_path, 6)
    async with TeacherSimulator(honest) as sim:
        recipe = write_recipe(tmp_path, sim.base_url)
        report, kept = await both(tmp_path, recipe)
        assert report["kept"] == 6 and not report["cached"] and all(f == GOOD for f in by_name(report).values())
        assert {(r.id, r.answer, r.source, r.agreement) for r in kept} == {
            (f"r{i}", list(COLOURS)[i % 3], "sim", 1.0) for i in range(6)
        }
        again, _ = await both(tmp_path, recipe)
        assert again["cached"] and again["kept_sha256"] == report["kept_sha256"]
        (tmp_path / "out/filter/kept.jsonl").write_text("")
        again, kept = await both(tmp_path, recipe)
        assert not again["cached"] and len(kept) == 6
        recipe = write_recipe(tmp_path, sim.base_url, filters={"min_confidence": 0.95})
        with pytest.raises(CheckFailed, match="0 training rows are left of 6, 1 are wanted; most went at 'Usable"):
            await both(tmp_path, recipe)
        assert {d["reason"] for d in dropped(tmp_path).values()} == {"unsure"}
    assert "bad" in (tmp_path / "out/filter/card.html").read_text()


async def test_schema_and_units(tmp_path: Path) -> None:
    write_data(tmp_path, 6)
    said = {
        "Colour of square 0?": {"kind": "box", "weight": "500 g"},
        "Colour of square 1?": {"kind": "box", "weight": 2},
        "Colour of square 2?": {"kind": "box", "weight": "3 lb"},
        "Colour of square 3?": {"kind": "box", "weight": "99 kg"},
        "Colour of square 4?": {"kind": "ship", "weight": 1},
        "Colour of square 5?": {"weight": 1},
    }
    task = {
        "description": "Weigh it.",
        "answer_schema": {
            "type": "object",
            "properties": {"kind": {"enum": ["box", "bag"]}, "weight": {"type": "number"}},
            "required": ["kind", "weight"],
        },
        "units": {"weight": {"unit": "kg", "others": {"g": 0.001}, "maximum": 30}},
    }
    async with TeacherSimulator(lambda q, i, n: reply(said[q])) as sim:
        report, kept = await both(tmp_path, write_recipe(tmp_path, sim.base_url, task=task))
    assert {r.id: r.answer["weight"] for r in kept} == {"r0": 0.5, "r1": 2}
    assert by_name(report)["usable"]["reasons"] == {"units": 2, "schema": 2}
    gone = dropped(tmp_path)
    assert "'3 lb' has the unit 'lb'" in gone["r2"]["text"] and "above 30" in gone["r3"]["text"]
    assert "'ship' is not one of" in gone["r4"]["text"] and "'kind' is a required property" in gone["r5"]["text"]


async def test_agreement_across_samples_and_teachers(tmp_path: Path) -> None:
    write_data(tmp_path, 3)
    answers = {  # by question: what the three samples of the first teacher say, then the second teacher
        "Colour of square 0?": ["Red", "red.", "blue", "red"],
        "Colour of square 1?": ["red", "green", "blue", "green"],
        "Colour of square 2?": ["blue", "blue", "blue", "green"],
    }
    turns = {q: iter(a) for q, a in answers.items()}
    async with TeacherSimulator(lambda q, i, n: reply(next(turns[q]))) as sim:
        recipe = write_recipe(
            tmp_path,
            sim.base_url,
            teacher={"samples": 3, "concurrency": 1},
            filters={"agreement": {"min_share": 0.6, "min_teachers": 2}},
        )
        data = yaml.safe_load(recipe.read_text())
        second = {"name": "second", "model": "gpt-4o-mini", "base_url": sim.base_url, "concurrency": 1,
                  "api_key_env": "FOVEA_TEST_TEACHER_KEY"}  # fmt: skip
        recipe.write_text(yaml.safe_dump(data | {"teachers": [second, *data["teachers"]]}))
        turns = {q: iter([a[3], *a[:3]]) for q, a in answers.items()}
        report, kept = await both(tmp_path, recipe)
    # r0: one vote of `second` and two thirds of `sim`; r1: 1 + 1/3; r2: a tie of one vote each
    assert {r.id: (r.answer.casefold().strip("."), r.agreement) for r in kept} == {
        "r0": ("red", pytest.approx(5 / 6)),
        "r1": ("green", pytest.approx(2 / 3)),
    }
    assert by_name(report)["agreement"]["reasons"] == {"disagreement": 1}


async def test_pictures_of_held_out_splits_and_golden_sets(tmp_path: Path) -> None:
    rows = write_data(tmp_path, 8)
    for i, row in enumerate(rows):
        row["question"] = "What colour?"
        row["split"] = "test" if i == 7 else "validation" if i == 6 else "train"
    with Image.open(tmp_path / "p7.png") as image:
        image.convert("RGB").save(tmp_path / "copy0.jpg", quality=90)
    with Image.open(tmp_path / "p6.png") as image:
        image.resize((90, 90)).save(tmp_path / "copy1.png")
    rows[0]["image"], rows[1]["image"] = "copy0.jpg", "copy1.png"
    rows[3]["image"] = rows[2]["image"]  # the same picture and question twice
    golden = tmp_path / "golden"
    golden.mkdir()
    (golden / "g.png").write_bytes((tmp_path / "p4.png").read_bytes())
    write_rows(golden / "golden.jsonl", [{"id": "g", "image": "g.png", "question": "Q?", "expected": "red"}])
    write_rows(tmp_path / "rows.jsonl", rows)
    async with TeacherSimulator(honest) as sim:
        recipe = write_recipe(tmp_path, sim.base_url, filters={"contamination": ["golden"]})
        report, kept = await both(tmp_path, recipe)
    gone = {i: d["reason"] for i, d in dropped(tmp_path).items()}
    second = "r3" if "r3" in gone else "r2"  # the seed's order says which of two is the second
    assert gone == {"r0": "like_test", "r1": "like_validation", second: "repeated", "r4": "golden"}
    assert {r.id for r in kept} == {"r2", "r3", "r5", "r6"} - {second}
    assert report["splits"] == {"train": 2, "validation": 1}
    with pytest.raises(UsageError, match="golden set not found"):
        open_work(write_recipe(tmp_path, "http://127.0.0.1:9", filters={"contamination": ["goldn"]}))


async def test_image_blind(tmp_path: Path) -> None:
    """Questions that give the answer away are found by asking without the picture; one dollar limit holds for all."""
    rows = write_data(tmp_path, 6)
    for i in (0, 3):
        rows[i]["question"] = f"Is the red square red? ({i})"
        rows[i]["category"] = "leading"
    write_rows(tmp_path / "rows.jsonl", rows)

    def answer(question: str, image: bytes | None, number: int) -> str:
        if image is None:
            return reply("red") if "red square" in question else "I cannot see the image."
        return reply(colour_of(image))

    async with TeacherSimulator(answer) as sim:
        model = {"name": "blind", "model": "openai/gpt-4o-mini", "vendor_url": sim.base_url,
                 "api_key_env": "FOVEA_TEST_TEACHER_KEY", "max_tokens": 60, "samples": 2}  # fmt: skip
        recipe = write_recipe(tmp_path, sim.base_url, filters={"image_blind": {"model": model}})
        report, kept = await both(tmp_path, recipe)
        assert {i: d["reason"] for i, d in dropped(tmp_path).items()} == {"r0": "blind", "r3": "blind"}
        assert len(kept) == 4 and sum(sim.asked.values()) == 6 + 12 and not any(
            "image_url" in str(body) for body in sim.script.seen[6:])  # fmt: skip
        assert Decimal(report["spent_usd"]) == sim.bill
        (tmp_path / "out/filter/done.json").unlink()
        again, _ = await both(tmp_path, recipe)
        assert sum(sim.asked.values()) == 18 and again["kept_sha256"] == report["kept_sha256"]
        # a budget that ends in the middle is an error, never a check half done
        model["max_tokens"] = 61
        limit = Decimal(report["spent_usd"]) + 3 * sim.one
        recipe = write_recipe(tmp_path, sim.base_url, filters={"image_blind": {"model": model}},
                              budget={"max_usd": f"{limit:f}"})  # fmt: skip
        with pytest.raises(CheckFailed, match="the dollars end before the check"):
            await both(tmp_path, recipe)


async def test_judge(tmp_path: Path) -> None:
    rows = write_data(tmp_path, 4)
    human = [{"id": "r3", "answer": "purple", "by": "ann"}]
    write_rows(tmp_path / "human.jsonl", human)

    def answer(question: str, image: bytes | None, number: int) -> str:
        if question.startswith("Question about the image"):
            proposed = re.search(r'Proposed answer: "(\w+)"', question)
            assert proposed is not None
            return reply("yes" if proposed[1] == colour_of(image) else "no")
        return reply("blue")

    async with TeacherSimulator(answer) as sim:
        model = {"name": "judge", "model": "openai/gpt-4o-mini", "vendor_url": sim.base_url,
                 "api_key_env": "FOVEA_TEST_TEACHER_KEY", "max_tokens": 60}  # fmt: skip
        recipe = write_recipe(tmp_path, sim.base_url, filters={"judge": {"model": model}},
                              data={"rows": "rows.jsonl", "human": ["human.jsonl"]})  # fmt: skip
        _, kept = await both(tmp_path, recipe)
    # only r2 is blue; what a human says is not judged
    assert {r.id for r in kept} == {"r2", "r3"} and len(rows) == 4
    assert {d["reason"] for d in dropped(tmp_path).values()} == {"judged_wrong"}


async def test_humans_win_over_teachers_and_contradictions_go(tmp_path: Path) -> None:
    write_data(tmp_path, 3)
    human: list[dict[str, Any]] = [
        {"id": "r0", "answer": "violet", "by": "ann", "correction": True, "note": "looked twice"},
        {"id": "r1", "answer": "green", "by": "ann"},
        {"id": "r1", "answer": "teal", "by": "bob"},
        {"id": "r2", "answer": "red", "by": "ann"},
        {"id": "r2", "answer": "blue", "by": "ann"},  # she changed her mind: the later line counts
    ]
    write_rows(tmp_path / "human.jsonl", human)
    data = {"rows": "rows.jsonl", "human": ["human.jsonl"], "audit_human_rows": 3}
    async with TeacherSimulator(honest) as sim:
        report, kept = await both(tmp_path, write_recipe(tmp_path, sim.base_url, data=data))
    assert {r.id: (r.answer, r.source) for r in kept} == {"r0": ("violet", "human"), "r2": ("blue", "human")}
    assert by_name(report)["human"]["reasons"] == {"contradiction": 1}


async def test_balance_and_synthetic_share(tmp_path: Path) -> None:
    rows = write_data(tmp_path, 30)
    rows = [r | {"category": "red" if i < 20 else "blue", "synthetic": i >= 24} for i, r in enumerate(rows)]
    write_rows(tmp_path / "rows.jsonl", rows)
    async with TeacherSimulator(honest) as sim:
        filters = {"balance": {"by": "category", "max_share": 0.6}, "duplicates": {"max_bits": 0, "max_difference": 0}}
        report, kept = await both(tmp_path, write_recipe(tmp_path, sim.base_url, filters=filters))
    # 10 blue: at most 15 red beside them; of 19 real rows 6 of 25 synthetic are within 30 %
    assert by_name(report)["balance"]["reasons"] == {"too_many": 5} and len(kept) == 25
    assert sum(r.synthetic for r in kept) == 6 and report["synthetic_share"] == pytest.approx(6 / 25)


async def test_filter_before_collect(tmp_path: Path) -> None:
    write_data(tmp_path, 2)
    work = open_work(write_recipe(tmp_path, "http://127.0.0.1:9"), tmp_path / "out")
    with pytest.raises(UsageError, match=r"labels.jsonl: cannot read: .*run fovea distill collect"):
        import asyncio

        await asyncio.to_thread(run_steps, work, ["filter"])


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.floats(0.05, 1.0))
def test_common_size_is_the_largest_that_keeps_the_share(sizes: list[int], share: float) -> None:
    size = _common_size(sizes, share)
    within = [n for n in range(1, max(sizes) + 1)
              if max(min(s, n) for s in sizes) <= share * sum(min(s, n) for s in sizes) + 1e-9]  # fmt: skip
    assert size == (max(within) if within else None)


@given(st.integers(0, 500), st.floats(0, 0.99))
def test_most_beside(others: int, share: float) -> None:
    n = most_beside(others, share)
    assert n <= share * (n + others) + 1e-6 and (n + 1) > share * (n + 1 + others) - 1e-6


KG = Unit(unit="kg", others={"g": 0.001, "t": 1000}, minimum=0, maximum=5000)


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        (2, 2),
        (2.5, 2.5),
        ("2.5", 2.5),
        ("2.5 kg", 2.5),
        ("1,250 g", 1.25),
        ("kg 3", 3),
        ("1.5t", 1500),
        ("0.3 g", 0.0003),
    ],
)
def test_units_are_brought_to_one(given_: Any, wanted: float) -> None:
    assert apply_units({"w": given_, "x": "y"}, {"w": KG}) == {"w": wanted, "x": "y"}
    assert apply_units(given_, {".": KG}) == wanted
    assert apply_units({"lines": [{"w": given_}]}, {"lines.w": KG}) == {"lines": [{"w": wanted}]}


@pytest.mark.parametrize(
    "bad", [None, "", "heavy", "2,5 kg", "2 3", "2 kg g", True, float("inf"), "9 lb", -1, "6 t", [None], {"a": 1}]
)
def test_bad_quantities(bad: Any) -> None:
    with pytest.raises(UnitProblem, match=r"^w: "):
        apply_units({"w": bad}, {"w": KG})


def test_decimals_and_optional() -> None:
    money = Unit(unit="$", decimals=2, required=False)
    assert apply_units({"t": "$12.50"}, {"t": money}) == {"t": 12.5} and apply_units({}, {"t": money}) == {"t": None}
    with pytest.raises(UnitProblem, match="more than 2 decimal places"):
        apply_units({"t": 12.345}, {"t": money})


@given(st.text(max_size=40) | st.integers() | st.floats() | st.none() | st.lists(st.integers(), max_size=2))
def test_any_quantity_is_a_number_or_a_problem(value: Any) -> None:
    try:
        found = apply_units(value, {".": KG})
    except UnitProblem:
        return
    for one in found if isinstance(found, list) else [found]:
        assert 0 <= one <= 5000


@given(st.text(max_size=200), st.sampled_from(["stop", "length", "refused", "odd"]), st.sampled_from(["json", "text"]))
def test_any_reply_is_an_answer_or_a_problem(text: str, finish: str, how: str) -> None:
    said = parse_reply(text, finish, how, {"type": "object", "properties": {"a": {}}})
    assert said.problem is not None or finish in ("stop", "odd")
    assert said.confidence is None or 0 <= said.confidence <= 1


@pytest.mark.parametrize(
    ("text", "answer", "confidence"),
    [
        ('Sure!\n```json\n{"answer": 3, "confidence": 0.25}\n```', 3, 0.25),
        ('{"answer": "x", "confidence": 90}', "x", None),
        ('{"answer": "x", "confidence": true}', "x", None),
        ('{"answer": null}', None, None),
        ('{"a": 1}', {"a": 1}, None),
    ],
)
def test_replies(text: str, answer: Any, confidence: float | None) -> None:
    said = parse_reply(text, "stop", "json", {"type": "object", "properties": {"a": {}}})
    assert (said.answer, said.confidence, said.problem) == (answer, confidence, None)


def test_same_answer() -> None:
    assert same_answer("Red.", "red", {}) and not same_answer("red", "blue", {})
    assert same_answer(1.0, 1, {}) and not same_answer(1, 2, {}) and same_answer("1.00", 1, {})
    assert same_answer({"a": "X", "b": 1}, {"a": "x", "b": 1}, {}) and not same_answer({"a": "x"}, {"a": "y"}, {})
    assert same_answer(10.4, 10, {"rule": "numeric", "abs": 0.5})
    assert same_answer(None, "unreadable", {}) and not same_answer("red", None, {})


def test_pictures_of_one_place_and_two_colours_are_two(tmp_path: Path) -> None:
    from distill.images import looks_of
    from models.golden.sets import RenderedImage

    def image(data: bytes) -> RenderedImage:
        with Image.open(io.BytesIO(data)) as opened:
            return RenderedImage(Path("x"), "image/png", *opened.size, data=data)

    looks = looks_of([image(picture(c, 3)) for c in COLOURS] + [image(picture("red", 4))])
    assert [list(looks.near(i, looks, 16, 0.2)) for i in range(4)] == [[0], [1], [2], [3]]
