"""The direct way to vLLM's chat handler, with a handler that stands in for vLLM's: no engine is started."""

from __future__ import annotations

import asyncio
import base64
import sys
import types
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import orjson
import pytest
from pydantic import BaseModel, ConfigDict, Field

from serving.chat import ChatEndpoint
from serving.layers import build_layers
from serving.stack import Model, Stack
from tests.serving.asgi import JSON, Answer, call, scope_of
from tests.serving.pictures import encode, scene

URI = "data:image/png;base64," + base64.b64encode(encode(scene())).decode()
MODEL = Model(name="m", source="x")


class Request(BaseModel):
    model_config = ConfigDict(extra="allow")
    messages: list[dict[str, Any]]
    max_tokens: int | None = Field(None, ge=0)


class Failure(BaseModel):
    code: int
    message: str = "no"


class Error(BaseModel):
    error: Failure


class Reply(BaseModel):
    text: str


class Handler:
    """In the place of vLLM's: does what the test says, and notes whether it was let finish."""

    def __init__(self, does: Any) -> None:
        self.does, self.request, self.ended = does, None, "not asked"

    async def create_chat_completion(self, request: Any, raw: Any) -> Any:
        self.request, self.ended = request, "running"
        raw.state.request_metadata = "vLLM writes here"
        try:
            result = await self.does(self)
        except asyncio.CancelledError:
            self.ended = "cancelled"
            raise
        self.ended = "finished"
        return result


def create_error_response(error: Exception) -> Error:
    return Error(error=Failure(code=400 if isinstance(error, ValueError) else 500, message=str(error)))


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The three modules of vLLM that the endpoint imports."""
    base = "vllm.entrypoints"
    contents: dict[str, dict[str, Any]] = {
        f"{base}.openai.chat_completion.protocol": {"ChatCompletionRequest": Request},
        f"{base}.serve.engine.protocol": {"ErrorResponse": Error},
        f"{base}.serve.exception_handling.error_response": {"create_error_response": create_error_response},
    }
    for path, names in contents.items():
        parts = path.split(".")
        for end in range(1, len(parts)):
            name = ".".join(parts[:end])
            monkeypatch.setitem(sys.modules, name, sys.modules.get(name) or types.ModuleType(name))
        monkeypatch.setitem(
            sys.modules, path, types.ModuleType(path)
        )  # never vLLM's own, which others may have imported
        vars(sys.modules[path]).update(names)
    yield


def app(does: Any) -> tuple[Any, Handler]:
    handler = Handler(does)
    endpoint = ChatEndpoint(types.SimpleNamespace(openai_serving_chat=handler), lambda width, height: 7)
    stack = Stack.model_validate({"models": [{"name": "m", "source": "x"}], "metrics": False})
    return build_layers(endpoint, stack, MODEL), handler


async def ask(
    does: Any, body: Any, kind: bytes = JSON[1], leave: asyncio.Event | None = None
) -> tuple[Answer, Handler]:
    whole, handler = app(does)
    scope = scope_of("POST", "/v1/chat/completions", (b"content-type", kind))
    return await call(whole, scope, body, leave), handler


async def reply(handler: Handler) -> Reply:
    return Reply(text="hello")


TEXT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


async def test_a_whole_answer() -> None:
    answer, handler = await ask(reply, TEXT)
    assert answer.status == 200 and orjson.loads(answer.body) == {"text": "hello"}
    assert answer.header(b"content-type") == b"application/json" and handler.ended == "finished"


async def test_pictures_reach_the_handler_decoded() -> None:
    part = {"type": "image_url", "image_url": {"url": URI}}
    body = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "?"}, part]}]}
    answer, handler = await ask(reply, body)
    assert answer.status == 200 and handler.request is not None
    content = handler.request.messages[0]["content"]
    assert [item["type"] for item in content] == ["image_pil", "text", "image_pil"]
    assert content[0]["image_pil"].size == (40, 24) and content[0]["uuid"] == content[2]["uuid"]


async def test_a_stream_is_sent_as_it_comes_and_closed() -> None:
    closed = []

    async def stream() -> AsyncGenerator[str, None]:
        try:
            yield "data: 1\n\n"
            yield "data: [DONE]\n\n"
        finally:
            closed.append(True)

    async def does(handler: Handler) -> Any:
        return stream()

    answer, _ = await ask(does, {**TEXT, "stream": True})
    assert answer.chunks == [b"data: 1\n\n", b"data: [DONE]\n\n", b""] and closed == [True]
    assert (answer.header(b"content-type") or b"").startswith(b"text/event-stream")


async def test_a_client_that_leaves_cancels_the_work() -> None:
    leave = asyncio.Event()

    async def does(handler: Handler) -> Any:
        leave.set()
        await asyncio.sleep(20)

    answer, handler = await ask(does, TEXT, leave=leave)
    assert answer.status == 0 and handler.ended == "cancelled"


async def test_a_client_that_leaves_ends_the_stream() -> None:
    leave, closed = asyncio.Event(), []

    async def stream() -> AsyncGenerator[str, None]:
        try:
            yield "data: 1\n\n"
            leave.set()
            await asyncio.sleep(20)
            yield "data: 2\n\n"
        finally:
            closed.append(True)

    async def does(handler: Handler) -> Any:
        return stream()

    answer, _ = await ask(does, TEXT, leave=leave)
    assert answer.chunks == [b"data: 1\n\n"] and closed == [True]


async def test_vllms_own_errors_keep_their_status() -> None:
    async def does(handler: Handler) -> Any:
        return Error(error=Failure(code=404, message="no such model"))

    answer, _ = await ask(does, TEXT)
    assert answer.status == 404 and orjson.loads(answer.body)["error"]["message"] == "no such model"


@pytest.mark.parametrize(
    "error", [KeyError("role"), AttributeError("x"), AssertionError(), RecursionError(), IndexError(), ValueError("x")]
)
async def test_what_rendering_stumbles_over_is_the_clients_error(error: Exception) -> None:
    async def does(handler: Handler) -> Any:
        raise error

    answer, _ = await ask(does, TEXT)
    assert answer.status == 400


async def test_a_failing_engine_is_a_server_error() -> None:
    async def does(handler: Handler) -> Any:
        raise RuntimeError("engine")

    assert (await ask(does, TEXT))[0].status == 500


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": 5}, "messages"),
        ({"messages": [5]}, "messages.0"),
        ({**TEXT, "max_tokens": -1}, "max_tokens"),
        ({**TEXT, "max_tokens": "many"}, "max_tokens"),
    ],
)
async def test_a_wrong_field_is_named(body: dict[str, Any], param: str) -> None:
    answer, handler = await ask(reply, body)
    assert answer.status == 400 and answer.error["param"] == param and handler.ended == "not asked"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"messages": NaN}'])
async def test_what_is_no_json_object(body: bytes) -> None:
    answer, handler = await ask(reply, body)
    assert answer.status == 400 and answer.error["code"] == "bad_json" and handler.ended == "not asked"


@pytest.mark.parametrize(
    "kind", [b"text/plain", b"", b"application/x-www-form-urlencoded", b"multipart/form-data", b"application/jsonx"]
)
async def test_a_web_page_cannot_ask_in_a_visitors_name(kind: bytes) -> None:
    """Browsers send these types to any address without asking; JSON they ask for first."""
    answer, handler = await ask(reply, TEXT, kind)
    assert answer.status == 400 and handler.ended == "not asked"
    assert (await ask(reply, TEXT, b"application/json; charset=utf-8"))[0].status == 200
