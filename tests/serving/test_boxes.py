"""PaliGemma behind chat: task prefixes, and `<loc>` tokens as boxes in whole answers and in streams."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.boxes import boxes_in
from serving.layers import build_layers
from serving.stack import EMBEDDED, Stack
from serving.templates import HERE, template_for
from tests.serving.asgi import Answer, call
from tests.serving.pictures import encode, scene
from tests.serving.test_recall import about, delta, sse

CAT = "<loc0256><loc0128><loc0768><loc0512> cat"


def test_a_box_is_of_the_picture() -> None:
    (box,) = boxes_in(CAT, (400, 200))
    assert box == {"label": "cat", "box": [0.125, 0.25, 0.5, 0.75], "pixels": [50.0, 50.0, 200.0, 150.0]}
    assert "pixels" not in boxes_in(CAT, None)[0]


def test_several_and_masks() -> None:
    mask = "".join(f"<seg{code:03d}>" for code in range(16))
    one, two = boxes_in(f"{CAT} ; <loc0000><loc0000><loc1023><loc1023>{mask} a dog", (10, 10))
    assert (one["label"], two["label"], two["segments"]) == ("cat", "a dog", list(range(16)))
    assert "segments" not in one


@pytest.mark.parametrize("text", ["", "red", "<loc0001>", "<loc0001><loc0002><loc0003>", "<loc1><loc2><loc3><loc4> x"])
def test_what_is_no_box(text: str) -> None:
    assert boxes_in(text, (1, 1)) == []


places = st.tuples(*[st.integers(0, 1023)] * 4)
labels = st.text(st.characters(exclude_characters="<;", exclude_categories=["Cs"]), max_size=20)


@given(st.lists(st.tuples(places, labels), max_size=5), st.tuples(st.integers(1, 9000), st.integers(1, 9000)))
def test_what_is_written_is_read(written: list[tuple[tuple[int, ...], str]], size: tuple[int, int]) -> None:
    text = " ; ".join("".join(f"<loc{n:04d}>" for n in spots) + f" {label}" for spots, label in written)
    found = boxes_in(text, size)
    assert [(one["label"], [n * 1024 for n in one["box"]]) for one in found] == [
        (label.strip(), [spots[1], spots[0], spots[3], spots[2]]) for spots, label in written
    ]
    assert all(0 <= n <= max(size) for one in found for n in one["pixels"])


@given(st.text(st.sampled_from("<>locseg0123;: a"), max_size=80))
def test_no_answer_breaks_it(text: str) -> None:
    assert isinstance(boxes_in(text, None), list)


async def ask(answer: Any, **more: Any) -> Answer:
    """Ask a stand-in for the engine that answers this."""

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        stream = isinstance(answer, list)
        kind = b"text/event-stream" if stream else b"application/json"
        body = b"" if stream else json.dumps(answer).encode()
        headers = [(b"content-type", kind), *([] if stream else [(b"content-length", str(len(body)).encode())])]
        await send({"type": "http.response.start", "status": more.get("status", 200), "headers": headers})
        for piece in answer if stream else ():
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": body})

    stack = Stack.model_validate({"models": [{"name": "m", "source": "x", "boxes": True}], "metrics": False})
    return await call(build_layers(engine, stack, stack.models[0]), None, {"messages": about(encode(scene((64, 32))))})


async def test_whole_answers() -> None:
    usage = {"prompt_tokens": 5}
    answer = await ask({"choices": [{"message": {"content": CAT}}, {"message": {"content": "red"}}], "usage": usage})
    first, second = json.loads(answer.body)["choices"]
    assert first["message"]["content"] == CAT and first["message"]["boxes"][0]["pixels"] == [8.0, 8.0, 32.0, 24.0]
    assert "boxes" not in second["message"] and json.loads(answer.body)["usage"] == usage
    assert answer.header(b"content-length") == str(len(answer.body)).encode()


async def test_errors_pass_as_they_are() -> None:
    answer = await ask({"error": {"message": CAT}}, status=400)
    assert answer.status == 400 and json.loads(answer.body) == {"error": {"message": CAT}}


async def test_streams() -> None:
    pieces = sse(delta("<loc0256><loc0128>"), delta("<loc0768><loc0512> c"), delta("at"), delta("", "stop"))
    answer = await ask(pieces)
    assert answer.chunks[:3] == pieces[:3] and answer.chunks[4] == b"data: [DONE]\n\n"
    last = json.loads(answer.chunks[3][6:])["choices"][0]
    assert last["finish_reason"] == "stop" and last["delta"]["boxes"][0]["label"] == "cat"
    plain = sse(delta("red"), delta("", "stop"))
    assert (await ask(plain)).body == b"".join(plain)


# task prefixes


@pytest.mark.parametrize("file", [HERE / "paligemma.jinja", EMBEDDED / "paligemma" / "chat_template.jinja"])
@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("what color is it?", "answer en what color is it?\n"),
        ("caption en", "caption en\n"),
        ("describe de", "describe de\n"),
        ("ocr", "ocr\n"),
        ("detect cat ; dog", "detect cat ; dog\n"),
        ("segment cat", "segment cat\n"),
        ("answer de wie viele?", "answer de wie viele?\n"),
        (" detective? ", "answer en detective?\n"),
        ("", "answer en \n"),
    ],
)
def test_a_message_becomes_a_task(file: Path, text: str, prompt: str) -> None:
    template = jinja2.Environment().from_string(file.read_text())
    parts = [{"type": "image"}, {"type": "text", "text": text}]
    for content in (text, parts):
        messages = [{"role": "system", "content": "x"}, {"role": "user", "content": content}]
        assert template.render(messages=messages) == prompt
    before = [{"role": "user", "content": "caption en"}, {"role": "assistant", "content": "a cat"}]
    assert template.render(messages=[*before, {"role": "user", "content": text}]) == prompt


def test_only_a_checkpoint_without_a_template_gets_ours(tmp_path: Path) -> None:
    assert template_for(str(EMBEDDED / "paligemma")) is None and template_for("google/paligemma-3b") is None
    (tmp_path / "config.json").write_text('{"model_type": "paligemma"}')
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert template_for(str(tmp_path)) == str(HERE / "paligemma.jinja")
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    assert template_for(str(tmp_path)) is None
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    assert template_for(str(tmp_path)) is None
