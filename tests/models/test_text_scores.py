"""Text, boxes and explanations: worked examples, bounds, and parsers that take anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation.answers import Answer
from models.evaluation.evidence import box_scores, explanation, explanation_scores
from models.evaluation.text import anls, character_errors, text_scores, token_f1, word_errors
from models.golden import RULES, GoldenItem, ImageRef, iou, load_golden, parse_boxes
from models.golden.boxes import Labelled, match
from models.golden.check import check_golden, summary
from models.support.errors import UsageError
from tests.models.test_golden import ROW, write_set

IMAGE = ImageRef(Path("x.png"), "image/png", 8, 8)


def item(number: int, expected: Any, rule: str = "normalized", **more: Any) -> GoldenItem:
    return GoldenItem(f"i{number}", IMAGE, "?", "all", expected, rule=rule, **more)


def answers(*texts: str | None) -> dict[str, Answer]:
    return {
        f"i{n}": Answer(f"i{n}", text, 1.0, error=None if text is not None else "timeout")
        for n, text in enumerate(texts)
    }


def test_token_f1_counts_words_as_often_as_they_stand() -> None:
    assert token_f1("the red red circle", "a red circle") == pytest.approx(2 * 2 / 7)
    assert token_f1("Red circle.", "circle red") == 1
    assert token_f1("", "red") == 0 == token_f1("blue", "red")


def test_anls_as_in_its_paper() -> None:
    assert anls("Coca Cola", "coca-cola") == pytest.approx(8 / 9)
    assert anls("pepsi", "coca-cola") == 0  # below the threshold of 0.5
    assert anls("abcd", "abxy") == 0.5


def test_word_and_character_errors() -> None:
    assert word_errors("the cat sat mat", "the cat sat on the mat") == (2, 6)
    assert word_errors("a b c", "") == (3, 0)
    assert character_errors("kitten", "sitting") == (3, 7)


@given(st.text(max_size=30), st.text(max_size=30))
def test_scores_stay_in_range_and_are_perfect_for_equal_texts(a: str, b: str) -> None:
    for score in (token_f1, anls):
        assert 0 <= score(a, b) <= 1 and score(a, a) == 1
        assert score(a, b) == score(b, a)
    assert word_errors(a, a)[0] == 0 == character_errors(b, b)[0]
    longest = max(word_errors(a, b)[1], word_errors(b, a)[1])
    assert abs(word_errors(a, b)[1] - word_errors(b, a)[1]) <= word_errors(a, b)[0] <= longest


def test_text_scores_of_a_set() -> None:
    items = [item(0, "a red circle"), item(1, ["nine", "9"], "set"), item(2, 4.5, "numeric"), item(3, "blue sky")]
    found = text_scores(items, answers("a red square", "9", "4.5", None))
    assert found is not None
    assert found["token_f1"]["value"] == pytest.approx((4 / 6 + 1 + 0) / 3)
    assert found["token_f1"]["n"] == 3  # a number is not a text
    assert found["wer"]["value"] == pytest.approx((1 + 0 + 2) / (3 + 1 + 2))
    assert found["wer"]["low"] <= found["wer"]["value"] <= found["wer"]["high"]
    assert text_scores([items[2]], answers(None, None, "4.5")) is None


def test_iou_and_the_assignment() -> None:
    assert iou((0, 0, 0.5, 1), (0.25, 0, 0.75, 1)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (0, 0, 1, 1)) == 1
    assert iou((0, 0, 0.1, 0.1), (0.5, 0.5, 1, 1)) == 0
    wide, left = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.6, 1.0)
    wanted = [Labelled("a", wide), Labelled("a", left)]
    assert match([Labelled("a", left), Labelled("a", wide)], wanted) == [1, 1]
    assert match([Labelled("b", wide)], wanted) == [0, 0] == match([], wanted)


@pytest.mark.parametrize(
    ("answer", "scale"),
    [
        ('[{"label": "Circle", "box": [0.1, 0.2, 0.5, 0.6]}]', 1),
        ('Here: ```json\n[{"bbox_2d": [100, 200, 500, 600], "label": "circle"}]\n```', 1000),
        ("<loc0205><loc0102><loc0614><loc0511> circle", 1),
    ],
)
def test_boxes_are_read_in_every_form(answer: str, scale: float) -> None:
    (found,) = parse_boxes(answer, scale)
    assert found.label == "circle"
    assert found.box == pytest.approx((0.1, 0.2, 0.5, 0.6), abs=1e-3)


@given(
    st.one_of(st.text(max_size=60), st.recursive(st.none() | st.floats() | st.text(), st.lists, max_leaves=5).map(str))
)
def test_any_text_is_parsed_without_an_error(text: str) -> None:
    for found in parse_boxes(text):
        assert found.box[0] < found.box[2] and found.box[1] < found.box[3]
    assert isinstance(explanation(text), str)


def test_the_rule_wants_all_boxes_and_no_more() -> None:
    rule, expected = RULES["boxes"], [{"label": "circle", "box": [0.1, 0.2, 0.5, 0.6]}]
    right = json.dumps(expected)
    assert rule.check(right, expected, {})
    assert not rule.check(json.dumps(expected * 2), expected, {})  # one box too many
    assert not rule.check(right.replace("circle", "square"), expected, {})
    near = '[{"label": "circle", "box": [0.15, 0.2, 0.55, 0.6]}]'  # IoU 0.78
    assert rule.check(near, expected, {"iou": 0.75}) and not rule.check(near, expected, {"iou": 0.8})
    for wrong in (
        [],
        [{"label": "x"}],
        [{"label": "x", "box": [0.5, 0, 0.1, 1]}],
        [{"label": "x", "box": [0, 0, 9, 9]}],
    ):
        assert rule.validate(wrong, {}) is not None
    assert rule.validate(expected, {"iou": 0}) and rule.validate(expected, {"scale": "big"})
    assert rule.validate(expected, {"iou": 0.5, "scale": 1000}) is None


def test_box_scores() -> None:
    items = [item(n, [{"label": "c", "box": [0, 0, 0.5, 1]}], "boxes") for n in range(3)]
    exact, half = '[{"label": "c", "box": [0, 0, 0.5, 1]}]', '[{"label": "c", "box": [0, 0, 0.3, 1]}]'  # IoU 0.6
    found = box_scores(items, answers(exact, half, "no box"))
    assert found is not None and found["boxes"] == 3 and found["given"] == 2
    assert found["mean_iou"]["value"] == pytest.approx(1.6 / 3)
    assert found["at_0.50"] == pytest.approx({"precision": 1.0, "recall": 2 / 3, "f1": 0.8})
    assert found["at_0.75"]["f1"] == pytest.approx(0.4)
    assert box_scores([item(0, "x")], {}) is None


def test_explanations_are_found_and_judged() -> None:
    assert explanation('{"answer": "no", "evidence": ["red light", "no dsl"]}') == "red light no dsl"
    assert explanation("no signal, because the DSL light is red") == "the DSL light is red"
    assert explanation("no signal") == "" == explanation('{"answer": 1}')
    items = [
        item(n, "no signal", "regex", options={"pattern": "no signal.*"}, evidence=("light is red",)) for n in range(4)
    ]
    given = answers(
        "no signal because the light is red",
        "no signal because it is Tuesday",
        "power is off because the light is red!",
        "no signal",
    )
    found = explanation_scores(items, given)
    assert found is not None
    assert [found[k]["value"] for k in ("present", "correct", "right_for_the_right_reason")] == [0.75, 0.5, 0.25]
    assert explanation_scores([item(0, "x")], {}) is None


def test_evidence_and_labels_of_a_golden_set(tmp_path: Path) -> None:
    def made(folder: Path, *rows: dict[str, Any]) -> Path:
        folder.mkdir(exist_ok=True)
        return write_set(folder, *(ROW | {"id": str(n), "question": f"{n}?"} | row for n, row in enumerate(rows)))

    rows: list[dict[str, Any]] = [
        {"expected": "red", "labels": ["red", "Red", None]},
        {"expected": "blue", "labels": ["blue", "green", "blue"], "evidence": ["blue dot"]},
        {"expected": "blue"},
    ]
    golden = load_golden(made(tmp_path / "set", *rows))
    assert golden.items[1].evidence == ("blue dot",)
    agreement = summary(golden, check_golden(golden))["agreement"]
    assert agreement["items"] == 2 and agreement["observed"] == pytest.approx((2 + 2) / (2 + 6))
    for wrong in ({"evidence": "blue"}, {"evidence": ["..."]}, {"labels": "red"}, {"labels": [3]}):
        with pytest.raises(UsageError, match="must be a list"):
            load_golden(made(tmp_path / "wrong", {"expected": "x", **wrong}))
