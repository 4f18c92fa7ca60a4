"""Every place where an endpoint of vLLM takes media from is found, and what it names never gets through unseen."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest
from PIL import Image

from serving.errors import ApiError
from serving.exchange import exchange_of
from serving.layers import build_layers
from serving.layers.admit import Admit
from serving.layers.screen import CHAT, Found, Screen, place_of
from serving.stack import Media, Model, Stack
from tests.serving.asgi import JSON, Answer, call, scope_of
from tests.serving.pictures import encode, scene

MODEL = Model(name="m", source="x")
PNG = encode(scene())
URI = "data:image/png;base64," + base64.b64encode(PNG).decode()
TEXT = {"type": "text", "text": "what is it?"}
EVIL = "http://169.254.169.254/latest/meta-data"


def image(url: str = URI) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


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
