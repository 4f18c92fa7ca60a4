"""Every place where an endpoint of vLLM takes media from is found, and what it names never gets through unseen."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from serving.chat import _STAND_IN, _place_pictures, _replace_urls
from serving.errors import ApiError
from serving.exchange import Exchange, exchange_of
from serving.layers import build_layers
from serving.layers.admit import Admit
from serving.layers.screen import CHAT, Found, Screen, find_images, place_of
from serving.media import decode, open_header
from serving.stack import Media, Model, Stack
from tests.serving.asgi import JSON, Answer, call, scope_of
from tests.serving.pictures import encode, scene

MODEL = Model(name="m", source="x")
PNG = encode(scene())
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()
EVIL = "http://169.254.169.254/latest/meta-data"


def image(url: str = URI) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


OTHER_MEDIA = ("video_url", "audio_url", "input_audio", "image_embeds", "audio_embeds", "video_embeds", "prompt_embeds")
TEXT = {"type": "text", "text": "what is it?"}


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


# the layer


class Engine:
    """Stands where vLLM's app stands: keeps what reached it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.body = b""
        self.held = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.body = (await receive())["body"] if scope["method"] == "POST" else b""
        self.seen.append((scope["path"], exchange_of(scope)))
        self.held = Screen.held
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})


def app(**media: Any) -> tuple[Any, Engine]:
    engine = Engine()
    stack = Stack.model_validate({"models": [{"name": "m", "source": "x"}], "media": media, "metrics": False})
    return build_layers(engine, stack, MODEL), engine


async def post(path: str, body: Any, *headers: tuple[bytes, bytes], **media: Any) -> tuple[Answer, Engine]:
    whole, engine = app(**media)
    return await call(whole, scope_of("POST", path, *(headers or (JSON,))), body), engine


async def test_chat_images_are_decoded_once_and_the_body_stays() -> None:
    answer, engine = await post(CHAT, {"messages": [user(image(), TEXT)]})
    assert answer.status == 200
    exchange = engine.seen[0][1]
    assert [picture.format for picture in exchange.pictures] == ["PNG"] and exchange.places == [(0, 0)]
    assert engine.held == 40 * 24 and Screen.held == 0 and Admit.gate.inside == 0


OTHERS = [
    "/v1/messages",
    "/v1/responses",
    "/tokenize",
    "/v1/chat/completions/batch",
    "//v1/chat/completions",
    "/x/v1/chat/completions",
    "/v1/chat/completions/",
    "/V1/chat/completions",
    "/v1/chat/completions/render",
    "/invocations",
    "/anything",
]


@pytest.mark.parametrize("path", OTHERS)
async def test_whatever_the_path_the_engine_gets_clean_pictures(path: str) -> None:
    dirty = base64.b64encode(encode(scene(), "BMP")).decode()
    answer, engine = await post(path, {"messages": [user(image(f"data:image/bmp;base64,{dirty}"))]})
    assert answer.status == 200
    url = json.loads(engine.body)["messages"][0]["content"][0]["image_url"]["url"]
    assert url.startswith("data:image/png;base64,") and dirty.encode() not in engine.body


@pytest.mark.parametrize("path", [CHAT, *OTHERS])
@pytest.mark.parametrize("url", [EVIL, "file:///etc/passwd", "data:image/png;base64,AAAA", " " + URI, "ftp://x/y", ""])
async def test_whatever_the_path_a_bad_image_is_refused(path: str, url: str) -> None:
    answer, engine = await post(path, {"messages": [user(TEXT, image(url))]})
    assert answer.status == 400 and not engine.seen
    assert answer.error["param"] == "messages[0].content[1].image_url.url"
    assert Screen.held == 0


async def test_a_route_prefix_does_not_hide_the_chat_route() -> None:
    whole, engine = app()
    scope = scope_of("POST", "/m/v1/chat/completions", JSON, root_path="/m")
    await call(whole, scope, {"messages": [user(image())]})
    assert engine.seen[0][1].places == [(0, 0)]  # handed over as pictures, as without a prefix
    scope = scope_of("POST", "/mm/v1/chat/completions", JSON, root_path="/m")
    await call(whole, scope, {"messages": [user(image())]})
    assert engine.seen[1][1].places == []


