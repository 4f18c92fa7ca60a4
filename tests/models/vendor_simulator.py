"""A simulator of the three vendors' wire formats (OpenAI chat, Anthropic Messages, Gemini generateContent).

It checks what it is sent, answers what the test says, streams, and misbehaves on demand.  Formats follow the vendors'
API references; what the SDKs make of them is tested, the vendors themselves are not.
"""

from __future__ import annotations

import asyncio
import base64
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from aiohttp import web

KEY = "sk-simulated"
MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5", "google": "gemini-2.5-flash"}
# What a request gets instead of an answer: a status, "hang", "drop" (no reply), "cut" (mid-stream), "end" (too early),
# "stall" (mid-stream, the connection stays open), "garbage", "error_event" (Anthropic's and OpenAI's error after 200)
Fault = int | str | None


@dataclass
class Script:
    """What the simulator answers with."""

    text: str = "a red circle"
    input_tokens: int = 900
    cached_tokens: int = 0
    image_tokens: int | None = None
    output_tokens: int = 5
    tool: tuple[str, dict[str, Any]] | None = None
    finish: str = "stop"
    fault: Callable[[int], Fault] = lambda number: None
    retry_after: str | None = None
    seen: list[dict[str, Any]] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    in_flight: int = 0


class Misuse(Exception):
    """The client sent something the real API would refuse with 400."""


def _require(condition: object, what: str) -> None:
    if not condition:
        raise Misuse(what)


class Vendor(ABC):
    """One wire format.  `pieces` cuts the text for streams."""

    def __init__(self, script: Script):
        self.script = script

    def pieces(self) -> list[str]:
        words = self.script.text.split(" ")
        return [w + (" " if i < len(words) - 1 else "") for i, w in enumerate(words)]

    @abstractmethod
    def authorized(self, request: web.Request) -> bool:
        """Whether the request carries the key as this vendor wants it."""

    @abstractmethod
    def read(self, request: web.Request, body: dict[str, Any]) -> tuple[str, bool]:
        """Check the body as the API would; return (model, whether it wants a stream) and record the images."""

    @abstractmethod
    def error(self, status: int, message: str) -> dict[str, Any]:
        """Return an error's body."""

    @abstractmethod
    def reply(self, model: str) -> dict[str, Any]:
        """Return a whole answer's body."""

    @abstractmethod
    def events(self, model: str, *, ended: bool = True) -> list[str]:
        """Return a stream's events; without `ended` the last ones are missing."""


