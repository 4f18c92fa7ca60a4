"""One replica: a Ray Serve deployment whose ASGI app is the layers around vLLM, in one process with vLLM's client.

Ray's own HTTP listener in the replica answers Ray's probes and hands everything else to the app built here.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import logging
import os
import re
import time
from typing import TYPE_CHECKING, Any

import orjson

from serving.autoscale import stats
from serving.engine import image_token_counter, start_engine
from serving.errors import ApiError
from serving.exchange import api_path
from serving.facts import FACTS
from serving.layers import build_layers, start_layers, stop_layers
from serving.layers.admit import Admit
from serving.layers.screen import CHAT
from serving.middleware import Straight
from serving.peers import Peers
from serving.stack import RESERVED, Model, Stack
from serving.tracing import engine_environment

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger("fovea.serving")
LOOK_S = 0.02
LAST_WORDS_S = 0.1
"""For the error answers of the requests that were in the engine."""


class Replica:
    """Hosts one engine.

    Args:
        stack: the stack file as plain data (it crosses process borders).
        name: which of its models this replica serves.
    """

    def __init__(self, stack: dict[str, Any], name: str):
        self.stack = Stack.model_validate(stack)
        self.model = next(model for model in self.stack.models if model.name == name)
        self.engine: Any = None
        self.router: Router | None = None
        self.peers: Peers | None = None
        self.layers: Any = None
        self.watch: asyncio.Task[None] | None = None

    def reconfigure(self, told: dict[str, Any]) -> None:
        """Learn how many replicas the model has (called by Ray Serve at the start and when that changes)."""
        FACTS.replicas = int(told.get("replicas", self.model.replicas))

    async def __serve_build_asgi_app__(self) -> ASGIApp:
        """Start the engine, answer one image through the whole path, and return the app (called once by Ray Serve)."""
        if self.stack.lane is not None:
            self.model.engine_args.setdefault("scheduling_policy", "priority")
        if self.stack.traces is not None and self.stack.traces.engine:
            os.environ.update(engine_environment(self.stack.traces, self.model.name))
            self.model.engine_args.setdefault("otlp_traces_endpoint", self.stack.traces.endpoint)
        self.engine = await start_engine(self.model, self.stack.media)
        self.peers = await Peers.start(self.model.name) if self.stack.metrics else None
        self.router = Router(self.engine, self.stack, self.model.name, self.peers)
        FACTS.image_tokens = image_token_counter(self.engine)
        FACTS.temperature = float(self.engine.client.model_config.get_diff_sampling_param().get("temperature", 1.0))
        app = self.layers = build_layers(self.router, self.stack, self.model)
        await start_layers(app)
        self.router.canary = Canary(app, self.model.name, self.stack.ready.within_s, self.model.images_per_prompt > 0)
        await self.router.canary.start()
        Straight.target, Straight.prefix = app, below(self.model)
        self.watch = asyncio.create_task(self._end_with_the_engine())
        return app

    async def _end_with_the_engine(self) -> None:
        """End this process when its engine has died.

        Ray's health check finds that in half a minute, and until then the proxy would send here most of what comes:
        nothing answers as fast as an error.  A closed port makes it go on to the next replica at once.
        """
        while not self.engine.client.errored:  # noqa: ASYNC110, vLLM tells nobody
            await asyncio.sleep(LOOK_S)
        Admit.gate.draining = True
        logger.error("the engine of %s has died; this replica ends, and Ray Serve starts another", self.model.name)
        await asyncio.sleep(LAST_WORDS_S)
        os._exit(1)

    async def check_health(self) -> None:
        """Raise when the engine is dead, so that Ray Serve replaces the replica."""
        if self.engine is not None:
            await self.engine.client.check_health()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what Ray Serve scales by (called by it where the number of replicas is not fixed)."""
        canary = self.router.canary if self.router is not None else None
        return stats(own=int(canary is not None and canary.asking))

    async def drain(self) -> int:
        """Refuse new requests from now on and return how many are still running."""
        Admit.gate.draining = True
        return Admit.gate.inside

    async def stop(self) -> None:
        """Let running requests finish (at most `drain_s`), then close everything."""
        if self.watch is not None:
            self.watch.cancel()
        Admit.gate.draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.stack.drain_s):
                await Admit.gate.empty.wait()
        if self.router is not None and self.router.canary is not None:
            self.router.canary.stop()
        if self.layers is not None:
            await stop_layers(self.layers)
        if self.peers is not None:
            await self.peers.stop()
        if self.engine is not None:
            self.engine.shutdown()


class Deployed(Replica):
    """What Ray Serve is given: it stops an object by awaiting its `__del__`, which Python itself calls and forgets."""

    async def __del__(self) -> None:
        await self.stop()


def below(model: Model) -> str:
    """Return the prefix below which a model's API is served too; empty where only a single model may have it."""
    return "" if model.prefix.split("/")[1] in RESERVED else model.prefix


