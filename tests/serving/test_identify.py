"""The layer identify: keys in every form clients send them, roles, tenants, and a key store that goes away."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, generate_latest

from models.support.errors import UsageError
from serving.errors import StoreDown
from serving.exchange import exchange_of
from serving.keys import Key, Role, make_key, open_keys, revoked_at
from serving.layers import build_layers, layers_of, start_layers, stop_layers
from serving.layers.identify import Identify, take_key
from serving.stack import Stack
from tests.serving.asgi import JSON, Answer, call, scope_of

CHAT = "/v1/chat/completions"
seen: list[dict[str, Any]] = []


async def inner(scope: Any, receive: Any, send: Any) -> None:
    """Answer 200 and note what was let in."""
    exchange = exchange_of(scope)
    seen.append({"headers": list(scope["headers"]), "tenant": exchange.tenant, "identity": exchange.identity})
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


@pytest.fixture(autouse=True)
def nothing_seen() -> Iterator[None]:
    seen.clear()
    yield


class House:
    """A stack with keys."""

    def __init__(self, location: str, metrics: bool = False, **section: Any):
        tenants = [{"name": "acme"}, {"name": "narrow", "models": ["other"]}]
        models = [{"name": "identify-test", "source": "x"}, {"name": "other", "source": "x"}]
        data: dict[str, Any] = {"models": models, "media": None, "metrics": metrics}
        data["identify"] = {"keys": location, "tenants": tenants, "refresh_s": 1e-6, **section}
        self.stack = Stack.model_validate(data)
        self.store = open_keys(location)
        self.app = build_layers(inner, self.stack, self.stack.models[0])
        self.layer = next(layer for layer in layers_of(self.app) if isinstance(layer, Identify))

    async def key(self, tenant: str = "acme", role: Role = "caller", **more: Any) -> tuple[str, Key]:
        text, key = make_key(tenant, role=role, **more)
        await self.store.put(key)
        return text, key

    async def ask(self, key: str | None, path: str = CHAT, method: str = "POST", **more: Any) -> Answer:
        headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
        return await call(self.app, scope_of(method, path, JSON, *headers, **more), b"{}")


@pytest.fixture
async def house(location: str) -> Any:
    one = House(location)
    await one.key("acme", label="so that there is a store")
    await start_layers(one.app)
    yield one
    await stop_layers(one.app)
    await one.store.close()


async def test_a_key_becomes_a_tenant_and_is_gone_behind(house: House) -> None:
    text, key = await house.key(lane="batch")
    for name, value in (
        (b"authorization", f"Bearer {text}"),
        (b"authorization", f"bearer  {text} "),
        (b"authorization", text),
        (b"x-api-key", text),
        (b"api-key", text),
    ):
        answer = await call(house.app, scope_of("POST", CHAT, JSON, (name, value.encode())), b"{}")
        assert answer.status == 200, (name, value)
        got = seen.pop()
        assert got["tenant"] == "acme" and got["identity"].key_id == key.id and got["identity"].lane == "batch"
        assert got["headers"] == [JSON]


async def test_every_way_to_be_nobody_is_a_401(house: House) -> None:
    text, _ = await house.key()
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")
    for key, code in (
        (None, "no_key"),
        ("", "no_key"),
        ("none", "bad_key"),
        (wrong, "bad_key"),
        (make_key("acme")[0], "bad_key"),
        (text + "x", "bad_key"),
        ("\xff" * 40, "bad_key"),
        ((await house.key(expires=1.0))[0], "key_expired"),
    ):
        answer = await house.ask(key)
        assert (answer.status, answer.error["code"]) == (401, code), key
        assert answer.header(b"www-authenticate") == b"Bearer" and answer.error["type"] == "authentication_error"
        assert not key or key not in answer.body.decode()
    assert not seen


async def test_the_first_header_in_the_order_counts(house: House) -> None:
    text, _ = await house.key()
    headers = ((b"x-api-key", text.encode()), (b"authorization", b"Bearer wrong"))
    assert (await call(house.app, scope_of("POST", CHAT, JSON, *headers), b"{}")).status == 401
    assert take_key([(b"a", b"1")]) == ("", [(b"a", b"1")])


async def test_a_revoked_key_ends_and_a_new_one_begins_without_a_restart(house: House) -> None:
    text, key = await house.key()
    assert (await house.ask(text)).status == 200
    await house.store.put(revoked_at(key, 1.0))
    answer = await house.ask(text)
    assert (answer.status, answer.error["code"]) == (401, "key_revoked")


ROUTES = {
    CHAT: "call",
    "/v1/models": "call",
    "/metrics": "observe",
    "/metrics/": "observe",
    "/load": "observe",
    "/fovea/cache/purge": "operate",
    "/docs": "call",
}
MAY = {
    "caller": {"call"},
    "operator": {"call", "observe", "operate"},
    "auditor": {"observe"},
    "admin": {"call", "observe", "operate"},
}


@pytest.mark.parametrize("role", MAY)
async def test_roles(house: House, role: Role) -> None:
    text, _ = await house.key(role=role)
    for path, permission in ROUTES.items():
        for prefix in ("", "/identify-test"):
            answer = await house.ask(text, prefix + path, "GET", root_path=prefix)
            assert answer.status == (200 if permission in MAY[role] else 403), (path, prefix)
            if answer.status == 403:
                assert answer.error["code"] == "role_not_allowed"


async def test_probes_need_no_key_and_metrics_do(house: House) -> None:
    for path in ("/health", "/ready"):
        assert (await house.ask(None, path, "GET")).status == 200
    assert (await house.ask(None, "/metrics", "GET")).status == 401
    for path in ("/healthx", "/v1/health", "//health", "/health/x"):
        assert (await house.ask(None, path, "GET")).status == 401


async def test_a_websocket_is_no_way_around(house: House) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    await house.app({"type": "websocket", "path": "/v1/realtime", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"] and not seen


async def test_models_per_tenant(house: House) -> None:
    text, _ = await house.key("narrow")
    answer = await house.ask(text)
    assert (answer.status, answer.error["code"]) == (403, "model_not_allowed")


async def test_a_key_of_a_tenant_that_is_gone(house: House) -> None:
    text, _ = await house.key("gone")
    answer = await house.ask(text)
    assert (answer.status, answer.error["code"]) == (403, "unknown_tenant")


async def test_the_canary_needs_no_key_and_nobody_can_pose_as_it(house: House) -> None:
    scope = scope_of("POST", CHAT, JSON, **{"fovea.canary": True})
    assert (await call(house.app, scope, b"{}")).status == 200
    posing = scope_of("POST", CHAT, JSON, (b"fovea.canary", b"1"), (b"x-request-id", b"canary"))
    assert (await call(house.app, posing, b"{}")).status == 401


class Broken:
    """A key store that can be switched off."""

    def __init__(self, store: Any):
        self.store, self.down = store, False
        self.slow: asyncio.Event | None = None

    async def snapshot(self, known: int | None) -> Any:
        if self.slow is not None:
            await self.slow.wait()
        if self.down:
            raise StoreDown("gone")
        return await self.store.snapshot(known)


async def test_known_keys_work_on_while_the_store_is_gone(house: House, caplog: pytest.LogCaptureFixture) -> None:
    text, _ = await house.key()
    assert (await house.ask(text)).status == 200
    broken: Any = Broken(house.store)
    house.layer.ring.store, broken.down = broken, True
    assert (await house.ask(text)).status == 200
    assert (await house.ask(make_key("acme")[0])).status == 503  # perhaps one made a moment ago: who knows
    broken.slow = asyncio.Event()  # it does not even refuse: nobody waits for it
    for _ in range(3):
        assert (await house.ask(text)).status == 200
    broken.slow.set()
    await asyncio.sleep(0)
    house.layer.ring.section = house.layer.ring.section.model_copy(update={"stale_s": 0.0})
    answer = await house.ask(text)
    assert (answer.status, answer.error["code"]) == (503, "keys_unavailable") and answer.header(b"retry-after")
    broken.down = False
    assert (await house.ask(text)).status == 200
    house.layer.ring.store = house.store


async def test_a_replica_without_keys_does_not_start(tmp_path: Path) -> None:
    one = House(str(tmp_path / "absent.db"))
    with pytest.raises(UsageError) as caught:
        await start_layers(one.app)
    assert caught.value.field == "identify.keys"


async def test_keys_are_in_no_log_no_metric_and_no_error(
    location: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    one = House(location, metrics=True)
    text, _ = await one.key()
    expired, _ = await one.key(expires=1.0)

    async def crash(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError(str(scope["headers"]))

    app = build_layers(crash, one.stack, one.stack.models[0])
    bodies = []
    for key in (text, expired, text[:-1], make_key("acme")[0]):
        for target in (app, one.app):
            for name in (b"authorization", b"x-api-key", b"api-key"):
                answer = await call(target, scope_of("POST", CHAT, JSON, (name, key.encode())), b"{}")
                bodies.append(answer.body.decode())
    said = caplog.text + "".join(capfd.readouterr()) + generate_latest(REGISTRY).decode() + "".join(bodies)
    assert "identify-test" in said and "Internal error" in said
    for key in (text, expired):
        assert key[20:] not in said
    await stop_layers(one.app)
    await stop_layers(app)
    await one.store.close()


def test_an_address_for_everybody_needs_keys_or_the_flag() -> None:
    data: dict[str, Any] = {"models": [{"name": "m", "source": "x"}], "listen": {"host": "0.0.0.0"}}
    with pytest.raises(ValueError, match="identify"):
        Stack.model_validate(data)
    assert Stack.model_validate({**data, "identify": {"tenants": [{"name": "acme"}]}}).identify
    assert Stack.model_validate({**data, "listen": {"host": "0.0.0.0", "public": True}}).identify is None


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"tenants": []}, "at least 1"),
        ({"tenants": [{"name": "a"}, {"name": "a"}]}, "listed twice"),
        ({"tenants": [{"name": "a", "models": ["absent"]}]}, "absent"),
        ({"tenants": [{"name": "a b"}]}, "pattern"),
        ({"tenants": [{"name": "a"}], "keys": "postgres://x"}, "kind of store"),
        ({"tenants": [{"name": "a", "limits": {"concurrent": 1}}]}, "add the section `admit`"),
    ],
)
def test_wrong_sections(section: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Stack.model_validate({"models": [{"name": "m", "source": "x"}], "identify": section})


def test_without_the_section_there_is_no_layer() -> None:
    stack = Stack.model_validate({"models": [{"name": "m", "source": "x"}]})
    assert not any(isinstance(layer, Identify) for layer in layers_of(build_layers(inner, stack, stack.models[0])))
    assert json.loads(stack.model_dump_json())["identify"] is None
