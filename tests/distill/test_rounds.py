"""Budgeted labelling: rounds stop when a dollar buys too little, and the payback is plain arithmetic."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from distill.collect.rounds import Curve, payback
from distill.recipe.ask import Rounds
from distill.recipe.train import Stage, Train
from distill.train import probe as probe_module
from distill.train.probe import shortened
from distill.work import open_work
from models.support.errors import CheckFailed, UsageError
from tests.distill.simulator import TeacherSimulator, colour_of, reply, write_data, write_recipe, write_rows
from tests.distill.test_collect import run
from tests.distill.training import EMBEDDED


def marks(right: int, n: int = 100) -> dict[str, bool]:
    return {f"i{i}": i < right for i in range(n)}


def test_the_curve_stops_after_patience_poor_rounds() -> None:
    curve = Curve(Rounds(min_points_per_dollar=2.0, patience=2))
    assert curve.add(10, Decimal(1), marks(40))
    assert curve.add(20, Decimal(2), marks(60))  # 20 points for a dollar
    assert curve.add(30, Decimal(3), marks(61))  # 1 point: poor
    assert curve.add(40, Decimal("3.25"), marks(62))  # 4 points a dollar: good again
    assert curve.add(50, Decimal("4.25"), marks(62))
    assert not curve.add(60, Decimal("5.25"), marks(61))
    assert [r.get("points_per_dollar") for r in curve.rounds] == [None, 20.0, 1.0, 4.0, 0.0, -1.0]
    assert curve.rounds[1]["gain_points"]["n"] == 100 and curve.rounds[1]["gain_points"]["low"] > 10


def test_free_rounds_never_stop() -> None:
    curve = Curve(Rounds(patience=1))
    assert all(curve.add(n, Decimal(0), marks(10)) for n in range(5))


@pytest.mark.parametrize(
    ("teacher", "student", "queries"), [("0.002", "0.0002", 5556), ("0.01", "0", 1000), ("0.001", "0.001", None)]
)
def test_payback(teacher: str, student: str, queries: int | None) -> None:
    found = payback(Decimal(10), Decimal(teacher), Decimal(student))
    assert found["queries"] == queries and ("note" in found) is (queries is None)


def prepare(folder: Path) -> dict[str, Any]:
    """48 training rows and 12 validation rows with a human's truth; one question, so that pictures decide."""
    rows = write_data(folder, 60)
    rows = [r | {"question": "What colour?", "split": "validation" if i >= 48 else "train"} for i, r in enumerate(rows)]
    write_rows(folder / "rows.jsonl", rows)
    human = [{"id": r["id"], "answer": r["category"], "by": "ann"} for r in rows if r["split"] == "validation"]
    write_rows(folder / "human.jsonl", human)
    return {"rows": "rows.jsonl", "human": ["human.jsonl"]}


async def test_rounds_end_when_the_gain_is_too_small_for_the_price(tmp_path: Path) -> None:
    data = prepare(tmp_path)
    rounds = {"size": 6, "min_points_per_dollar": 0.5, "patience": 2, "student_usd_per_query": "0.00001"}
    budget = {"max_usd": "1", "rounds": rounds}
    async with TeacherSimulator(lambda q, i, n: reply(colour_of(i))) as sim:
        recipe = write_recipe(tmp_path, sim.base_url, data=data, budget=budget)
        report = await run(tmp_path, recipe)
        # the nearest picture has the same colour after a few rounds, and then more labels bring nothing
        assert report["stopped"] == "marginal" and 18 <= report["answers"] < 48 and report["answers"] % 6 == 0
        curve = report["rounds"]
        assert curve[-1]["accuracy"]["value"] == 1.0 and curve[-1]["accuracy"]["n"] == 12
        assert [r["points_per_dollar"] for r in curve[-2:]] == [0.0, 0.0]
        assert [Decimal(r["usd"]) for r in curve] == [6 * (i + 1) * sim.one for i in range(len(curve))]
        saved = sim.one - Decimal("0.00001")
        assert report["payback"]["queries"] == math.ceil(sim.bill / saved)
        again = await run(tmp_path, recipe)
    # what is known is not bought again, and the same rounds come out
    assert again["answers_bought"] == 0 and again["rounds"] == curve


