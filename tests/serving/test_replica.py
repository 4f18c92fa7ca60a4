"""What of vLLM's app is served, and the readiness canary; no engine is started."""

from __future__ import annotations

import asyncio
import time
import types
from typing import Any

import orjson
import pytest

from serving.exchange import exchange_of
from serving.layers import build_layers
from serving.layers.admit import Admit
from serving.middleware import Straight, straight
from serving.replica import SERVED, Canary, Replica, Router, below
from serving.stack import Model, Stack
from tests.serving.asgi import JSON, call, scope_of

MODEL = Model(name="m", source="x")
STACK = Stack.model_validate({"models": [{"name": "m", "source": "x"}], "metrics": False})


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/cancel",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/v1/models/org/m",
        "/v1/embeddings",
        "/v2/embed",
        "/pooling",
        "/score",
        "/v1/rerank",
        "/tokenize",
        "/detokenize",
        "/v1/audio/transcriptions",
        "/version",
        "/ping",
        "/openapi.json",
        "/docs",
    ],
)
def test_the_client_api_is_served(path: str) -> None:
    assert SERVED.fullmatch(path)


@pytest.mark.parametrize(
    "path",
    [
        "/scale_elastic_ep",
        "/is_scaling_elastic_ep",
        "/inference/v1/generate",
        "/abort_requests",
        "/invocations",
        "/start_profile",
        "/stop_profile",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/sleep",
        "/collective_rpc",
        "/update_weights",
        "/v1/chat/completions/render",
        "/fault_tolerance/apply",
        "/server_info",
        "/v1/realtime",
        "/",
        "",
        "//v1/chat/completions",
        "/v1/chat/completions/",
        "/V1/chat/completions",
        "/v1/completions\n",
        "/x/v1/models",
    ],
)
def test_what_is_for_operators_is_not(path: str) -> None:
    assert not SERVED.fullmatch(path)


