"""Mean average precision: COCO's own figures, ties, and what must hold for any boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.evaluation.answers import Answer
from models.evaluation.detection import Picture, mean_average_precision
from models.evaluation.evidence import box_scores
from models.golden import GoldenItem, ImageRef, parse_boxes
from models.golden.boxes import Box, Labelled


def crowd(seed: int = 11, pictures: int = 40) -> list[Picture]:
    """Return boxes of three labels; most are found, somewhat off, and some are nothing."""
    rng = np.random.default_rng(seed)

    def box() -> list[float]:
        x, y = rng.uniform(0, 0.6, 2)
        w, h = rng.uniform(0.1, 0.4, 2)
        return [x, y, x + w, y + h]

    found = []
    for _ in range(pictures):
        wanted: list[Labelled] = []
        given: list[Labelled] = []
        for label in "abc":
            for _ in range(int(rng.integers(0, 4))):
                b = box()
                wanted.append(Labelled(label, tuple(b)))  # type: ignore[arg-type]
                if rng.random() < 0.8:
                    near = np.array(b) + rng.normal(0, 0.03, 4)
                    given.append(Labelled(label, tuple(near.tolist()), float(rng.random())))
            if rng.random() < 0.4:
                b = box()
                given.append(Labelled(label, tuple(b), float(rng.random())))  # type: ignore[arg-type]
        found.append(Picture(wanted, given))
    return found


def test_the_figures_are_cocos() -> None:
    """The same boxes through `pycocotools` 2.0 (all areas, no limit of boxes that matters) gave these."""
    found = mean_average_precision(crowd())
    assert found is not None and found["map"]["n"] == 40 and found["scores"] == "of each box"
    assert found["map"]["value"] == pytest.approx(0.2071641797485856, rel=1e-9)
    assert found["map_50"]["value"] == pytest.approx(0.5474624818468278, rel=1e-9)
    assert found["map_75"]["value"] == pytest.approx(0.06557335832778906, rel=1e-9)
    by_label = {"a": 0.23070664569101176, "b": 0.20024539268889657, "c": 0.19054050086584842}
    assert found["by_label"] == pytest.approx(by_label, rel=1e-9)
    assert found["map"]["low"] < found["map"]["value"] < found["map"]["high"]


HALF: Box = (0.0, 0.0, 0.5, 1.0)
AWAY: Box = (0.6, 0.6, 0.9, 0.9)


def ap50(*pictures: Picture) -> float:
    found = mean_average_precision(pictures)
    assert found is not None
    return float(found["map_50"]["value"])


def test_by_hand() -> None:
    wanted = [Labelled("a", HALF)]
    right, wrong = Labelled("a", HALF, 0.9), Labelled("a", AWAY, 0.95)
    assert ap50(Picture(wanted, [right])) == 1
    assert ap50(Picture(wanted, [])) == 0 == ap50(Picture(wanted, [wrong]))
    # the wrong one ranks first: precision 1/2 at recall 1; ranked last it does no harm
    assert ap50(Picture(wanted, [right, wrong])) == 0.5
    assert ap50(Picture(wanted, [right, Labelled("a", AWAY, 0.1)])) == 1
    # found twice: the second is wrong, and one of two pictures is found up to recall 0.5 (51 of 101 points)
    assert ap50(Picture(wanted, [right, right]), Picture(wanted, [])) == pytest.approx(51 / 101 / 2)
    # a label that nobody expects is in no figure; without expected boxes there is none
    assert ap50(Picture(wanted, [right, Labelled("b", AWAY, 1.0)])) == 1
    assert mean_average_precision([Picture([], [wrong])]) is None


def test_boxes_without_a_score_have_that_of_their_answer() -> None:
    wanted = [Labelled("a", HALF)]
    sure = Picture(wanted, [Labelled("a", HALF)], confidence=0.9)
    unsure = Picture(wanted, [Labelled("a", AWAY)], confidence=0.2)
    assert ap50(sure, unsure) == pytest.approx(51 / 101)
    # where nobody says anything all boxes make one step: precision 1/2 up to recall 1/2
    bare = [Picture(p.wanted, p.given) for p in (sure, unsure)]
    assert ap50(*bare) == pytest.approx(51 / 101 / 2) == ap50(*reversed(bare))


@given(
    st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 6)), max_size=3),
            st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 6), st.integers(0, 3)), max_size=4),
        ),
        min_size=1,
        max_size=5,
    ),
    st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_any_boxes(rows: list[tuple[list[tuple[str, int]], list[tuple[str, int, int]]]], chance: Any) -> None:
    """Between 0 and 1, falling with the IoU asked for, and independent of the order of pictures."""

    def box(at: int) -> Box:
        return (at / 10, 0.0, at / 10 + 0.3, 1.0)

    pictures = [
        Picture([Labelled(n, box(at)) for n, at in wanted], [Labelled(n, box(at), s / 3) for n, at, s in given])
        for wanted, given in rows
    ]
    found = mean_average_precision(pictures, resamples=5)
    if found is None:
        assert not any(picture.wanted for picture in pictures)
        return
    assert 0 <= found["map_75"]["value"] <= found["map_50"]["value"] <= 1
    assert found["map"]["low"] <= found["map"]["high"]
    chance.shuffle(pictures)
    again = mean_average_precision(pictures, resamples=2)
    assert again is not None and again["map_50"]["value"] == pytest.approx(found["map_50"]["value"])


def test_an_evaluation_of_boxes_has_it() -> None:
    image = ImageRef(Path("x.png"), "image/png", 8, 8)
    items = [GoldenItem(f"i{n}", image, "?", "all", [{"label": "c", "box": list(HALF)}], rule="boxes") for n in (0, 1)]
    given = json.dumps([{"label": "c", "box": HALF, "score": 0.8}, {"label": "c", "box": AWAY, "confidence": 0.3}])
    assert [one.score for one in parse_boxes(given)] == [0.8, 0.3]
    assert parse_boxes('[{"label": "c", "box": [0, 0, 1, 1], "score": "sure"}]')[0].score is None
    found = box_scores(items, {"i0": Answer("i0", given, 1.0, 0.9), "i1": Answer("i1", "no", 1.0, 0.9)})
    assert found is not None and found["map_50"]["value"] == pytest.approx(51 / 101)
    assert found["by_label"] == {"c": pytest.approx(51 / 101)} and found["at_0.50"]["precision"] == 0.5
