"""Paired comparison of two evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fovea
from models.evaluation import EvaluationSettings, evaluate
from models.evaluation.compare import compare, read_evaluation, verdict
from models.golden import load_golden
from models.support.errors import UsageError
from tests.models.openai_simulator import OpenAISimulator, Reply

GOLDEN = load_golden("easy-vqa")
ITEMS = {(i.question, i.image_bytes()): i for i in GOLDEN.items}


def run(out: Path, wrong: Any, **changes: Any) -> Path:
    """Evaluate a simulated model that is wrong on the items that `wrong` picks."""

    def answer(question: str, image: bytes) -> Reply:
        item = ITEMS[question, image]
        return ("nothing" if wrong(item) else item.expected), 0.9

    with OpenAISimulator(answer) as sim:
        values: dict[str, Any] = {
            "url": sim.url,
            "model": "sim",
            "golden": "easy-vqa",
            "out": out,
            "limit": 600,
            "seed": 1,
        }
        evaluate(EvaluationSettings(**(values | changes)))
    return out


def number(item: Any) -> int:
    return int(item.id[1:])


def test_counts_by_hand(tmp_path: Path) -> None:
    first = read_evaluation(run(tmp_path / "a", lambda i: number(i) % 10 == 0))
    second = read_evaluation(
        run(tmp_path / "b", lambda i: number(i) % 10 == 0 or (i.category == "color" and number(i) % 2))
    )
    result = compare(first, second)
    items = GOLDEN.sample(600, 1)
    a = [number(i) % 10 != 0 for i in items]
    b = [ok and not (i.category == "color" and number(i) % 2) for i, ok in zip(items, a, strict=True)]
    lost = sum(x and not y for x, y in zip(a, b, strict=True))
    assert result["items"] == 600
    assert result["mcnemar"]["only_first"] == lost == len(result["flips"]["lost"]) and result["flips"]["won"] == []
    assert result["difference"]["value"] == pytest.approx((sum(b) - sum(a)) / 600)
    assert result["difference"]["low"] < result["difference"]["value"] < result["difference"]["high"] < 0
    assert result["by_category"]["shape"]["difference"]["value"] == 0
    assert result["by_category"]["color"]["difference"]["value"] < -0.3
    assert sum(g["first"]["n"] for g in result["by_category"].values()) == 600
    assert result["flips"]["changed_answer"]["value"] == lost / 600
    holds, text = verdict(result, 0.01)
    assert not holds and "not shown to be within a drop of 1 points" in text
    assert verdict(result, 0.5)[0] and verdict(result, None)[0]


def test_equal_models_are_not_told_apart(tmp_path: Path) -> None:
    one = read_evaluation(run(tmp_path / "a", lambda i: number(i) % 7 == 0))
    result = compare(one, one)
    assert (
        result["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 600}
        and result["mcnemar"]["p_value"] == 1.0
    )


def test_only_common_items_count(tmp_path: Path) -> None:
    first = read_evaluation(run(tmp_path / "a", lambda i: False, limit=300))
    second = read_evaluation(run(tmp_path / "b", lambda i: False, limit=300, seed=2))
    common = {i.id for i in GOLDEN.sample(300, 1)} & {i.id for i in GOLDEN.sample(300, 2)}
    assert compare(first, second)["items"] == len(common) > 0


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run(tmp_path / "a", lambda i: False), run(tmp_path / "b", lambda i: i.category == "shape")
    words = ["models", "compare", str(a), str(b), "--out", str(tmp_path / "c")]
    assert fovea.main([*words, "--max-drop", "0.02"]) == 1
    assert "shape" in capsys.readouterr().out
    assert fovea.main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "c" / "report.json").read_text())
    page = (tmp_path / "c" / "report.html").read_text()
    assert "Points lost by category" in page and "data:image/png;base64," in page
    assert fovea.main([*words, "--max-drop", "3"]) == 2
    assert fovea.main(["models", "compare", str(a), str(tmp_path)]) == 2
    assert "holds no finished evaluation" in capsys.readouterr().err


def test_another_golden_set_is_refused(tmp_path: Path) -> None:
    a = run(tmp_path / "a", lambda i: False, limit=5)
    report = json.loads((a / "report.json").read_text())
    report["golden"]["digest"] = "0" * 64
    b = tmp_path / "b"
    b.mkdir()
    (b / "answers.jsonl").write_bytes((a / "answers.jsonl").read_bytes())
    (b / "report.json").write_text(json.dumps(report))
    with pytest.raises(UsageError, match="the golden sets differ"):
        compare(read_evaluation(a), read_evaluation(b))
    with pytest.raises(UsageError, match="has changed since"):
        compare(read_evaluation(b), read_evaluation(b))