class OpenAI(Vendor):
    FINISH: ClassVar = {"stop": "stop", "length": "length", "refused": "content_filter"}

    def authorized(self, request: web.Request) -> bool:
        return request.headers.get("Authorization") == f"Bearer {KEY}"

    def read(self, request: web.Request, body: dict[str, Any]) -> tuple[str, bool]:
        _require(isinstance(body.get("max_completion_tokens"), int), "max_completion_tokens")
        user = body["messages"][-1]
        _require(user["role"] == "user", "last message")
        for part in user["content"]:
            if part["type"] == "image_url":
                head, data = part["image_url"]["url"].split(",", 1)
                _require(head in ("data:image/png;base64", "data:image/jpeg;base64"), head)
                self.script.images.append(base64.b64decode(data, validate=True))
        for tool in body.get("tools", []):
            _require(tool["type"] == "function" and tool["function"]["parameters"]["type"] == "object", "tool")
        if body.get("stream"):
            _require(body["stream_options"] == {"include_usage": True}, "stream_options")
        return body["model"], bool(body.get("stream"))

    def error(self, status: int, message: str) -> dict[str, Any]:
        return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}

    def _usage(self) -> dict[str, Any]:
        s = self.script
        return {
            "prompt_tokens": s.input_tokens,
            "completion_tokens": s.output_tokens,
            "total_tokens": s.input_tokens + s.output_tokens,
            "prompt_tokens_details": {
                "cached_tokens": s.cached_tokens,
                "audio_tokens": 0,
                "image_tokens": s.image_tokens,
            },
            "completion_tokens_details": {"reasoning_tokens": 0},
        }

    def _base(self, model: str, kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": f"{model}-2024-07-18"}

    def _finish(self) -> str:
        return "tool_calls" if self.script.tool else self.FINISH[self.script.finish]

    def reply(self, model: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": self.script.text, "refusal": None}
        if self.script.tool:
            name, arguments = self.script.tool
            message["content"] = None
            message["tool_calls"] = [
                {"id": "call_1", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish()}
        return {**self._base(model, "chat.completion"), "choices": [choice], "usage": self._usage()}

    def events(self, model: str, *, ended: bool = True) -> list[str]:
        def event(choices: list[Any], usage: dict[str, Any] | None) -> str:
            base = self._base(model, "chat.completion.chunk")
            return f"data: {json.dumps({**base, 'choices': choices, 'usage': usage})}\n\n"

        def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return event([choice], None)

        out = [chunk({"role": "assistant", "content": ""})]
        if self.script.tool:
            name, arguments = self.script.tool
            text = json.dumps(arguments)
            first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}}
            out.append(chunk({"tool_calls": [first]}))
            out += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": t}}]}) for t in (text[:4], text[4:])]
        else:
            out += [chunk({"content": piece}) for piece in self.pieces()]
        if ended:
            out.append(chunk({}, self._finish()))
            out.append(event([], self._usage()))
            out.append("data: [DONE]\n\n")
        return out


class Anthropic(Vendor):
    FINISH: ClassVar = {"stop": "end_turn", "length": "max_tokens", "refused": "refusal"}

    def authorized(self, request: web.Request) -> bool:
        # the SDK sends a bearer token since 2.x, and sent x-api-key before; the API takes both
        key = request.headers.get("Authorization", "").removeprefix("Bearer ") or request.headers.get("x-api-key")
        return key == KEY and "anthropic-version" in request.headers

    def read(self, request: web.Request, body: dict[str, Any]) -> tuple[str, bool]:
        _require(isinstance(body.get("max_tokens"), int), "max_tokens")
        (message,) = body["messages"]
        _require(message["role"] == "user", "role")
        for part in message["content"]:
            if part["type"] == "image":
                _require(part["source"]["type"] == "base64" and part["source"]["media_type"] == "image/png", "source")
                self.script.images.append(base64.b64decode(part["source"]["data"], validate=True))
        for tool in body.get("tools", []):
            _require(tool["input_schema"]["type"] == "object", "tool")
        return body["model"], bool(body.get("stream"))

    def error(self, status: int, message: str) -> dict[str, Any]:
        kind = {429: "rate_limit_error", 529: "overloaded_error", 404: "not_found_error", 401: "authentication_error"}
        return {
            "type": "error",
            "error": {"type": kind.get(status, "api_error"), "message": message},
            "request_id": "r",
        }

    def _usage(self, output: int) -> dict[str, Any]:
        s = self.script
        return {
            "input_tokens": s.input_tokens - s.cached_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": s.cached_tokens,
            "output_tokens": output,
        }

    def _stop(self) -> str:
        return "tool_use" if self.script.tool else self.FINISH[self.script.finish]

    def _message(self, model: str, content: list[Any], stop: str | None, output: int) -> dict[str, Any]:
        base = {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": content}
        return {**base, "stop_reason": stop, "stop_sequence": None, "usage": self._usage(output)}

    def reply(self, model: str) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": self.script.text, "citations": None}]
        if self.script.tool:
            name, arguments = self.script.tool
            content = [{"type": "tool_use", "id": "toolu_1", "name": name, "input": arguments}]
        return self._message(model, content, self._stop(), self.script.output_tokens)

    def events(self, model: str, *, ended: bool = True) -> list[str]:
        def event(kind: str, **data: Any) -> str:
            return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"

        out = [event("message_start", message=self._message(model, [], None, 1)), event("ping")]
        if self.script.tool:
            name, arguments = self.script.tool
            text = json.dumps(arguments)
            block = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}
            out.append(event("content_block_start", index=0, content_block=block))
            deltas = [{"type": "input_json_delta", "partial_json": t} for t in (text[:4], text[4:])]
        else:
            out.append(event("content_block_start", index=0, content_block={"type": "text", "text": ""}))
            deltas = [{"type": "text_delta", "text": piece} for piece in self.pieces()]
        out += [event("content_block_delta", index=0, delta=delta) for delta in deltas]
        if ended:
            out.append(event("content_block_stop", index=0))
            delta = {"stop_reason": self._stop(), "stop_sequence": None}
            out.append(event("message_delta", delta=delta, usage={"output_tokens": self.script.output_tokens}))
            out.append(event("message_stop"))
        return out


class Google(Vendor):
    FINISH: ClassVar = {"stop": "STOP", "length": "MAX_TOKENS", "refused": "SAFETY"}

    def authorized(self, request: web.Request) -> bool:
        return request.headers.get("x-goog-api-key") == KEY

    def read(self, request: web.Request, body: dict[str, Any]) -> tuple[str, bool]:
        model, _, verb = request.match_info["call"].partition(":")
        _require(isinstance(body["generationConfig"]["maxOutputTokens"], int), "maxOutputTokens")
        (content,) = body["contents"]
        for part in content["parts"]:
            if "inlineData" in part:
                # the API reads both spellings, and SDK versions differ
                inline = part["inlineData"]
                _require(inline.get("mimeType", inline.get("mime_type")) == "image/png", "mimeType")
                data = part["inlineData"]["data"]
                self.script.images.append(base64.urlsafe_b64decode(data))
        for tool in body.get("tools", []):
            (declared,) = tool["functionDeclarations"]
            schema = declared.get("parametersJsonSchema") or declared["parameters_json_schema"]
            _require(schema["type"] == "object", "tool")
        if verb == "streamGenerateContent":
            _require(request.query.get("alt") == "sse", "alt=sse")
        return model, verb == "streamGenerateContent"

    def error(self, status: int, message: str) -> dict[str, Any]:
        return {"error": {"code": status, "message": message, "status": "UNAVAILABLE"}}

    def _chunk(self, parts: list[dict[str, Any]], finish: str | None, model: str) -> dict[str, Any]:
        s = self.script
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
        usage: dict[str, Any] = {"promptTokenCount": s.input_tokens, "totalTokenCount": s.input_tokens}
        if s.image_tokens is not None:
            usage["promptTokensDetails"] = [{"modality": "IMAGE", "tokenCount": s.image_tokens}]
        if s.cached_tokens:
            usage["cachedContentTokenCount"] = s.cached_tokens
        if finish is not None:
            candidate["finishReason"] = finish
            # two of the output tokens are thinking
            usage |= {"candidatesTokenCount": s.output_tokens - 2, "thoughtsTokenCount": 2}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": model, "responseId": "r"}

    def _parts(self) -> list[dict[str, Any]]:
        if self.script.tool:
            name, arguments = self.script.tool
            return [{"functionCall": {"id": "f1", "name": name, "args": arguments}}]
        return [{"text": "hidden thought", "thought": True}, {"text": self.script.text}]

    def reply(self, model: str) -> dict[str, Any]:
        return self._chunk(self._parts(), self.FINISH[self.script.finish], model)

    def events(self, model: str, *, ended: bool = True) -> list[str]:
        parts = [self._parts()] if self.script.tool else [[{"text": piece}] for piece in self.pieces()]
        chunks = [self._chunk(p, None, model) for p in parts]
        if ended:
            chunks.append(self._chunk([{"text": ""}], self.FINISH[self.script.finish], model))
        return [f"data: {json.dumps(c)}\r\n\r\n" for c in chunks]


WIRE: dict[str, type[Vendor]] = {"openai": OpenAI, "anthropic": Anthropic, "google": Google}
PATHS = {
    "openai": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "google": "/{version:v1|v1beta}/models/{call}",
}


class VendorSimulator:
    """Serves one vendor on a free port of 127.0.0.1, as an async context manager."""

    def __init__(self, vendor: str, script: Script | None = None):
        self.vendor, self.script = vendor, script or Script()
        self.wire = WIRE[vendor](self.script)

    async def __aenter__(self) -> VendorSimulator:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post(PATHS[self.vendor], self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def base_url(self) -> str:
        root = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return f"{root}/v1" if self.vendor == "openai" else root

    def _error(self, status: int, message: str) -> web.Response:
        headers = {} if self.script.retry_after is None else {"retry-after": self.script.retry_after}
        return web.json_response(self.wire.error(status, message), status=status, headers=headers)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        number = len(self.script.seen)
        body = json.loads(await request.read())
        self.script.seen.append(body)
        if not self.wire.authorized(request):
            return self._error(401, "invalid x-api-key")
        try:
            model, stream = self.wire.read(request, body)
        except (Misuse, KeyError, ValueError, TypeError) as error:
            return self._error(400, f"malformed: {error!r}")
        if model != MODELS[self.vendor]:
            return self._error(404, f"model: {model}")
        fault = self.script.fault(number)
        if isinstance(fault, int):
            return self._error(fault, "simulated")
        if fault == "hang":
            await asyncio.sleep(20)
        if fault == "drop":
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if not stream:
            if fault == "garbage":
                return web.Response(text='{"id": "x", "cont', content_type="application/json")
            return web.json_response(self.wire.reply(model))
        return await self._stream(request, model, fault)

    async def _stream(self, request: web.Request, model: str, fault: Fault) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        events = self.wire.events(model, ended=fault not in ("end", "cut", "stall", "error_event"))
        async for event in _paced(events):
            await response.write(event.encode())
        if fault == "stall":
            await asyncio.sleep(20)
        if fault == "error_event":
            error = json.dumps(self.wire.error(529, "overloaded"))
            await response.write(f"event: error\ndata: {error}\n\n".encode())
        if fault == "cut":
            assert request.transport is not None
            # the client must have read what was sent before the connection goes
            await asyncio.sleep(0.05)
            request.transport.close()
            return response
        await response.write_eof()
        return response


async def _paced(events: list[str]) -> AsyncIterator[str]:
    for event in events:
        yield event
        await asyncio.sleep(0)
