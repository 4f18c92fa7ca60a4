"""A simulator of an OpenAI-compatible server: it speaks the wire format, and answers what the test tells it to.

It runs in a thread with its own event loop, so that the code under test can run its own.
"""

from __future__ import annotations

import asyncio
import base64
import json
import math
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from aiohttp import web

Reply = tuple[str, float]  # the answer and its probability
# What a request gets instead of an answer: a status, "cut" (connection closed), "hang", "garbage", "no_logprobs"
Fault = int | str | None


class OpenAISimulator:
    """Serves `/v1/models` and `/v1/chat/completions` on a free port of 127.0.0.1, as a context manager.

    Args:
        answer: (question, image bytes) -> (text, probability).
        fault: number of the request (from 0) -> what goes wrong with it.
        model: the only model it has.
        key: bearer token that it asks for; None: none.
        list_models: whether `/v1/models` exists.
    """

    def __init__(
        self,
        answer: Callable[[str, bytes], Reply],
        *,
        fault: Callable[[int], Fault] = lambda number: None,
        model: str = "sim",
        key: str | None = None,
        list_models: bool = True,
    ):
        self.answer, self.fault, self.model, self.key, self.list_models = answer, fault, model, key, list_models
        self.requests: list[dict[str, Any]] = []
        self.retry_after: str | None = None
        self.root: str | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> OpenAISimulator:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def _run(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    def _unauthorized(self, request: web.Request) -> web.Response | None:
        if self.key is None or request.headers.get("Authorization") == f"Bearer {self.key}":
            return None
        return self._error(401, "Incorrect API key provided")

    @staticmethod
    def _error(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
        return web.json_response(
            {"error": {"message": message, "type": "x", "code": None}}, status=status, headers=headers
        )

    async def _models(self, request: web.Request) -> web.Response:
        if not self.list_models:
            return self._error(404, "not found")
        return self._unauthorized(request) or web.json_response(
            {"object": "list", "data": [{"id": self.model, "object": "model", "root": self.root}]}
        )

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        number = len(self.requests)
        body = json.loads(await request.read())
        self.requests.append(body)
        refused = self._unauthorized(request)
        if refused is not None:
            return refused
        if body["model"] != self.model:
            return self._error(404, f"The model `{body['model']}` does not exist")
        fault = self.fault(number)
        if isinstance(fault, int):
            headers = {"Retry-After": self.retry_after} if self.retry_after is not None else None
            return self._error(fault, "simulated", headers)
        if fault == "hang":
            await asyncio.sleep(30)
        if fault == "cut":
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if fault == "garbage":
            return web.Response(body=b'{"choices": [{"message"', content_type="application/json")
        image, question = self._content(body)
        text, probability = self.answer(question, image)
        return web.json_response(self._completion(text, None if fault == "no_logprobs" else probability))

    @staticmethod
    def _content(body: dict[str, Any]) -> tuple[bytes, str]:
        (message,) = body["messages"]
        parts = {part["type"]: part for part in message["content"]}
        kind, data = parts["image_url"]["image_url"]["url"].split(";base64,")
        assert kind.startswith("data:image/")
        return base64.b64decode(data, validate=True), parts["text"]["text"]

    def _completion(self, text: str, probability: float | None) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
        }
        if probability is not None:
            # two tokens, so that whoever multiplies gets the probability of the answer
            half = math.log(max(probability, 1e-30)) / 2
            choice["logprobs"] = {
                "content": [{"token": t, "logprob": half, "bytes": [], "top_logprobs": []} for t in (text, "")]
            }
        usage = {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": self.model,
            "choices": [choice],
            "usage": usage,
        }