class Engine:
    """Stands where the engine and vLLM's app stand."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.chats = 0
        self.third = asyncio.Event()
        self.healthy = True
        self.status = 200
        self.client = types.SimpleNamespace(check_health=self.check_health)

    async def check_health(self) -> None:
        if not self.healthy:
            raise RuntimeError("dead")

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"vllm"})

    async def chat(self, scope: Any, receive: Any, send: Any) -> None:
        self.chats += 1
        if self.chats == 3:
            self.third.set()
        if self.status >= 400:
            exchange_of(scope).error_kind = f"engine_{self.status}"  # as the endpoint does
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"chat"})


def replica(within_s: float = 30.0, image: bool = True) -> tuple[Any, Engine, Canary]:
    engine = Engine()
    router = Router.__new__(Router)
    router.engine, router.name, router.peers, router.app, router.chat = engine, "m", None, engine.app, engine.chat  # type: ignore[assignment]
    app = build_layers(router, STACK, MODEL)
    router.canary = Canary(app, "m", within_s, image)
    return app, engine, router.canary


async def test_routes() -> None:
    app, engine, _ = replica()
    assert (await call(app, None, {"messages": []})).body == b"chat"
    assert (await call(app, scope_of("GET", "/v1/models"))).body == b"vllm"
    assert (await call(app, scope_of("POST", "/m/v1/chat/completions", JSON, root_path="/m"), {})).body == b"chat"
    for method, path in (("POST", "/scale_elastic_ep"), ("POST", "//v1/chat/completions"), ("GET", "/secret")):
        answer = await call(app, scope_of(method, path, JSON), b"{}" if method == "POST" else b"")
        assert answer.status == 404 and answer.error["code"] == "not_found"
    assert engine.seen == ["/v1/models"] and engine.chats == 2
    await call(app, scope_of("GET", "/v1/chat/completions"))
    assert engine.chats == 2  # vLLM's app says which methods there are


async def test_health() -> None:
    app, engine, _ = replica()
    assert (await call(app, scope_of("GET", "/health"))).status == 200
    engine.healthy = False
    answer = await call(app, scope_of("GET", "/health"))
    assert answer.status == 503 and orjson.loads(answer.body)["reason"] == "RuntimeError"


async def test_ready_means_that_an_image_was_answered() -> None:
    app, engine, canary = replica()
    answer = await call(app, scope_of("GET", "/ready"))
    assert answer.status == 503 and orjson.loads(answer.body)["reason"] == "no image was answered yet"
    await canary.start()
    assert engine.chats == 1
    assert (await call(app, scope_of("GET", "/ready"))).status == 200
    canary.stop()
    canary.answered = time.monotonic() - 31
    assert (await call(app, scope_of("GET", "/ready"))).status == 503
    Admit.gate.draining = True
    canary.answered = time.monotonic()
    assert orjson.loads((await call(app, scope_of("GET", "/ready"))).body) == {"status": "draining"}


async def test_the_canary_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    _, engine, canary = replica(within_s=0.2)
    engine.status = 500
    await canary._ask()
    assert canary.problem == "the canary got status 500"

    async def hang(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(20)

    canary.app = hang
    await canary._ask()
    assert "within 0.2 s" in canary.problem

    async def crash(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError

    canary.app = crash
    await canary._ask()
    assert "RuntimeError" in canary.problem and canary.answered == float("-inf")


async def test_the_canary_watches() -> None:
    _, engine, canary = replica(within_s=0.06)
    await canary.start()
    async with asyncio.timeout(5):
        await engine.third.wait()
    canary.stop()


async def test_a_client_can_be_the_canary() -> None:
    app, _, canary = replica(image=True)
    await call(app, None, canary.body)
    assert canary.answered > 0


async def test_a_replica_ends_with_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("serving.replica.os._exit", ended.append)
    one = Replica(STACK.model_dump(mode="json"), MODEL.name)
    client = types.SimpleNamespace(errored=False)
    one.engine = types.SimpleNamespace(client=client)
    task = asyncio.create_task(one._end_with_the_engine())
    await asyncio.sleep(0.05)
    assert not task.done() and not ended and not Admit.gate.draining
    client.errored = True
    await asyncio.wait_for(task, 10)
    assert ended == [1] and Admit.gate.draining


@pytest.mark.parametrize(("name", "prefix"), [("m", "/m"), ("v1", ""), ("health", ""), ("v1x", "/v1x")])
def test_a_models_name_never_hides_the_api(name: str, prefix: str) -> None:
    assert below(Model(name=name, source="x")) == prefix


# Ray's listener


async def test_on_rays_own_way_an_answer_has_one_request_id_too() -> None:
    async def ray(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"x-request-id", b"a"), (b"x-other", b"1"), (b"X-Request-ID", b"a"), (b"x-other", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    answer = await call(Straight(ray), scope_of("GET", "/v1/models"))
    assert answer.headers == [(b"x-request-id", b"a"), (b"x-other", b"1"), (b"x-other", b"2")]
    assert answer.body == b"ok"


async def test_requests_go_straight_to_the_target() -> None:
    seen: list[tuple[str, str, str]] = []

    def note(name: str) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append((name, scope["path"], scope.get("root_path", "")))

        return app

    layer = Straight(note("ray"))
    assert [middleware.cls for middleware in straight()] == [Straight]
    await layer(scope_of("GET", "/v1/models"), None, None)  # type: ignore[arg-type]
    Straight.target, Straight.prefix = note("ours"), "/m"
    await layer(scope_of("GET", "/m/v1/models"), None, None)  # type: ignore[arg-type]
    await layer(scope_of("GET", "/-/healthz"), None, None)  # type: ignore[arg-type]
    await layer({"type": "lifespan", "path": ""}, None, None)  # type: ignore[arg-type]
    assert seen == [
        ("ray", "/v1/models", ""),
        ("ours", "/m/v1/models", "/m"),
        ("ray", "/-/healthz", ""),
        ("ray", "", ""),
    ]
