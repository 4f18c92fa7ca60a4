"""The proof's data: the student's rows hold no label, its questions come from the teacher, held-out truth is apart."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from distill.proof import data, lights, run
from distill.proof.run import HERE, LARGE, SMALL
from distill.recipe import load_recipe
from models.embedded import shapes
from models.golden import load_golden
from models.registry import open_registry
from models.support.errors import CheckFailed
from tests.models.openai_simulator import OpenAISimulator, Reply


def lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_lights_show_what_the_answer_says() -> None:
    """Somewhere in each quarter of the housing is a spot of the light's colour, when nothing blurs or dims it."""
    seen = {field: set() for field in lights.FIELDS}  # type: dict[str, set[str]]
    for i in range(60):
        image, shown = lights.draw(np.random.default_rng([9, i]))
        assert image.size == (128, 128) and list(shown) == list(lights.FIELDS)
        assert json.loads(lights.text_of(shown)) == shown
        for field, state in shown.items():
            seen[field].add(state)
        pixels = np.asarray(image, dtype=int)
        for number, field in enumerate(lights.FIELDS):
            part = pixels[:, 10 + 26 * number : 38 + 28 * number]
            # a lit light is the most saturated thing there; noise and walls are not
            vivid = (part.max(axis=2) - part.min(axis=2)).max()
            if shown[field] != "off":
                assert vivid > 80
    assert all(states == set(lights.STATES) for states in seen.values())


def test_the_students_rows_hold_no_label(tmp_path: Path) -> None:
    rows = data.naming_rows(tmp_path / "a", pictures=40, more=0, captions=False, seed=3)
    assert len(rows) == 80 and {key for row in rows for key in row} == {
        "id", "image", "question", "category", "split", "synthetic",
    }  # fmt: skip
    assert not any(word in row["question"] for row in rows for word in (*shapes.COLORS, *shapes.SHAPES))
    assert {row["split"] for row in rows} == {"train", "validation"} and not any(row["synthetic"] for row in rows)
    # whatever the teacher says, right or wrong, is what the next questions are made of
    said = {f"color-{row['id'].partition('-')[2]}": "teal" for row in rows}
    said |= {f"shape-{row['id'].partition('-')[2]}": "circle" for row in rows}
    said["color-3"] = "pink"  # no colour of the task: nothing more is asked about this picture
    more = data.yes_no_rows(rows, said, per_picture=5, seed=3)
    assert len(more) == 39 * 5 and not any(row["id"].endswith("-3") for row in more)
    yes_no = [row["question"] for row in more if not row["question"].startswith("what")]
    named = [q for q in yes_no if "teal" in q or "circle" in q]
    assert 0.35 < len(named) / len(yes_no) < 0.65


def test_captions_and_rendered_pictures(tmp_path: Path) -> None:
    rows = data.naming_rows(tmp_path, pictures=40, more=30, captions=True, seed=3)
    drawn = [row for row in rows if row["synthetic"]]
    assert len([row for row in rows if row["id"].startswith("see-")]) == 70 and len(rows) == 70 + 2 * 7
    assert {row["split"] for row in drawn} == {"train"} and all((tmp_path / row["image"]).is_file() for row in rows)
    said = {"see-0": "a red circle", "see-1": "a red red", "see-2": "a teal circle", "color-2": "blue"}
    assert data.scenes(said) == {0: shapes.Scene("circle", "red", (0, 0, 0, 0))}
    assert len(data.yes_no_rows(rows, said, per_picture=2, seed=3)) == 2


