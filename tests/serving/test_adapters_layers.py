"""LoRA modules and the layers: who may use which, and that none answers for another."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from serving.exchange import exchange_of
from serving.keys import make_key, open_keys
from serving.layers import build_layers, layers_of, start_layers, stop_layers
from serving.layers.adapters import Choose
from serving.layers.money import Count
from serving.layers.recall import Recall
from serving.money import Money
from serving.parts import own_part
from serving.recall.version import version_of
from serving.stack import Model, Stack, parse_stack
from tests.serving.asgi import JSON, Answer, call, scope_of
from tests.serving.lora import write_adapter
from tests.serving.test_adapters import BASE, stack

CHAT = "/v1/chat/completions"


class Engine:
    """Says which adapter a request was for, as a chat answer."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = exchange_of(scope)
        if scope["method"] == "GET":
            listed = {"object": "list", "data": [{"id": name} for name in ("base", "one", "two")]}
            body = json.dumps(listed).encode()
        else:
            self.asked.append(exchange.adapter)
            message = {"role": "assistant", "content": exchange.adapter or "base"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            usage = {"prompt_tokens": 3, "completion_tokens": 1}
            body = json.dumps({"choices": [choice], "usage": usage}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class House:
    """The layers of one model with two adapters, and a key for each kind of tenant."""

    TENANTS = ({"name": "all"}, {"name": "first", "models": ["one"]}, {"name": "plain", "models": ["base", "other"]},
               {"name": "elsewhere", "models": ["three"]})  # fmt: skip

    def __init__(self, location: str, **more: Any):
        self.engine, self.location, self.keys = Engine(), location, dict[str, str]()
        keys = {"identify": {"keys": location, "tenants": list(self.TENANTS)}}
        whole = parse_stack(stack(metrics=False, **keys, **more)).model_dump(mode="json")
        self.stack = Stack.model_validate(own_part(whole, "base"))
        self.app = build_layers(self.engine, self.stack, self.stack.models[0])
        recalls = [layer for layer in layers_of(self.app) if isinstance(layer, Recall)]
        self.recall = recalls[0] if recalls else None

    async def start(self) -> None:
        store = open_keys(self.location)
        for tenant in self.TENANTS:
            text, key = make_key(str(tenant["name"]), role="operator")
            self.keys[str(tenant["name"])] = text
            await store.put(key)
        await store.close()
        await start_layers(self.app)
        if self.recall is not None:  # no checkpoint is here to take them from
            self.recall.versions = {"": "v", "one": "v1", "two": "v2"}

    async def ask(
        self, who: str, name: str | None, path: str = CHAT, kind: tuple[bytes, bytes] = JSON, **body: Any
    ) -> Answer:
        headers = (kind, (b"authorization", f"Bearer {self.keys[who]}".encode()))
        whole = {"messages": [{"role": "user", "content": "?"}], "temperature": 0, **body}
        whole |= {"model": name} if name is not None else {}
        answer = await call(self.app, scope_of("POST", path, *headers), whole)
        while self.recall is not None and self.recall.writes:
            await asyncio.gather(*self.recall.writes)
        return answer

    async def get(self, who: str, path: str) -> Answer:
        return await call(self.app, scope_of("GET", path, (b"authorization", f"Bearer {self.keys[who]}".encode())))


@pytest.fixture
async def house(tmp_path: Path) -> Any:
    one = House(str(tmp_path / "keys.db"))
    await one.start()
    yield one
    await stop_layers(one.app)


@pytest.mark.parametrize(
    ("who", "allowed"),
    [("all", ["base", "one", "two"]), ("first", ["one"]), ("plain", ["base"]), ("elsewhere", [])],
)
async def test_each_tenant_may_use_what_it_was_given(house: House, who: str, allowed: list[str]) -> None:
    for name in ("base", "one", "two"):
        answer = await house.ask(who, name)
        if name in allowed:
            assert json.loads(answer.body)["choices"][0]["message"]["content"] == name
        else:
            assert (answer.status, answer.error["code"]) == (403, "model_not_allowed")
            assert not allowed or (answer.error["param"] == "model" and repr(name) in answer.error["message"])
    # without a name, or with one that nobody has, it is the model's own
    for unknown in (None, "", "nobody", "three"):
        assert (await house.ask(who, unknown)).status == (200 if "base" in allowed else 403), unknown
    listed = await house.get(who, "/v1/models")
    if not allowed:
        assert listed.status == 403
        return
    assert [one["id"] for one in json.loads(listed.body)["data"]] == allowed
    assert listed.header(b"content-length") == str(len(listed.body)).encode()
    for name in ("base", "one", "two"):
        assert (await house.get(who, f"/v1/models/{name}")).status == (200 if name in allowed else 403)


async def test_a_form_names_its_model_unseen(house: House) -> None:
    form = (b"content-type", b"multipart/form-data; boundary=x")
    found = {who: (await house.ask(who, "one", "/v1/audio/transcriptions", form)).status for who in house.keys}
    assert found == {"all": 200, "first": 403, "plain": 403, "elsewhere": 403}


async def test_a_purge_may_name_what_its_tenant_may_not_use(tmp_path: Path) -> None:
    one = House(str(tmp_path / "keys.db"), recall={"store": str(tmp_path / "answers.db")})
    await one.start()
    headers = (JSON, (b"authorization", f"Bearer {one.keys['first']}".encode()))
    answer = await call(one.app, scope_of("POST", "/fovea/cache/purge", *headers), {"model": "two"})
    assert (answer.status, json.loads(answer.body)) == (200, {"purged": ["model:two"]})
    await stop_layers(one.app)


async def test_no_adapter_answers_for_another_from_memory(tmp_path: Path) -> None:
    one = House(str(tmp_path / "keys.db"), recall={"store": str(tmp_path / "answers.db")})
    await one.start()

    async def states() -> list[tuple[str, str]]:
        answers = [(name, await one.ask("all", name)) for name in ("base", "one", "two")]
        assert [json.loads(a.body)["choices"][0]["message"]["content"] for _, a in answers] == ["base", "one", "two"]
        return [(name, (a.header(b"x-fovea-cache") or b"").decode()) for name, a in answers]

    assert dict(await states()) == {"base": "miss", "one": "miss", "two": "miss"}
    assert dict(await states()) == {"base": "hit", "one": "hit", "two": "hit"}
    await one.recall.answers.purge("model:one")  # type: ignore[union-attr]
    assert dict(await states()) == {"base": "hit", "one": "miss", "two": "hit"}
    await one.recall.answers.purge("version:v2")  # type: ignore[union-attr]
    assert dict(await states()) == {"base": "hit", "one": "hit", "two": "miss"}
    await one.recall.answers.purge("model:base")  # type: ignore[union-attr]
    assert dict(await states()) == {"base": "miss", "one": "miss", "two": "miss"}
    await stop_layers(one.app)


def test_a_version_is_of_the_adapter_and_of_what_it_stands_on(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    folders = [write_adapter(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "two"))]

    def versions(*chosen: Path) -> list[str]:
        adapters = [{"name": path.name, "source": str(path)} for path in chosen]
        made = Model.model_validate({"name": "m", "source": str(tmp_path / "base"), "adapters": adapters})
        return [version_of(made), *(version_of(made, adapter) for adapter in made.adapters)]

    none, both, one = versions(), versions(*folders), versions(folders[0])
    assert len({*none, *both}) == 4 and one == both[:2]  # another one beside it changes nothing
    write_adapter(folders[0], seed=7)
    again = versions(*folders)
    assert again[0] == both[0] and again[1] != both[1] and again[2] == both[2]
    (tmp_path / "base" / "config.json").write_text('{"a": 1}')
    assert not set(again) & set(versions(*folders))


async def test_batch_requests_share_a_picture_but_no_prompt_with_another_adapters(tmp_path: Path) -> None:
    one = House(str(tmp_path / "keys.db"), lane={"window": "auto"})
    await one.start()
    window = next(layer for layer in layers_of(one.app) if hasattr(layer, "window")).window
    text = [{"role": "user", "content": "x" * 500}]
    for name in ("base", "one", "two"):
        assert (await one.ask("all", name, messages=text, service_tier="flex")).status == 200
    assert window.shared == 0
    await one.ask("all", "two", messages=text, service_tier="flex")
    assert window.shared > 0
    await stop_layers(one.app)


async def test_dollars_and_requests_are_counted_under_the_adapters_name(monkeypatch: pytest.MonkeyPatch) -> None:
    money = {"usd_per_hour": "3.6", "capacity_rps": "1"}
    whole = parse_stack(
        {
            "models": [{**BASE, "name": "counted", "adapters": [{"name": "counted-one", "source": "a/b"}]}],
            "money": money,
        }
    )
    assert whole.money is not None
    registry = CollectorRegistry()
    monkeypatch.setattr(Count, "money", {"counted": Money(whole.money, "counted", registry=registry)})
    app = build_layers(Engine(), whole, whole.models[0])
    for name in ("counted", "counted-one", "counted-one"):
        body: dict[str, Any] = {"model": name, "messages": [], "temperature": 0}
        assert (await call(app, scope_of("POST", CHAT, JSON), body)).status == 200
    for name, count in (("counted", 1), ("counted-one", 2)):
        labels = {"model": name, "route": CHAT, "status": "2xx"}
        assert REGISTRY.get_sample_value("fovea_requests_total", labels) == count
        dollars = registry.get_sample_value("fovea_usd_total", {"model": name, "tenant": "default"})
        assert dollars == pytest.approx(0.001 * count)
    await stop_layers(app)


def test_there_is_no_such_layer_without_adapters() -> None:
    plain = parse_stack({"models": [{**BASE, "adapters": []}]})
    assert not any(isinstance(layer, Choose) for layer in layers_of(build_layers(Engine(), plain, plain.models[0])))
