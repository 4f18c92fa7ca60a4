"""The layer recall: bounds, damage, a store that goes away, a disk that is full."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from models.support.errors import UsageError
from serving.errors import StoreDown
from serving.facts import FACTS
from serving.layers import start_layers
from serving.runtime import free_port
from serving.stack import Stack
from tests.serving.asgi import JSON, call, scope_of
from tests.serving.pictures import encode
from tests.serving.test_recall import CHAT, House, about, chat

# bounds and failures


async def test_memory_is_bounded_by_bytes() -> None:
    house = House(memory_bytes=100_000)
    house.engine.answer = chat(text="x" * 9000)
    for number in range(40):
        await house.ask(seed=number)
    assert 80_000 < house.layer.answers.memory.bytes <= 100_000
    assert await house.state(seed=39) == "hit" and await house.state(seed=0) == "miss"
    house.engine.answer = chat(text="x" * 200_000)
    assert [await house.state(seed=100) for _ in range(2)] == ["miss", "miss"]  # larger than all there is
    await house.close()


async def test_the_file_is_bounded_by_bytes(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    house = House(store=str(path), memory_bytes=0, file_bytes=2**20)
    house.engine.answer = chat(text="x" * 20_000)
    for number in range(120):
        await house.ask(seed=number)
    entries, size = await house.layer.answers.shelf.count()
    assert 20 < entries < 60 and size < 2**20 and path.stat().st_size < 2 * 2**20
    assert await house.state(seed=119) == "hit" and await house.state(seed=0) == "miss"
    await house.close()


async def test_large_answers_are_not_kept() -> None:
    house = House(entry_bytes=2000)
    house.engine.answer = chat(text="x" * 3000)
    assert [await house.state() for _ in range(2)] == ["miss", "miss"]
    await house.close()


async def test_a_damaged_entry_is_a_miss(location: str, request: pytest.FixtureRequest) -> None:
    house = House(store=location)
    assert await house.state() == "miss"
    house.layer.answers.memory.entries.clear()
    if location.startswith("valkey"):
        client = request.getfixturevalue("valkey_server").client()
        (key,) = client.keys(b"fovea:recall:*")
        client.set(key, client.get(key).replace(b"answer 1", b"answer 7"))
    else:
        with sqlite3.connect(location) as database:
            database.execute("UPDATE answers SET blob = replace(blob, 'answer 1', 'answer 7')")
            database.execute("UPDATE answers SET blob = cast(blob AS BLOB)")
    answer = await house.ask()
    assert answer.header(b"x-fovea-cache") == b"miss" and b"answer 7" not in answer.body
    await house.close()


async def test_a_store_that_goes_away_is_a_miss_and_is_told(monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    house = House(store=location, memory_bytes=0)

    async def down(*args: Any) -> Any:
        raise StoreDown("gone")

    for name in ("get", "put", "generations"):
        monkeypatch.setattr(house.layer.answers.shelf, name, down)
    assert [await house.state() for _ in range(3)] == ["miss"] * 3
    assert "memory only" in FACTS.degraded["recall"]
    monkeypatch.undo()
    house.layer.answers.closed_until = 0.0
    assert [await house.state() for _ in range(2)] == ["miss", "hit"] and "recall" not in FACTS.degraded
    await house.close()


async def test_a_full_disk_costs_an_answer_nothing(tmp_path: Path) -> None:
    house = House(store=str(tmp_path / "r.db"), memory_bytes=0)
    await house.ask(seed=0)
    shelf: Any = house.layer.answers.shelf
    pages = shelf.writer.execute("PRAGMA page_count").fetchone()[0]
    shelf.writer.execute(f"PRAGMA max_page_count = {pages}")  # as SQLite reports ENOSPC: "database or disk is full"
    house.engine.answer = chat(text="x" * 50_000)
    answers = [await house.ask(seed=1) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200] and "full" in FACTS.degraded["recall"]
    house.layer.answers.closed_until = 0.0
    assert await house.state(seed=0) == "hit"
    await house.close()


async def test_a_replica_without_its_store_does_not_start_unless_told(tmp_path: Path) -> None:
    model = {"source": str(tmp_path)}
    (tmp_path / "config.json").write_text("{}")
    url = f"valkey://127.0.0.1:{free_port()}/0"
    house = House(model, store=url)
    with pytest.raises(UsageError) as caught:
        await start_layers(house.app)
    assert caught.value.field == "recall.store"
    relaxed = House(model, store=url, on_failure="open")
    await start_layers(relaxed.app)
    assert "memory only" in FACTS.degraded["recall"]
    assert [await relaxed.state() for _ in range(2)] == ["miss", "hit"]  # from the replica's own memory
    for one in (house, relaxed):
        await one.close()


def test_recall_needs_media() -> None:
    with pytest.raises(ValueError, match="needs the section `media`"):
        Stack.model_validate({"models": [{"name": "m", "source": "x"}], "recall": {}, "media": None})


async def test_the_canary_always_asks_the_engine() -> None:
    house = House()
    for _ in range(3):
        scope = scope_of("POST", CHAT, JSON, **{"fovea.canary": True})
        picture = Image.new("RGB", (8, 8))
        assert (await call(house.app, scope, {"messages": about(encode(picture)), "temperature": 0})).status == 200
    assert len(house.engine.asked) == 3
    await house.close()