def test_nobody_trains_on_what_is_measured(tmp_path: Path) -> None:
    data.light_rows(tmp_path / "teacher", 30, 1, truth=True)
    data.light_rows(tmp_path / "lit", 30, 2)
    data.naming_rows(tmp_path / "student", pictures=30, more=30, captions=True, seed=3)
    golden = load_golden(data.golden_lights(tmp_path / "lights", 30))
    held = {item.image.digest for item in (*golden.items, *load_golden("easy-vqa").items)}

    def digests(folder: Path) -> set[str]:
        return {hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.png")}

    teacher, lit, student = (digests(tmp_path / name) for name in ("teacher", "lit", "student"))
    assert len(teacher) == len(lit) == 30 and len(student) == 60
    assert not held & (teacher | lit | student) and not teacher & lit
    item = golden.items[0]
    assert item.check(json.dumps(item.expected)) and not item.check(json.dumps({**item.expected, "wlan": "blue"}))
    truth = {row["id"]: row["answer"] for row in lines(tmp_path / "teacher/truth.jsonl")}
    assert truth.keys() == {row["id"] for row in lines(tmp_path / "teacher/rows.jsonl")}
    assert json.loads(truth["m0"]).keys() == set(lights.FIELDS)
    assert not (tmp_path / "lit/truth.jsonl").exists()


@pytest.mark.parametrize("name", ["seed.yaml", "lights.yaml", "shapes.yaml", "short.yaml"])
def test_the_recipes_are_recipes(name: str) -> None:
    recipe = load_recipe(HERE / name)
    assert recipe.train is not None and recipe.student is not None
    if name != "seed.yaml":
        assert not recipe.data.human and recipe.teachers[0].checkpoint == "teacher" and recipe.export is not None
        assert "truth" not in yaml.safe_dump(yaml.safe_load((HERE / name).read_text()))
    assert (recipe.train.base == "fresh") == (name == "shapes.yaml")


def test_the_teacher_is_more_than_five_times_as_large() -> None:
    assert LARGE.layers * LARGE.width * LARGE.mlp > 5 * 5 * SMALL.layers * SMALL.width * SMALL.mlp


def test_an_interrupted_proof_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "shapes", stopped)
    assert run.main(["--task", "shapes", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().out.splitlines() == ["== shapes", "interrupted: the same command goes on from here"]


def test_pictures_are_pictures(tmp_path: Path) -> None:
    (path, _), *_ = data.photographs(tmp_path / "p", 1, 4)
    with Image.open(tmp_path / path) as image:
        assert image.mode == "RGB"


def test_the_whole_path_with_simulated_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is served here is a simulator that knows easy-VQA; rows, filters, training, proof and registry are real."""
    import easy_vqa

    truth: dict[str, dict[str, str]] = {}
    for questions, paths in (
        (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    ):
        for question, said, number in zip(*questions, strict=True):
            truth.setdefault(str(paths[number]), {})[question] = said
    scenes: dict[str, shapes.Scene] = {}

    def answer(question: str, image: bytes) -> Reply:
        scene = scenes.get(hashlib.sha256(image).hexdigest())
        return ("no", 0.5) if scene is None else (shapes.answer(question, scene), 0.9)

    def know(paths: list[str]) -> None:
        for path in paths:
            answers = set(truth[path].values())
            color, shape = answers & set(shapes.COLORS), answers & set(shapes.SHAPES)
            if color and shape:
                digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
                scenes[digest] = shapes.Scene(shape.pop(), color.pop(), (0, 0, 0, 0))

    know([str(p) for _, p in sorted(easy_vqa.get_train_image_paths().items())[:20]])
    know([str(p) for p in easy_vqa.get_test_image_paths().values()])

    @contextmanager
    def served(source: Path | str, name: str, **_: object) -> Iterator[str]:
        assert (Path(source) / "config.json").is_file()
        with OpenAISimulator(answer, model=name) as sim:
            yield sim.url

    for module in ("distill.collect.hosted", "distill.evaluate.arms"):
        monkeypatch.setattr(f"{module}.served_folder", served)
    same = {"items": 2, "steps": 4, "worst": 0.01, "mean": 0.001, "greedy": 1.0, "by_item": []}
    monkeypatch.setattr("distill.evaluate.ask.parity", lambda *_: same)  # the real one: tests/e2e
    recipe = yaml.safe_load((HERE / "short.yaml").read_text())
    recipe["train"] |= {"stages": [{"steps": 4}], "batch": 4, "evaluate_every": 2}
    recipe["evaluate"] |= {"limit": 60, "robust_items": 10}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(run, "HERE", tmp_path)
    scale = replace(run.SHORT, pictures=20)
    student = tmp_path / "out"
    run.shapes(student, scale, "short.yaml", run.EMBEDDED)
    report = json.loads((student / "out/report.json").read_text())
    # a question that was drawn twice is bought once
    assert 50 < report["collect"]["answers"] <= len(lines(student / "rows.jsonl"))
    arms = report["evaluate"]["arms"]
    # the base is what training began with: pruned, and not the embedded model
    assert arms["base"]["parameters"] == report["train"]["parameters"] < arms["teacher"]["parameters"]
    assert arms["teacher"]["accuracy"]["value"] > 0.7
    assert report["export"]["version"] == "demo-student@1" and report["export"]["refused_for"][0] == (
        "easy-vqa: 60 items, 100 are needed"
    )
    registry = open_registry(str(student / "registry"))
    version = registry.find("demo-student@1")
    assert version.data["kept"] and version.recipe is not None and version.recipe["train"]["base"] == "embedded"
    with pytest.raises(CheckFailed, match="100 are needed"):
        registry.promote("demo-student@1", "canary", by="test")
    # again: nothing is asked, trained or registered twice
    run.shapes(student, scale, "short.yaml", run.EMBEDDED)
    assert len(registry.versions("demo-student")) == 1
