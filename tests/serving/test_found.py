"""Where the images of a request are found: every place of every endpoint, and whatever JSON comes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serving.chat import _STAND_IN, _place_pictures, _replace_urls
from serving.errors import ApiError
from serving.exchange import Exchange
from serving.layers.screen import find_images, place_of
from serving.media import decode, open_header
from serving.stack import Media
from tests.serving.pictures import encode
from tests.serving.test_screen import EVIL, PNG, TEXT, URI, image, user

OTHER_MEDIA = ("video_url", "audio_url", "input_audio", "image_embeds", "audio_embeds", "video_embeds", "prompt_embeds")


def where(body: dict[str, Any]) -> list[tuple[str, str]]:
    return [(item.param, item.url) for item in find_images(body)]


# chat completions


def test_chat_images_in_order_with_their_places() -> None:
    body = {"messages": [user(image("a"), TEXT, image("b")), {"role": "assistant", "content": "no"}, user(image("c"))]}
    found = find_images(body)
    assert [item.url for item in found] == ["a", "b", "c"]
    assert [item.param for item in found] == [
        "messages[0].content[0].image_url.url",
        "messages[0].content[2].image_url.url",
        "messages[2].content[0].image_url.url",
    ]
    assert [item.place for item in found] == [(0, 0), (0, 2), (2, 0)]


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "image_url", "image_url": {"url": "u"}}, ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "u"}, "uuid": "x"}, ".image_url.url"),
        ({"type": "image_url", "image_url": "u"}, ".image_url"),
        ({"image_url": "u"}, ".image_url"),  # vLLM guesses the type
        ({"image_url": {"url": "u"}}, ".image_url.url"),
        ({"type": None, "image_url": "u"}, ".image_url"),
        ({"image_url": "u", "uuid": "x"}, ".image_url"),
        ({"type": "input_image", "image_url": "u"}, ".image_url"),
        ({"type": "input_image", "image_url": {"url": "u"}}, ".image_url.url"),
    ],
)
def test_every_spelling_of_a_chat_image(part: dict[str, Any], param: str) -> None:
    assert where({"messages": [user(TEXT, part)]}) == [(f"messages[0].content[1]{param}", "u")]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url"},
        {"type": "image_url", "image_url": None, "uuid": "x"},  # a picture of somebody's earlier request
        {"image_url": None, "uuid": "x"},
        {"type": "image_url", "image_url": {}},
        {"type": "image_url", "image_url": {"url": None}},
        {"type": "image_url", "image_url": {"url": {"url": "u"}}},
        {"type": "image_url", "image_url": ["u"]},
        {"type": "image_url", "image_url": 5},
        {"type": "input_image", "file_id": "f"},
        {"type": "text", "text": "x", "image_url": "u"},
        {"type": "text", "text": "x", "image_url": None, "uuid": "x"},  # with a uuid vLLM goes by the key
        {"type": 5, "image_url": "u"},
        {"type": ["image_url"], "image_url": "u"},
        {"type": "", "image_url": "u"},
        {"type": "IMAGE_URL", "image_url": "u"},
        {"type": "image"},
        {"type": "image", "source": "u"},
        {"type": "image", "source": {"type": "base64"}},
        {"type": "image", "source": {"type": "url", "data": "x"}},
        {"type": "image", "source": {"type": "file", "file_id": "x"}},
        {"image": "u"},
        {"image": {"source": {"data": "x"}}},
        *({"type": kind, kind: "u"} for kind in (*OTHER_MEDIA, "image_pil", "file", "document")),
        *({kind: "u"} for kind in OTHER_MEDIA),
        *({kind: None, "uuid": "x"} for kind in ("image_pil", "image_embeds", "video_url", "audio_url")),
        {"type": "text", "text": "x", "uuid": "x", "image_pil": None},
        {"type": "text", "text": "x", "video_url": "u"},
        {"type": "image_url", "image_url": {"url": "u"}, "video_url": "u"},
        {"type": "input_file", "file_url": "u"},
        {"type": "prompt_embeds", "data": "x"},
        {"type": "vision_chunk"},
    ],
)
def test_parts_that_are_refused(part: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as caught:
        find_images({"messages": [user(TEXT, part)]})
    assert caught.value.status == 400 and caught.value.kind in ("bad_image_url", "not_served")
    assert (caught.value.param or "").startswith("messages[0].content[1]")


@pytest.mark.parametrize(
    "part",
    [
        TEXT,
        {"type": "refusal", "refusal": "no"},
        {"type": "text", "text": "x", "image_url": None},
        "plain",
        None,
        5,
        [],
        {},
    ],
)
def test_parts_without_an_image(part: Any) -> None:
    assert find_images({"messages": [user(part)]}) == []


def test_tools_may_speak_of_images() -> None:
    parameters = {"type": "object", "properties": {"image_url": {"type": "string"}, "file": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": parameters}}]
    assert find_images({"messages": [user(TEXT)], "tools": tools, "response_format": {"image_url": EVIL}}) == []


# the other endpoints


def test_batches_of_conversations() -> None:
    body = {"messages": [[user(image("a"))], [user(TEXT), user(image("b"))]]}
    found = find_images(body)
    assert [(item.param, item.place) for item in found] == [
        ("messages[0][0].content[0].image_url.url", None),
        ("messages[1][1].content[0].image_url.url", None),
    ]


def test_responses() -> None:
    body = {
        "input": [
            {
                "role": "user",
                "content": [{"type": "input_text", "text": "x"}, {"type": "input_image", "image_url": "a"}],
            },
            {"type": "input_image", "image_url": "b"},
            {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_image", "image_url": "c"}]},
            {"type": "computer_call_output", "output": {"type": "computer_screenshot", "image_url": "d"}},
            {"type": "reasoning", "summary": []},
        ]
    }
    with pytest.raises(ApiError) as caught:
        find_images(body)
    assert caught.value.param == "input[3].output"  # a spelling that vLLM does not take
    del body["input"][3]
    assert [url for _, url in where(body)] == ["a", "b", "c"]
    for item in find_images(body):
        item.put("clean")
    assert {url for _, url in where(body)} == {"clean"}
    assert body["input"][0]["content"][1]["detail"] == "auto"  # type: ignore[index]
    assert find_images({"input": "just text"}) == []


def test_messages() -> None:
    data = base64.b64encode(PNG).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    result = {
        "type": "tool_result",
        "tool_use_id": "1",
        "content": [{"type": "image", "source": {"type": "url", "url": "b"}}],
    }
    body = {"messages": [user({"type": "image", "source": source}, result)]}
    assert where(body) == [
        ("messages[0].content[0].source.data", f"data:image/png;base64,{data}"),
        ("messages[0].content[1].content[0].source.url", "b"),
    ]
    for item in find_images(body):
        item.put("data:image/png;base64,CLEAN")
    clean = {"type": "base64", "media_type": "image/png", "data": "CLEAN"}
    assert body["messages"][0]["content"][0]["source"] == clean
    assert result["content"][0]["source"] == clean  # type: ignore[index]


def test_a_source_with_two_images_is_the_one_that_vllm_takes() -> None:
    data = base64.b64encode(PNG).decode()
    part = {"type": "image", "source": {"type": "url", "url": EVIL, "data": data}}
    assert where({"messages": [user(part)]}) == [("messages[0].content[0].source.url", EVIL)]
    part = {"type": "image", "source": {"url": EVIL, "data": data}}
    find_images({"messages": [user(part)]})[0].put("data:image/png;base64,CLEAN")
    assert EVIL not in json.dumps(part)


def test_scoring_and_embedding_bodies() -> None:
    content = {"content": [image("a")]}
    assert [u for _, u in where({"queries": content, "documents": [content, "text", content]})] == ["a", "a", "a"]
    assert [u for _, u in where({"data_1": [content], "data_2": content, "text_1": "x"})] == ["a", "a"]
    assert [u for _, u in where({"inputs": [{"content": [image("a")]}]})] == ["a"]
    images = ["a", "b"]
    found = find_images({"images": images})
    assert [item.param for item in found] == ["images[0]", "images[1]"]
    found[1].put("clean")
    assert images == ["a", "clean"]


# whatever JSON comes

KEYS = (
    "type",
    "role",
    "content",
    "image_url",
    "url",
    "uuid",
    "source",
    "data",
    "image",
    "text",
    "output",
    "video_url",
    "media_type",
    "messages",
)
VALUES = st.sampled_from(
    ["image_url", "input_image", "image", "text", "user", "url", "base64", "tool_result", URI, EVIL, "video_url"]
)
LEAVES = st.none() | st.booleans() | st.integers() | VALUES | st.text(max_size=3)
JSONS = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(
    st.dictionaries(st.sampled_from(["messages", "input", "inputs", "documents", "images", "query"]), JSONS, max_size=2)
)
def test_any_json_gives_images_or_an_api_error(body: dict[str, Any]) -> None:
    try:
        found = find_images(body)
    except ApiError as error:
        assert error.status == 400 and error.param
        return
    for item in found:
        item.put("data:image/png;base64,CLEAN")
    assert all("CLEAN" in item.url for item in find_images(body))  # what was replaced is what is found


PARTS = st.one_of(
    st.just(TEXT),
    st.builds(image),
    st.just({"image_url": URI}),
    st.just({"type": "input_image", "image_url": URI}),
    st.just({"type": "text", "text": "x", "image_url": URI}),
    st.just({"image_url": URI, "uuid": "u"}),
    st.just({"image_url": None, "uuid": "u"}),
    st.just("text"),
)
CONTENTS = st.lists(PARTS, max_size=3) | st.text(max_size=3) | st.none() | PARTS
MESSAGES = st.fixed_dictionaries({"role": st.just("user"), "content": CONTENTS}) | st.fixed_dictionaries(
    {"content": CONTENTS, "type": st.sampled_from(["image_url", "text"]), "image_url": st.just(URI)}
)


@given(st.lists(MESSAGES, max_size=4))
def test_pictures_go_to_the_places_where_they_were_found(messages: list[dict[str, Any]]) -> None:
    """For every accepted chat body, what vLLM gets holds each picture once, in order, and no URL of the client's."""
    body: dict[str, Any] = json.loads(json.dumps({"messages": messages}))
    try:
        found = find_images(body)
        exchange = Exchange("x", places=[place_of(item) for item in found])
    except ApiError:
        return
    exchange.pictures = [
        decode(open_header(encode(Image.new("RGB", (8, 8), (n, 0, 0))), Media(), ""), 1, "") for n in range(len(found))
    ]
    _replace_urls(body, exchange)
    assert URI not in json.dumps(body)
    _place_pictures(body["messages"], exchange)
    placed = [
        part["uuid"]
        for message in body["messages"]
        for part in (message["content"] if isinstance(message["content"], list) else ())
        if isinstance(part, dict) and part.get("type") == "image_pil"
    ]
    assert placed == [picture.digest for picture in exchange.pictures]
    assert not any(
        isinstance(m["content"], list)
        and {"url": _STAND_IN} in [p.get("image_url") for p in m["content"] if isinstance(p, dict)]
        for m in body["messages"]
    )


def test_content_that_validation_did_not_take_as_a_list() -> None:
    exchange = Exchange("x", places=[(0, 0)], pictures=[decode(open_header(PNG, Media(), ""), 1, "")])
    with pytest.raises(ApiError) as caught:
        _place_pictures([{"role": "user", "content": iter([])}], exchange)
    assert caught.value.status == 400 and caught.value.param == "messages[0].content"