async def test_rounds_need_a_truth(tmp_path: Path) -> None:
    write_data(tmp_path, 3)
    async with TeacherSimulator(lambda q, i, n: reply("red")) as sim:
        recipe = write_recipe(tmp_path, sim.base_url, budget={"max_usd": "1", "rounds": {}})
        with pytest.raises(UsageError, match="no row of split validation has a human label"):
            await run(tmp_path, recipe)
        assert not sim.asked


@pytest.mark.parametrize(("says", "low", "high"), [(colour_of, 0.8, 1.0), (lambda i: "teal", 0.0, 0.0)])
async def test_the_student_itself_as_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Callable[[bytes | None], str], low: float, high: float
) -> None:
    """It is as right as what it was taught: colours from a teacher that sees, and none from one that does not."""
    data = prepare(tmp_path)
    rounds = {"size": 48, "probe": {"kind": "student", "steps": 20}}
    student = {"model": "qwen2-5-vl-embedded", "max_tokens": 80}
    train = {"base": str(EMBEDDED / "qwen2_5_vl"), "batch": 8, "stages": [{"steps": 200, "rate": 1e-3}], "threads": 1}
    more: dict[str, Any] = {"data": data, "student": student, "budget": {"max_usd": "1", "rounds": rounds}}
    async with TeacherSimulator(lambda q, i, n: reply(says(i))) as sim:
        with pytest.raises(UsageError, match="trains the student: add the sections `student` and `train`"):
            write_recipe(tmp_path, sim.base_url, **more)
            open_work(tmp_path / "recipe.yaml")
        recipe = write_recipe(tmp_path, sim.base_url, train=train, **more)
        report = await run(tmp_path, recipe)
        monkeypatch.delattr(probe_module, "_asked")  # what is known is not trained again
        assert (await run(tmp_path, recipe))["rounds"] == report["rounds"]
    (only,) = report["rounds"]
    assert only["labelled"] == 48 and only["accuracy"]["n"] == 12
    assert low <= only["accuracy"]["value"] <= high


def test_a_probes_training_is_shorter_in_every_stage() -> None:
    train = Train(base="x", stages=[Stage(steps=900), Stage(steps=100)], patience=3, workers=2)
    short = shortened(train, 50)
    assert [stage.steps for stage in short.stages] == [45, 5] and short.patience is None and short.workers == 1
    assert [stage.steps for stage in shortened(train, None).stages] == [900, 100]
    assert [stage.steps for stage in shortened(train, 1).stages] == [1, 1]


PROGRAM = """import json, sys
labels, truth = ([json.loads(line) for line in open(name)] for name in sys.argv[1:])
assert all(open(row["image"], "rb").read(4) == b"\\x89PNG" for row in labels + truth)
known = {row["answer"] for row in labels}
print(json.dumps({"correct": {row["id"]: row["answer"] in known for row in truth}}))
"""


async def test_an_own_program_as_probe(tmp_path: Path) -> None:
    data = prepare(tmp_path)
    (tmp_path / "probe.py").write_text(PROGRAM)
    probe = {"kind": "command", "command": [sys.executable, str(tmp_path / "probe.py")]}
    budget = {"max_usd": "1", "rounds": {"size": 1, "patience": 3, "probe": probe}}
    async with TeacherSimulator(lambda q, i, n: reply(colour_of(i))) as sim:
        report = await run(tmp_path, write_recipe(tmp_path, sim.base_url, data=data, budget=budget))
        values = [r["accuracy"]["value"] for r in report["rounds"]]
        assert values == sorted(values) and values[0] == pytest.approx(1 / 3) and report["stopped"] == "marginal"
        for body, says in (
            ("raise SystemExit('no torch')", "exit code 1: no torch"),
            ("print(1)", "printed no result"),
        ):
            (tmp_path / "probe.py").write_text(body)
            with pytest.raises(CheckFailed, match=f"budget.rounds.probe.command: {says}"):
                await run(tmp_path, tmp_path / "recipe.yaml")
    assert json.loads((tmp_path / "out/collect/report.json").read_text())["answers"] == report["answers"]
    assert open_work(tmp_path / "recipe.yaml").recipe.budget.rounds is not None
