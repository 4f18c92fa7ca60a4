"""The layer quota: the queue, tenants and replicas, a store that is not there, the stack file."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from models.support.errors import UsageError
from serving.errors import StoreDown
from serving.facts import FACTS
from serving.keys import make_key, open_keys
from serving.layers import build_layers, start_layers, stop_layers
from serving.layers.quota import deadline_of
from serving.runtime import free_port
from serving.stack import Stack
from tests.serving.asgi import JSON, call, scope_of
from tests.serving.test_admit_tenants import CHAT, Engine, House, refused, until

# the queue


async def test_a_request_waits_for_its_turn_within_its_deadline(store: str) -> None:
    house = House({"concurrent": 1}, store=store, queue_s=10)
    house.engine.hold = asyncio.Event()
    tasks = [asyncio.create_task(house.ask(number=0))]
    await until(lambda: bool(house.engine.asked))
    for number in (1, 2, 3):
        tasks.append(asyncio.create_task(house.ask(number=number)))
        await until(lambda number=number: house.layer.lines["default"].waiting == number)  # type: ignore[misc]
    await asyncio.sleep(0.05)
    assert len(house.engine.asked) == 1
    house.engine.hold.set()
    answers = await asyncio.gather(*tasks)
    assert [answer.status for answer in answers] == [200] * 4
    assert [body["number"] for body in house.engine.asked] == [0, 1, 2, 3]  # in the order of arrival
    assert answers[0].header(b"x-fovea-queued-ms") is None
    assert int(answers[3].header(b"x-fovea-queued-ms") or 0) >= 25
    await house.close()


async def test_a_full_queue_and_a_short_deadline_are_429s_at_once(store: str) -> None:
    house = House({"concurrent": 1}, store=store, queue_s=10, queue=1)
    house.engine.hold = asyncio.Event()
    tasks = [asyncio.create_task(house.ask()) for _ in range(2)]
    await until(lambda: bool(house.engine.asked and house.layer.lines["default"].waiting))
    refused(await call(house.app, scope_of("POST", CHAT, JSON), {}), "concurrent")
    house.engine.hold.set()
    assert [answer.status for answer in await asyncio.gather(*tasks)] == [200, 200]
    house.engine.hold = asyncio.Event()
    task = asyncio.create_task(house.ask())
    await until(lambda: len(house.engine.asked) >= 3)
    hurried = scope_of("POST", CHAT, JSON, (b"x-fovea-deadline-ms", b"60"))
    refused(await call(house.app, hurried, {}), "concurrent")
    assert house.layer.lines["default"].waiting == 0
    house.engine.hold.set()
    assert (await task).status == 200
    await house.close()


async def test_nobody_waits_for_what_comes_too_late() -> None:
    house = House({"requests_per_minute": 1}, queue_s=5)
    assert (await house.ask()).status == 200
    refused(await house.ask(), "requests_per_minute")  # a minute away: told at once
    await house.close()


def test_deadlines() -> None:
    for given, expected in ((b"250", 0.25), (b"99999999999", 2.0), (b"-1", 2.0), (b"x", 2.0), (b"", 2.0)):
        assert deadline_of(scope_of("POST", CHAT, (b"x-fovea-deadline-ms", given)), 2.0) == expected


# tenants and replicas


async def test_tenants_have_their_own_and_replicas_share_them(location: str, tmp_path: Any) -> None:
    keys = str(tmp_path / "keys.db")
    tenants: list[dict[str, Any]] = [
        {"name": "small", "limits": {"requests_per_minute": 3}},
        {"name": "usual"},
        {"name": "free"},
    ]
    tenants[2]["limits"] = {}
    data: dict[str, Any] = {"models": [{"name": "quota-test", "source": "x", "replicas": 2}]}
    data |= {"identify": {"keys": keys, "tenants": tenants}}
    data |= {"admit": {"default": {"requests_per_minute": 5}, "store": location, "queue_s": 0}}
    stack = Stack.model_validate(data)
    holder, bearer = open_keys(keys), {}
    for tenant in ("small", "usual", "free"):
        text, key = make_key(tenant)
        await holder.put(key)
        bearer[tenant] = (b"authorization", f"Bearer {text}".encode())
    replicas = [build_layers(Engine(), stack, stack.models[0]) for _ in range(2)]
    for replica in replicas:
        await start_layers(replica)
    passed = {}
    for tenant, header in bearer.items():
        answers = [await call(replicas[n % 2], scope_of("POST", CHAT, JSON, header), {}) for n in range(10)]
        passed[tenant] = sum(answer.status == 200 for answer in answers)
    assert passed == {"small": 3, "usual": 5, "free": 10}
    for replica in replicas:
        await stop_layers(replica)


# a store that is not there


async def test_a_replica_without_its_store_does_not_start_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"valkey://127.0.0.1:{free_port()}/0"
    house = House({"requests_per_minute": 1}, store=url)
    with pytest.raises(UsageError) as caught:
        await start_layers(house.app)
    assert caught.value.field == "admit.store" and caught.value.fix
    answer = await house.ask()
    assert answer.status == 503 and answer.error["code"] == "limits_unavailable" and answer.header(b"retry-after")
    relaxed = House({"requests_per_minute": 1}, store=url, on_failure="open")
    await start_layers(relaxed.app)
    assert [(await relaxed.ask()).status for _ in range(3)] == [200] * 3
    assert "limits are not counted" in FACTS.degraded["admit"]
    await house.close()
    await relaxed.close()


async def test_a_store_that_comes_back_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House({"requests_per_minute": 2}, on_failure="open")
    take = house.layer.store.take

    async def down(ask: Any) -> Any:
        raise StoreDown("gone")

    monkeypatch.setattr(house.layer.store, "take", down)
    assert [(await house.ask()).status for _ in range(4)] == [200] * 4 and FACTS.degraded
    monkeypatch.setattr(house.layer.store, "take", take)
    house.layer.closed_until = 0.0
    assert [(await house.ask()).status for _ in range(3)] == [200, 200, 429] and not FACTS.degraded
    await house.close()


# the stack file


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"admit": {"default": {"requests_per_minute": 0}}}, "greater than or equal to 1"),
        ({"admit": {"default": {"concurrent": 0}}}, "greater than or equal to 1"),
        ({"admit": {"default": {"usd_per_month": "0"}}}, "greater than 0"),
        ({"admit": {"default": {"usd_per_month": "5"}}}, "needs the section `money`"),
        ({"admit": {"default": {"image_tokens_per_minute": 5}}, "media": None}, "needs the section `media`"),
        ({"admit": {"store": "memory"}, "models": [{"name": "m", "source": "x", "replicas": 2}]}, "counts in one"),
    ],
)
def test_wrong_sections(more: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Stack.model_validate({"models": [{"name": "m", "source": "x"}], **more})


def test_the_price_of_a_request_is_exact() -> None:
    house = House({"usd_per_month": "0.01"})
    assert Decimal(house.layer.nano) == Decimal(10) ** 6


async def test_without_limits_or_for_a_probe_nothing_is_counted() -> None:
    house = House({"requests_per_minute": 1})
    probe = scope_of("POST", CHAT, JSON, **{"fovea.canary": True})
    assert [(await call(house.app, probe, {})).status for _ in range(3)] == [200] * 3
    assert [(await call(house.app, scope_of("GET", "/v1/models"))).status for _ in range(3)] == [
        400
    ] * 3  # the engine of these tests reads a body
    await house.close()
