"""Series that alerts compare with the clock: when a tenant's last key ends, since when the oldest batch waits."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from serving.keys import Key, last_ends
from serving.layers import start_layers, stop_layers
from serving.metrics import METRICS
from tests.serving.test_batches import House as Batches
from tests.serving.test_batches import line, until
from tests.serving.test_identify import House as Keys


def key(tenant: str, expires: float | None, revoked: float | None = None) -> Key:
    return Key(id="x", salt="", hash="", tenant=tenant, created=0.0, expires=expires, revoked=revoked)


def test_the_last_active_key_counts() -> None:
    keys = [key("a", 200), key("a", 300), key("a", 999, revoked=5), key("b", 200), key("b", None), key("c", 50)]
    assert last_ends(keys, now=100) == {"a": 300}
    assert last_ends([], now=100) == {}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.none() | st.floats(1, 1e6)), max_size=8), st.floats(0, 1e6))
def test_no_tenant_is_said_to_end_that_goes_on(given_: list[tuple[str, float | None]], now: float) -> None:
    keys = [key(tenant, expires) for tenant, expires in given_]
    found = last_ends(keys, now)
    for tenant in "ab":
        active = [one for one in keys if one.tenant == tenant and one.state(now) == "active"]
        ends = [one.expires for one in active if one.expires is not None]
        assert (tenant in found) is (bool(active) and len(ends) == len(active))
        assert tenant not in found or found[tenant] == max(ends)


def value(name: str, **labels: str) -> float | None:
    from prometheus_client import REGISTRY

    return REGISTRY.get_sample_value(name, labels)


async def test_the_series_follows_the_keys(tmp_path: Path) -> None:
    house = Keys(str(tmp_path / "keys.db"))
    end = time.time() + 1000
    text, _ = await house.key("acme", expires=end)
    assert (await house.ask(text)).status == 200
    assert value("fovea_keys_end_seconds", tenant="acme") == end
    again, _ = await house.key("acme")
    assert (await house.ask(again)).status == 200
    assert value("fovea_keys_end_seconds", tenant="acme") is None, "one key does not end"
    METRICS.keys_end.clear()


async def test_the_series_follows_the_batches(tmp_path: Path) -> None:
    house = Batches(tmp_path)
    house.engine.hold = asyncio.Event()
    await start_layers(house.app)
    try:
        begun = time.time()
        work = asyncio.create_task(house.run([line(1)]))
        await until(lambda: bool(value("fovea_batch_oldest_seconds", model="m")))
        assert begun - 1 <= (value("fovea_batch_oldest_seconds", model="m") or 0) <= time.time()
        house.engine.hold.set()
        assert (await work).status == "completed"
        await until(lambda: value("fovea_batch_oldest_seconds", model="m") == 0.0)
    finally:
        await stop_layers(house.app)
