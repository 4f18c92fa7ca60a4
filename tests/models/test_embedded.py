"""The embedded models: data, tokenizers, the training forward, and the checkpoints that are committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.embedded import card, easyvqa, shapes

FOLDER = Path(card.__file__).parent
FAMILIES = ("qwen2_5_vl", "paligemma")


@pytest.fixture(scope="module")
def published() -> list[easyvqa.TrainingPicture]:
    """The published training split."""
    return easyvqa.training_items()


def test_our_answers_are_the_published_ones(published: list[easyvqa.TrainingPicture]) -> None:
    asked = 0
    for item in published:
        answers = {answer for _, answer in item.questions}
        shape, color = answers & set(shapes.SHAPES), answers & set(shapes.COLORS)
        if not shape or not color:
            continue
        scene = shapes.Scene(shape.pop(), color.pop(), (0, 0, 1, 1))
        for question, truth in item.questions:
            assert shapes.answer(question, scene) == truth, question
            asked += 1
    assert asked > 20_000


def test_only_the_training_split_is_read(published: list[easyvqa.TrainingPicture]) -> None:
    import easy_vqa

    assert len(published) == 4000
    test = {Path(path).read_bytes() for path in easy_vqa.get_test_image_paths().values()}
    train = {Path(path).read_bytes() for path in easy_vqa.get_train_image_paths().values()}
    assert not test & train
    source = "".join(path.read_text() for path in FOLDER.glob("*.py"))
    assert "get_test" not in source


@given(st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from([(64, 64), (80, 48), (32, 96)]))
def test_rendered_pictures_show_what_they_say(seed: int, varied: bool, canvas: tuple[int, int]) -> None:
    picture, scene = shapes.render(np.random.default_rng(seed), varied, canvas)
    assert picture.size == canvas and picture.mode == "RGB"
    pixels = np.asarray(picture).astype(int)
    if not varied:
        assert from_named(pixels, scene) <= 12
    background = np.array([pixels[0, 0], pixels[0, -1], pixels[-1, 0], pixels[-1, -1]])
    assert np.median(background, axis=0).min() >= 150


def from_named(pixels: np.ndarray, scene: shapes.Scene) -> int:
    """Return how far the middle of a scene's box is from the named colour, in steps of 255, the worst channel."""
    x0, y0, x1, y1 = (round(v * side) for v, side in zip(scene.box, pixels.shape[1::-1] * 2, strict=True))
    return int(abs(pixels[(y0 + y1) // 2, (x0 + x1) // 2] - np.array(shapes.COLORS[scene.color])).max())


def test_damage_leaves_the_colour_but_for_a_rare_picture() -> None:
    """JPEG of a shape of a few pixels, turned, mixes its colour with the ground: four pictures in 12,000."""
    pictures = [shapes.render(np.random.default_rng(seed), varied=True) for seed in range(2000)]
    far = np.array([from_named(np.asarray(picture).astype(int), scene) for picture, scene in pictures])
    assert (far <= 60).mean() >= 0.998 and np.median(far) <= 20


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_drawn_questions_have_true_answers(seed: int, dense: float) -> None:
    rng = np.random.default_rng(seed)
    _, scene = shapes.render(rng)
    question, truth = shapes.draw_question(rng, scene, dense)
    if question in shapes.ASK_JSON:
        assert json.loads(truth) == {"shape": scene.shape, "color": scene.color}
    elif question in shapes.ASK_BOTH:
        assert truth == f"a {scene.color} {scene.shape}"
    else:
        assert shapes.answer(question, scene) == truth
    assert shapes.rephrase(rng, question)


def test_rendering_is_seeded() -> None:
    one, two = (shapes.render(np.random.default_rng(7), varied=True) for _ in range(2))
    assert one[0].tobytes() == two[0].tobytes() and one[1] == two[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_training_rows_give_the_values_of_separate_requests(family: str) -> None:
    """Several questions in one row, against transformers' own processor and forward, one question at a time."""
    import torch

    from models.embedded.architectures import ARCHITECTURES
    from models.embedded.train import forward

    torch.manual_seed(0)
    arch = ARCHITECTURES[family]()
    model = arch.make_model().eval()
    picture, _ = shapes.render(np.random.default_rng(1))
    asked = [("what color is the shape?", "red"), ("is there not a circle?", "yes")]
    processor = arch.make_processor()
    with torch.no_grad():
        hidden, targets = forward(arch, model, np.asarray(picture)[None], [asked])
        first = targets[0] != -100
        first[1:] &= ~first[:-1]
        ours = arch.logits(model, hidden[0, first])
        for row, (question, _) in zip(ours, asked, strict=True):
            theirs = model(**one_request(family, processor, picture, question)).logits[0, -1]
            assert torch.allclose(row, theirs, atol=1e-3), (row - theirs).abs().max()


def one_request(family: str, processor: Any, picture: Image.Image, question: str) -> dict[str, Any]:
    """Return transformers' inputs for one question."""
    if family == "qwen2_5_vl":
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return dict(processor(images=[picture], text=[text], return_tensors="pt"))
    inputs = dict(processor(images=[picture], text=f"<image>answer en {question}", return_tensors="pt"))
    return {key: value for key, value in inputs.items() if key in ("input_ids", "attention_mask", "pixel_values")}


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """The committed tokenizers, loaded as a user would."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER / request.param)


@given(st.text(max_size=40))
def test_any_text_survives_the_tokenizers(tokenizer: Any, text: str) -> None:
    import unicodedata

    text = unicodedata.normalize("NFC", text.replace("\u2581", " "))
    if any(mark in text for mark in ("<", "▁")):
        return  # marks of the tokenizers' own
    ids = tokenizer.encode(text, add_special_tokens=False)
    for skip in (False, True):
        assert tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False) == text


def test_paligemmas_template_hides_the_task_prefix() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "paligemma")

    def prompt(text: str) -> str:
        content: Any = [{"type": "image"}, {"type": "text", "text": text}]
        return str(tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False))

    assert prompt("what color is the shape?") == "answer en what color is the shape?\n"
    assert prompt("detect circle") == "detect circle\n" and prompt("caption en") == "caption en\n"


@pytest.mark.parametrize(("family", "least"), [("qwen2_5_vl", 0.97), ("paligemma", 0.93)])
def test_the_committed_checkpoints_are_what_their_manifests_say(family: str, least: float) -> None:
    folder = FOLDER / family
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["sha256"] == card.hashes(folder)
    assert (folder / "README.md").read_text() == card.card(manifest)
    evaluation = manifest["evaluation"]
    assert evaluation["accuracy"]["n"] == 9673 and evaluation["accuracy"]["value"] >= least
    assert evaluation["calibration"]["ece"] is not None
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [manifest_class(family)]


def manifest_class(family: str) -> str:
    """Return the transformers class of a family."""
    return {"qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration", "paligemma": "PaliGemmaForConditionalGeneration"}[
        family
    ]


def test_the_weights_are_small() -> None:
    total = sum(path.stat().st_size for family in FAMILIES for path in (FOLDER / family).iterdir())
    assert total <= 12_000_000


def test_a_partial_evaluation_is_not_recorded(tmp_path: Path) -> None:
    from models.support.errors import UsageError

    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="whole easy-VQA"):
        card.record(tmp_path, {"golden": {"name": "easy-vqa"}, "accuracy": {"n": 100, "value": 1.0}})


def test_an_interrupted_training_continues_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after a checkpoint and run again, it ends with the very weights of an uninterrupted run."""
    from safetensors.torch import load_file

    from models.embedded import batches, train
    from models.embedded.recipe import Recipe

    tiny = Recipe(
        "paligemma",
        look_steps=4,
        answer_steps=4,
        warm_steps=1,
        hold_steps=2,
        dense_steps=2,
        answer_stop=4,
        verify_steps=2,
        verify_hold=1,
        plain_steps=1,
        pictures=2,
        questions=2,
    )
    monkeypatch.setattr(batches, "HELD_OUT", 2)
    train.train(tiny, tmp_path / "whole", threads=1, report_every=1)
    real = train._save_state
    for stop in (1, 3, 5):  # in the first, the second and the third stage
        saves = 0

        def killed(*args: Any, stop: int = stop) -> None:
            nonlocal saves
            real(*args)
            saves += 1
            if saves == stop:
                raise KeyboardInterrupt

        cut = tmp_path / f"cut{stop}"
        with monkeypatch.context() as patch:
            patch.setattr(train, "SAVE_EVERY", 2)
            patch.setattr(train, "_save_state", killed)
            with pytest.raises(KeyboardInterrupt):
                train.train(tiny, cut, threads=1, report_every=1)
        train.train(tiny, cut, threads=1, report_every=1)
        whole, again = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", cut.name))
        assert all(bool((whole[key] == again[key]).all()) for key in whole), stop
