"""Semantic recall: the same question in other words, by the real MiniLM; the words that count; the threshold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fovea
from models.support.errors import UsageError
from serving.recall.calibrate import PAIRS, judge, read_pairs, summary
from serving.recall.embed import HERE, Embedder, locate
from serving.recall.section import THRESHOLD
from serving.recall.semantic import Semantic
from serving.recall.words import meaning
from tests.serving.pairs import part
from tests.serving.pictures import scene
from tests.serving.test_recall import House, delta, sse

COLOR, SAME_COLOR = "What color is the shape?", "please tell me the colour of the shape"


def one_of(text: str, *parts: Any) -> list[Any]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def house(**section: Any) -> House:
    found = House(semantic={}, **section)
    assert found.layer.section.semantic is not None
    found.layer.semantic = Semantic(found.layer.section.semantic)  # as `start` does
    return found


# the words


def test_two_questions_never_have_the_same_words() -> None:
    pairs = [pair for pair in read_pairs(PAIRS) if not pair[0]]
    assert len(pairs) > 300
    for _, a, b in pairs:
        assert all(meaning(a, images) != meaning(b, images) for images in (0, 1, 2)), (a, b)


def test_nearly_every_paraphrase_has_the_same_words() -> None:
    same = [pair for pair in read_pairs(PAIRS) if pair[0]]
    assert sum(meaning(a, 1) == meaning(b, 1) for _, a, b in same) > 0.97 * len(same)


WORDS = [
    "is", "are", "the", "a", "not", "red", "left", "2", "cm", "Anna", "dog", "in", "picture", "what", "color", "of",
    "do",
]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS)))
def test_a_word_more_is_another_question(words: list[str]) -> None:
    """Numbers, units, negations, sides and names count wherever they stand."""
    text = " ".join(words)
    for extra in ("not", "7", "mm", "Berta", "left", "%"):
        for place in range(len(words) + 1):
            other = " ".join([*words[:place], extra, *words[place:]])
            assert meaning(other, 1) != meaning(text, 1) or other.replace(" ", "") == text.replace(" ", "")


@given(st.text(max_size=60), st.integers(0, 3))
def test_any_text_has_words(text: str, images: int) -> None:
    assert meaning(text, images) == meaning(text, images)


def test_in_the_picture_counts_where_there_are_several() -> None:
    one, two = "is there a dog?", "is there a dog in the picture?"
    assert meaning(one, 1) == meaning(two, 1) and meaning(one, 2) != meaning(two, 2)
    assert meaning("is it in the second picture?", 1) != meaning("is it in the picture?", 1)


# the layer


async def test_the_same_question_in_other_words_is_answered_from_memory(location: str) -> None:
    one = house(store=location)
    picture = part(scene())
    first = await one.ask(messages=one_of(COLOR, picture))
    second = await one.ask(messages=one_of(SAME_COLOR, picture))
    assert second.body == first.body and second.header(b"x-fovea-cache") == b"semantic"
    assert THRESHOLD <= float(second.header(b"x-fovea-similarity") or 0) <= 1 and second.header(b"age") == b"0"
    assert len(one.engine.asked) == 1
    other = house(store=location)  # another replica
    assert (await other.ask(messages=one_of(SAME_COLOR, picture))).header(b"x-fovea-cache") == b"semantic"
    await one.close()
    await other.close()


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, b"semantic"),
        ({"user": "b"}, b"semantic"),
        ({"max_tokens": 5}, b"miss"),
        ({"temperature": 0.5}, b"bypass"),
        ({"stream": True}, b"miss"),
        ({"tools": []}, b"miss"),
        ({"headers": ((b"x-fovea-cache", b"exact"),)}, b"miss"),
        ({"headers": ((b"cache-control", b"no-cache"),)}, b"miss"),
        ({"headers": ((b"cache-control", b"no-store"),)}, b"bypass"),
        ({"headers": ((b"idempotency-key", b"k"),)}, b"miss"),
        ({"path": "/v1/messages"}, b"miss"),
    ],
)
async def test_what_else_may_differ(change: dict[str, Any], state: bytes) -> None:
    one = house()
    picture = part(scene())
    await one.ask(messages=one_of(COLOR, picture))
    change = dict(change)
    answer = await one.ask(*change.pop("headers", ()), messages=one_of(SAME_COLOR, picture), **change)
    assert answer.header(b"x-fovea-cache") == state
    await one.close()


async def test_another_picture_turn_or_system_prompt_is_another_question() -> None:
    one = house()
    await one.ask(messages=one_of(COLOR, part(scene())))
    others: list[list[Any]] = [
        one_of(SAME_COLOR, part(scene(size=(40, 30)))),
        one_of(SAME_COLOR, part(scene()), part(scene())),
        one_of(SAME_COLOR),
        [{"role": "system", "content": "x"}, *one_of(SAME_COLOR, part(scene()))],
        [*one_of("hello", part(scene())), {"role": "assistant", "content": "hi"}, *one_of(SAME_COLOR)],
        [{"role": "system", "content": COLOR}],
    ]
    for messages in others:
        assert (await one.ask(messages=messages)).header(b"x-fovea-cache") == b"miss"
    again = one_of(SAME_COLOR, part(scene(), "BMP"))  # the same pixels in another file
    assert (await one.ask(messages=again)).header(b"x-fovea-cache") == b"semantic"
    await one.close()


async def test_sampled_answers_only_where_asked() -> None:
    one = house()
    sampled = (b"x-fovea-cache", b"sampled")
    assert (await one.ask(sampled, messages=one_of(COLOR), temperature=0.7)).header(b"x-fovea-cache") == b"miss"
    answer = await one.ask(sampled, messages=one_of(SAME_COLOR), temperature=0.7)
    assert answer.header(b"x-fovea-cache") == b"semantic"
    assert (await one.ask(messages=one_of(SAME_COLOR), temperature=0.7)).header(b"x-fovea-cache") == b"bypass"
    await one.close()


async def test_streams_purges_and_ages() -> None:
    one = house()
    one.engine.answer = sse(delta("red"), delta(reason="stop"))
    first = await one.ask(messages=one_of(COLOR), stream=True)
    second = await one.ask(messages=one_of(SAME_COLOR), stream=True)
    assert second.body == first.body and second.header(b"x-fovea-cache") == b"semantic"
    old = await one.ask((b"cache-control", b"max-age=0"), messages=one_of(SAME_COLOR), stream=True)
    assert old.header(b"x-fovea-cache") in (b"miss", b"semantic")  # of the same second
    await one.layer.answers.purge("all")
    assert (await one.ask(messages=one_of(SAME_COLOR), stream=True)).header(b"x-fovea-cache") == b"miss"
    one.engine.answer = None
    one.engine.status = 500  # what is not kept is not found in other words either
    await one.ask(messages=one_of("is there a dog?"))
    one.engine.status = 200
    assert (await one.ask(messages=one_of("do you see a dog?"))).header(b"x-fovea-cache") == b"miss"
    await one.close()


async def test_the_same_words_but_far_embeddings_are_two_questions() -> None:
    one = house()
    assert one.layer.semantic is not None
    one.layer.semantic.section.threshold = 0.999
    await one.ask(messages=one_of(COLOR))
    assert (await one.ask(messages=one_of(SAME_COLOR))).header(b"x-fovea-cache") == b"miss"
    await one.close()


# the model and its threshold


def test_the_threshold_is_the_calibrated_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert fovea.main(["cache", "calibrate", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threshold"] == pytest.approx(THRESHOLD, abs=0.03)  # int8 kernels differ a little between processors
    assert found["of_two"]["wrong"] == 0 and found["of_one"]["recalled"] > 0.9 * found["of_one"]["pairs"]
    assert found["of_two"]["cosine_alone_at_this_threshold"] > 100  # what the words are for


def test_pairs_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [(True, "is there a cat?", "Do you see a cat?"), (False, "is there a cat?", "is there a dog?")]
    path.write_text("\n".join(json.dumps({"same": same, "a": a, "b": b}) for same, a, b in rows))
    assert fovea.main(["cache", "calibrate", str(path)]) == 0
    assert "pairs of two: 0 of 1 taken for one" in capsys.readouterr().out


def test_a_wrong_pair_raises_the_threshold_or_is_told() -> None:
    class Near:
        def cosine(self, a: str, b: str) -> float:
            return 0.9 if "near" in a else 0.95

    pairs = [(True, "is there a cat?", "Do you see a cat?"), (False, "near is it x?", "near is it x ?")]
    found = summary(judge(pairs, Near()))  # type: ignore[arg-type]
    assert found["threshold"] == 0.95 and found["of_two"] == {
        "pairs": 2 - 1, "wrong": 0, "words_alone": 1, "cosine_alone_at_this_threshold": 0,
    }  # fmt: skip
    pairs[1] = (False, "is it x?", "is it x ?")
    assert len(summary(judge(pairs, Near()))["wrong"]) == 0  # type: ignore[arg-type]


def test_a_model_is_a_folder_too(tmp_path: Path) -> None:
    file, tokenizer = locate("minilm")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").symlink_to(file)
    (tmp_path / "tokenizer.json").symlink_to(tokenizer)
    one, other = Embedder("minilm"), Embedder(str(tmp_path))
    assert one.cosine("a red circle", "a round red shape") == other.cosine("a red circle", "a round red shape")
    assert one.embed("x").shape == (384,) and one.cosine("a cat", "a cat") == pytest.approx(1)
    assert one.cosine("a small dog sleeps", "a puppy is asleep") > 0.5 > one.cosine("a small dog sleeps", "tax law")


@pytest.mark.parametrize("what", ["absent", "empty", "damaged"])
def test_what_is_no_model_is_named(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "model"
    if what != "absent":
        folder.mkdir()
    if what == "damaged":
        (folder / "model.onnx").write_bytes(b"x" * 100)
        (folder / "tokenizer.json").write_bytes((HERE / "tokenizer.json").read_bytes())
    with pytest.raises(UsageError) as caught:
        Embedder(str(folder))
    assert "recall.semantic.model" in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"same": true}', ":1"),
        ("x", ":1"),
        ('{"same": 1, "a": "b", "b": "c"}', "true or false"),
        ('{"same": true, "a": "b", "b": "c"}', "both kinds"),
        ("\udcff", "cannot read"),
    ],
)
def test_pairs_that_are_none(content: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(content, "utf-8", errors="surrogateescape")
    with pytest.raises(UsageError, match=says):
        read_pairs(path)