# vLLM's client API. Its app has more, which is for operators (scaling, profiling, adapters) or takes tensors and files
# that are not screened (`/inference/v1/generate`); whoever can reach the port must not reach those.
SERVED = re.compile(
    r"/v1/(chat/completions(/batch)?|completions|responses(/[^/]+(/cancel)?)?|messages(/count_tokens)?|models(/.+)?"
    r"|embeddings|score|rerank|audio/(transcriptions|translations))"
    r"|/v2/(embed|rerank)|/(pooling|classify|score|rerank|tokenize|detokenize|load|ping|version|metrics/?)"
    r"|/(docs|redoc)(/.*)?|/openapi\.json"
)


class Router:
    """Behind the layers: probes, metrics, the direct chat endpoint, and vLLM's own app for everything else."""

    def __init__(self, engine: Any, stack: Stack, name: str, peers: Peers | None):
        from serving.chat import ChatEndpoint

        self.engine, self.name, self.peers, self.app = engine, name, peers, engine.app
        self.chat = ChatEndpoint(engine.app.state, image_token_counter(engine))
        self.canary: Canary | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = api_path(scope)
        if path == CHAT and scope["method"] == "POST":
            await self.chat(scope, receive, send)
            if self.canary is not None and scope["fovea"].pictures and not scope["fovea"].error_kind:
                self.canary.answered = time.monotonic()
        elif path == "/health":
            await self._health(send)
        elif path == "/ready":
            assert self.canary is not None
            await self.canary.report(send)
        elif path == "/metrics" and self.peers is not None:
            await _text(send, 200, await self.peers.metrics())
        elif SERVED.fullmatch(path):
            await self.app(scope, receive, send)
        else:
            raise ApiError(404, f"Nothing is served at {path[:80]!r}.", kind="not_found")

    async def _health(self, send: Send) -> None:
        try:
            await self.engine.client.check_health()
        except Exception as error:  # any failure of the engine means the same to a probe
            await _json(send, 503, {"status": "engine dead", "model": self.name, "reason": type(error).__name__})
            return
        degraded = {"degraded": FACTS.degraded} if FACTS.degraded else {}
        await _json(send, 200, {"status": "ok", "model": self.name, **degraded})


class Canary:
    """Knows when an image was last answered, and asks about one when nobody else has for a while."""

    def __init__(self, app: ASGIApp, name: str, within_s: float, image: bool):
        self.app, self.within_s, self.answered = app, within_s, float("-inf")
        self.problem = "no image was answered yet"
        self.asking = False
        content: Any = "ok?"
        if image:
            from PIL import Image

            buffer = io.BytesIO()
            Image.new("RGB", (64, 64), (255, 0, 0)).save(buffer, "PNG")
            url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "ok?"}]
        message = [{"role": "user", "content": content}]
        self.body = orjson.dumps({"model": name, "messages": message, "max_tokens": 1, "temperature": 0})
        self.task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Ask once now (so that the first client does not pay the warm-up), then keep watch."""
        await self._ask()
        self.task = asyncio.create_task(self._watch())

    def stop(self) -> None:
        """Stop watching."""
        if self.task is not None:
            self.task.cancel()

    async def report(self, send: Send) -> None:
        """Answer `/ready`."""
        age = time.monotonic() - self.answered
        if Admit.gate.draining:
            await _json(send, 503, {"status": "draining"})
        elif age <= self.within_s:
            await _json(send, 200, {"status": "ready", "answered_s_ago": round(age, 1)})
        else:
            await _json(send, 503, {"status": "not ready", "reason": self.problem})

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.within_s / 3)
            if time.monotonic() - self.answered > self.within_s / 3:
                await self._ask()

    async def _ask(self) -> None:
        status, sent = 0, False

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()  # this client never leaves
            sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        scope = {
            "type": "http", "method": "POST", "path": CHAT, "root_path": "", "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"x-request-id", b"canary")],
            "fovea.canary": True,
        }  # fmt: skip
        self.asking = True
        try:
            async with asyncio.timeout(self.within_s):
                await self.app(scope, receive, send)
        except TimeoutError:
            self.problem = f"the canary got no answer within {self.within_s:g} s"
            return
        except Exception as error:
            self.problem = f"the canary failed: {type(error).__name__}"
            logger.exception("canary failed")
            return
        finally:
            self.asking = False
        if status == 200:
            self.answered = time.monotonic()
        else:
            self.problem = f"the canary got status {status}"


async def _json(send: Send, status: int, value: object) -> None:
    await _send(send, status, b"application/json", orjson.dumps(value))


async def _text(send: Send, status: int, body: bytes) -> None:
    await _send(send, status, b"text/plain; version=0.0.4; charset=utf-8", body)


async def _send(send: Send, status: int, kind: bytes, body: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