BODY = {"messages": [user(image(EVIL))]}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (json.dumps(BODY).encode("utf-16"), 400),  # Python's json would read these three
        (json.dumps(BODY).encode("utf-32-le"), 400),
        (b"\xef\xbb\xbf" + json.dumps(BODY).encode(), 400),
        (json.dumps(BODY).encode()[:-1], 400),
        (b'{"messages": [], "x": NaN}', 400),
        (b'{"messages": "\xff"}', 400),
        (b'{"a": "\\ud800"}', 400),
        (b"[" * 5000, 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"text"', 400),
        (gzip.compress(json.dumps(BODY).encode()), 400),
        (b'{"messages": [], ' + b'"a": [' * 300 + b"]" * 300 + b"}", 400),
        (b'{"messages": [], "' + b"a" * 70000 + b'": 1}', 200),
        (json.dumps({"input": [{"content": [{"type": "input_image", "image_url": EVIL}]}]}).encode(), 400),
        (json.dumps(BODY).replace("content", "\\u0063ontent").replace("messages", "messa\\u0067es").encode(), 400),
        (b'{"messages": [{"role":"user","content":[{"image_url":"%s"}]}], "messages": []}' % EVIL.encode(), 200),
        (b'{"messages": [], "messages": [{"role":"user","content":[{"image_url":"%s"}]}]}' % EVIL.encode(), 400),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
@pytest.mark.parametrize("kind", [b"application/json", b"text/plain", b"", b"application/json; charset=utf-16"])
async def test_bodies_that_other_parsers_might_read_otherwise(body: bytes, status: int, path: str, kind: bytes) -> None:
    answer, engine = await post(path, body, (b"content-type", kind))
    assert answer.status == status
    if status == 400:
        assert answer.error["type"] == "invalid_request_error" and not engine.seen


async def test_a_form_passes_to_the_audio_endpoints_but_not_to_chat() -> None:
    form = b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\nRIFF\r\n--x--\r\n'
    kind = (b"content-type", b"multipart/form-data; boundary=x")
    answer, engine = await post("/v1/audio/transcriptions", form, kind)
    assert answer.status == 200 and engine.body == form
    answer, engine = await post(CHAT, form, kind)
    assert answer.status == 400 and not engine.seen
    answer, engine = await post(CHAT, BODY, kind)
    assert answer.status == 400 and not engine.seen


async def test_the_number_of_images_is_limited() -> None:
    answer, engine = await post(CHAT, {"messages": [user(*[image()] * 3), user(image())]}, images=3)
    assert answer.status == 400 and not engine.seen
    assert answer.error["code"] == "too_many_images" and answer.error["param"] == "messages[1].content[0].image_url.url"
    answer, _ = await post(CHAT, {"messages": [user(*[image()] * 3)]}, images=3)
    assert answer.status == 200
    answer, _ = await post(CHAT, {"messages": [user(image())]}, images=0)
    assert answer.status == 400


@pytest.mark.parametrize("key", ["mm_processor_kwargs", "media_io_kwargs"])
async def test_a_request_cannot_undo_the_limits(key: str) -> None:
    answer, engine = await post(CHAT, {"messages": [user(image())], key: {"max_pixels": 10**12}})
    assert (answer.status, answer.error["param"]) == (400, key) and not engine.seen
    answer, _ = await post(CHAT, {"messages": [user(image())], key: None})
    assert answer.status == 200


async def test_the_pixels_of_all_requests_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Screen, "held", 1000)
    answer, engine = await post(CHAT, {"messages": [user(image())]}, pixels_inside=1500)
    assert answer.status == 503 and answer.header(b"retry-after") == b"1" and not engine.seen
    assert Screen.held == 1000
    answer, _ = await post(CHAT, {"messages": [user(image())]}, pixels_inside=2000)
    assert answer.status == 200 and Screen.held == 1000


async def test_pixels_are_given_back_after_a_failure() -> None:
    answer, _ = await post(CHAT, {"messages": [user(image(), image("data:image/png;base64,AAAA"))]})
    assert answer.status == 400 and Screen.held == 0


async def test_a_rewritten_body_that_cannot_be_written_is_refused_not_failed() -> None:
    body = {"messages": [user(image())], "x": json.loads("[" * 120 + "]" * 120)}
    answer, _ = await post("/v1/messages", body)
    assert answer.status == 200  # as deep as is let in, and orjson can write it
    body["x"] = json.loads("[" * 128 + "]" * 128)
    answer, _ = await post("/v1/messages", body)
    assert answer.status == 400 and "128" in answer.error["message"]


async def test_large_images_are_decoded_off_the_loop() -> None:
    large = base64.b64encode(encode(Image.new("RGB", (600, 600), (1, 2, 3)), "JPEG")).decode()
    answer, engine = await post("/v1/messages", {"messages": [user(image(f"data:image/jpeg;base64,{large}"))]})
    assert answer.status == 200 and b"data:image/png" in engine.body


async def test_websockets_are_closed() -> None:
    whole, engine = app()
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is asked of the client")

    await whole({"type": "websocket", "path": "/v1/realtime", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"] and not engine.seen


def test_found_images_have_no_place_unless_they_are_parts_of_a_message() -> None:
    with pytest.raises(ApiError) as caught:
        place_of(Found("messages[0].content.image_url", "u", lambda uri: None))
    assert caught.value.status == 400


async def test_the_connector_screens_what_the_layer_does_not_know() -> None:
    from serving.connector import load_image

    assert (await load_image(URI, Media())).size == (40, 24)
    for url in (EVIL, "file:///etc/passwd", "data:image/png;base64,AAAA", "data:video/mp4;base64,AAAA"):
        with pytest.raises(ValueError, match=r"\.$"):
            await load_image(url, Media())
