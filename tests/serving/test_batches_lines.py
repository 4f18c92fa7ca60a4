"""Batches: two replicas, kill -9, and whatever stands in a line."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batches.runner import read_line
from serving.batches.store import File, Store, new_id
from serving.layers import start_layers, stop_layers
from serving.layers.batches import count_lines
from tests.serving.test_batches import CHAT, ROOT, House, line

# replicas


async def test_two_replicas_run_a_batch_once(tmp_path: Path) -> None:
    houses = [House(tmp_path / "b", inside=2) for _ in range(2)]
    for house in houses:
        await start_layers(house.app)
    batch = await houses[0].run([line(n, f"q{n}") for n in range(60)])
    asked = houses[0].engine.asked + houses[1].engine.asked
    assert batch.request_counts.completed == 60 and set(asked.values()) == {1}
    for house in houses:
        await stop_layers(house.app)


async def test_a_file_of_100_000_lines_is_never_in_memory(tmp_path: Path) -> None:
    """One replica has answered nearly all of it; another goes on, with less memory than the file has bytes."""
    one, two, lines, left = House(tmp_path / "b"), House(tmp_path / "b"), 100_000, 40
    await start_layers(one.app)
    assert one.layer.runner.task is not None
    one.layer.runner.task.cancel()  # it takes requests, but runs nothing
    file = File(new_id("file-"), "default", "in.jsonl", "batch", 0, time.time())
    path = one.layer.store.path(file.id)
    with path.open("w") as out:
        for number in range(lines):
            out.write(json.dumps(line(number, f"q{number}", pad="x" * 700)) + "\n")
    await one.layer.runner.call(lambda: one.layer.store.add_file(file))
    batch = await one.client().batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    answered = ((number, False, b'{"custom_id": "r"}') for number in range(1, lines + 1) if number % (lines // left))
    for rows in iter(lambda: list(itertools.islice(answered, 5000)), []):
        await one.layer.runner.call(partial(one.layer.store.add_results, batch.id, rows))
    tracemalloc.start()
    await start_layers(two.app)
    ended = await two.ended(batch.id)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ended.request_counts.model_dump() == {"total": lines, "completed": lines, "failed": 0}
    assert sum(two.engine.asked.values()) == left and not one.engine.asked
    assert path.stat().st_size > 80e6 and peak < 40e6, (path.stat().st_size, peak)
    with one.layer.store.path(ended.output_file_id).open("rb") as output:
        assert sum(1 for _ in output) == lines
    for house in (one, two):
        await stop_layers(house.app)


SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from tests.serving.test_batches import House
from serving.layers import start_layers
class Slow:
    async def __call__(self, scope, receive, send):
        from serving.exchange import exchange_of
        text = exchange_of(scope).json()["messages"][0]["content"]
        await asyncio.sleep(0.02)
        body = json.dumps({"by": sys.argv[2], "choices": [{"message": {"content": "re: " + text}}]}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
async def main():
    house = House(Path(sys.argv[1]), inside=4)
    house.layer.runner.app.app.app.app = Slow()
    await start_layers(house.app)
    print("up", flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_kill_9_loses_no_line_and_answers_none_twice(tmp_path: Path) -> None:
    """Three processes in turn are killed in the middle of one batch; the fourth ends it."""
    folder = tmp_path / "b"
    store = Store(str(folder))
    house = House(folder)
    content = "\n".join(json.dumps(line(n, f"q{n}")) for n in range(600)).encode()

    async def submit() -> str:
        house.layer.runner.store = store
        client = house.client()
        file = await client.files.create(file=("in.jsonl", content), purpose="batch")
        return (await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")).id

    batch_id = asyncio.run(submit())
    answered = [0]
    for life in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(folder), str(life)], cwd=ROOT, stdout=subprocess.PIPE
        )
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                batch = store.batch(batch_id)
                assert batch is not None
                done = sum(store.counts(batch_id))
                if (life < 3 and done >= answered[-1] + 100) or batch.status == "completed":
                    break
                time.sleep(0.02)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        answered.append(sum(store.counts(batch_id)))
    batch = store.batch(batch_id)
    assert batch is not None and batch.status == "completed" and batch.output and batch.errors is None
    results = [json.loads(text) for text in store.path(batch.output).read_text().splitlines()]
    assert [one["custom_id"] for one in results] == [f"r-{n}" for n in range(600)]
    lives = Counter(one["response"]["body"]["by"] for one in results)
    assert len(lives) == 4, lives  # each life has answered some, and what one has answered nobody else has
    for life in range(3):
        assert sum(lives[str(n)] for n in range(life + 1)) == answered[life + 1]
    store.close()


# lines


@given(st.binary(max_size=200))
def test_no_line_breaks_the_reading(data: bytes) -> None:
    try:
        custom, body = read_line(data, CHAT, 150)
    except ValueError:
        return
    assert custom and json.loads(body) is not None


json_values = st.recursive(st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5), lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["custom_id", "body", "url", "method", "x"]), inner)
), max_leaves=8)  # fmt: skip


@given(json_values)
def test_no_json_breaks_the_reading(value: Any) -> None:
    try:
        read_line(json.dumps(value).encode(), CHAT, 10_000)
    except ValueError as error:
        assert str(error)


@given(st.lists(st.sampled_from([b"{}", b"", b"  ", b"x" * 300_000]), max_size=8), st.booleans())
def test_lines_are_counted_without_the_empty_ones(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], ends: bool
) -> None:
    class Fixed:
        def __init__(self, path: Path):
            self.where = path

        def path(self, file_id: str) -> Path:
            return self.where

    path = tmp_path_factory.mktemp("count") / "f"
    path.write_bytes(b"\n".join(lines) + (b"\n" if ends else b""))
    file: Any = type("F", (), {"id": "f"})
    store: Any = Fixed(path)
    assert count_lines(store, file) == sum(bool(one.strip()) for one in lines)
