"""Files and batches: OpenAI's own client against the layer, broken lines, limits, cancelling, kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import httpx
import httpx2
import openai
import pytest

from models.support.errors import UsageError
from serving.batches.store import SCHEMA, Store
from serving.errors import ApiError
from serving.exchange import exchange_of
from serving.keys import make_key, open_keys
from serving.layers import build_layers, layers_of, start_layers, stop_layers
from serving.layers.batches import BatchesApi
from serving.stack import Stack

CHAT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
ROOT = Path(__file__).resolve().parents[2]


class Engine:
    """Answers with what was asked; fails as told; holds when told."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.tenants: set[str] = set()
        self.headers: list[Any] = []
        self.refuse = 0
        self.hold: asyncio.Event | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = exchange_of(scope)
        text = exchange.json()["messages"][0]["content"]
        self.asked[text] += 1
        self.tenants.add(exchange.tenant)
        self.headers = scope["headers"]
        if self.hold is not None:
            await self.hold.wait()
        if self.refuse:
            self.refuse -= 1
            raise ApiError(429, "Slow down.", kind="requests_per_minute", retry_after=0)
        if text == "bad":
            raise ApiError(400, "No.", kind="bad_field")
        if text == "crash":
            raise RuntimeError("x")
        body = json.dumps({"choices": [{"message": {"content": f"re: {text}"}}]}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


class House:
    """One replica."""

    def __init__(self, folder: Path, keys: str | None = None, **section: Any):
        self.engine = Engine()
        data: dict[str, Any] = {"models": [{"name": "m", "source": "x"}], "metrics": False}
        data["batches"] = {"folder": str(folder), "lease_s": 0.3, **section}
        if keys:
            data["identify"] = {"keys": keys, "tenants": [{"name": "acme"}, {"name": "other"}]}
        self.stack = Stack.model_validate(data)
        self.app = build_layers(self.engine, self.stack, self.stack.models[0])
        self.layer = next(layer for layer in layers_of(self.app) if isinstance(layer, BatchesApi))
        self.layer.runner.again_s = 0.01

    def client(self, key: str = "none") -> openai.AsyncOpenAI:
        """OpenAI's client, unmodified."""
        http: Any = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=self.app))
        return openai.AsyncOpenAI(base_url="http://stack/v1", api_key=key, max_retries=0, http_client=http)

    async def run(self, lines: list[Any], key: str = "none") -> Any:
        """Upload lines and run them; return the batch when it has ended."""
        client = self.client(key)
        content = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        file = await client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        return await self.ended(batch.id, key)

    async def ended(self, batch_id: str, key: str = "none") -> Any:
        async with asyncio.timeout(60):
            while True:
                batch = await self.client(key).batches.retrieve(batch_id)
                if batch.status not in ("in_progress", "cancelling", "finalizing"):
                    return batch
                await asyncio.sleep(0.02)

    async def results(self, file_id: str | None, key: str = "none") -> list[dict[str, Any]]:
        assert file_id
        content = await self.client(key).files.content(file_id)
        return [json.loads(line) for line in content.text.splitlines()]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    one = House(tmp_path / "b")
    await start_layers(one.app)
    yield one
    await stop_layers(one.app)


def line(number: int | str, text: str = "hi", **more: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return {"custom_id": f"r-{number}", "method": "POST", "url": CHAT, "body": body, **more}


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_the_life_of_a_batch(house: House) -> None:
    batch = await house.run([line(n, f"q{n}") for n in range(200)])
    assert batch.status == "completed" and batch.error_file_id is None and batch.completed_at
    assert batch.request_counts.model_dump() == {"total": 200, "completed": 200, "failed": 0}
    results = await house.results(batch.output_file_id)
    assert [one["custom_id"] for one in results] == [f"r-{n}" for n in range(200)]
    for number, one in enumerate(results):
        assert one["error"] is None and one["response"]["status_code"] == 200
        assert one["response"]["body"]["choices"][0]["message"]["content"] == f"re: q{number}"
    assert set(house.engine.asked.values()) == {1} and (b"x-fovea-lane", b"batch") in house.engine.headers
    listed = [one.id async for one in house.client().batches.list()]
    files = [one.filename async for one in house.client().files.list()]
    assert listed == [batch.id] and files == [f"{batch.id}_output.jsonl", "in.jsonl"]
    assert (await house.client().files.delete(batch.output_file_id)).deleted
    with pytest.raises(openai.NotFoundError):
        await house.client().files.content(batch.output_file_id)


async def test_files_expire(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    client, store = house.client(), house.layer.store
    content = json.dumps(line(0)).encode()
    hour: Any = {"anchor": "created_at", "seconds": 3600}
    short = await client.files.create(file=("a.jsonl", content), purpose="batch", expires_after=hour)
    long = await client.files.create(file=("b.jsonl", content), purpose="batch")
    assert short.expires_at == short.created_at + 3600 and long.expires_at == long.created_at + 30 * 86_400
    more: Any = {"output_expires_after": hour}
    asked: Any = {"input_file_id": short.id, "endpoint": CHAT, "completion_window": "24h"}
    batch = await house.ended((await client.batches.create(**asked, extra_body=more)).id)
    output = await client.files.retrieve(batch.output_file_id)
    assert output.expires_at == output.created_at + 3600
    house.engine.hold = asyncio.Event()
    second = await client.batches.create(**asked)  # it is read while its time ends
    await until(lambda: sum(house.engine.asked.values()) == 2)
    half = store.folder / "files" / "file-half"
    half.write_bytes(b"an upload that a kill ended")
    os.utime(half, (time.time() - 90_000,) * 2)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3700)
    assert await house.layer.runner.call(store.sweep) == 2
    assert not half.exists() and not store.path(output.id).exists() and store.path(short.id).exists()
    for file_id in (short.id, output.id):
        with pytest.raises(openai.NotFoundError):
            await client.files.retrieve(file_id)
    assert [file.id async for file in client.files.list()] == [long.id]
    house.engine.hold.set()
    assert (await house.ended(second.id)).request_counts.completed == 1
    assert await house.layer.runner.call(store.sweep) == 1 and not store.path(short.id).exists()


@pytest.mark.parametrize("after", [{"anchor": "created_at", "seconds": 60}, {"anchor": "x", "seconds": 7200}])
async def test_a_life_that_is_none(house: House, after: Any) -> None:
    file = await house.client().files.create(file=("a.jsonl", json.dumps(line(0)).encode()), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="3600 to 2592000"):
        await house.client().files.create(file=("a.jsonl", b"{}"), purpose="batch", expires_after=after)
    wrongs: list[Any] = [after, 5, [], {"seconds": True, "anchor": "created_at"}]
    for wrong in wrongs:
        asked: Any = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
        with pytest.raises(openai.BadRequestError, match="output_expires_after"):
            await house.client().batches.create(**asked, extra_body={"output_expires_after": wrong})


def test_a_folder_of_an_earlier_version(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    old = sqlite3.connect(tmp_path / "batches.db")
    old.executescript(SCHEMA.replace(", expires);", ");").replace(", output_s);", ");"))
    old.execute("INSERT INTO files VALUES ('file-1', 't', 'n', 'batch', 1, 2.0)")
    old.commit()
    old.close()
    store = Store(str(tmp_path))
    file = store.file("file-1", "t")
    assert file is not None and file.expires is None and store.sweep() == 0
    store.close()


async def test_a_broken_line_fails_and_the_rest_runs(house: House) -> None:
    lines: list[Any] = [line(n) for n in range(5100)]
    lines[5016] = b'{"custom_id": "r-5016", "body": {'
    batch = await house.run(lines)
    assert batch.status == "completed"
    assert batch.request_counts.model_dump() == {"total": 5100, "completed": 5099, "failed": 1}
    (failed,) = await house.results(batch.error_file_id)
    assert failed["error"]["code"] == "invalid_line" and "Line 5017" in failed["error"]["message"]
    assert len(await house.results(batch.output_file_id)) == 5099


async def test_every_way_a_line_can_fail(house: House) -> None:
    lines: list[Any] = [
        line(0), line(1, "bad"), line(2, "crash"), line(0, "again"), line(4, url="/v1/completions"), {"custom_id": "x"},
        b"[]", b"\xff\xfe", {**line(8), "body": {"stream": True}}, b"", b"   ", line(9, "x" * 5000), line(10),
    ]  # fmt: skip
    house.layer.section.line_bytes = 3000
    batch = await house.run(lines)
    assert batch.request_counts.model_dump() == {"total": 11, "completed": 2, "failed": 9}
    errors = await house.results(batch.error_file_id)
    codes = [(one["error"] or {}).get("code") or one["response"]["status_code"] for one in errors]
    assert codes == [400, 500, "duplicate_custom_id", *["invalid_line"] * 6]
    assert [one["custom_id"] for one in await house.results(batch.output_file_id)] == ["r-0", "r-10"]
    assert errors[0]["response"]["body"]["error"]["message"] == "No."


async def test_a_limit_makes_a_line_wait_not_fail(house: House) -> None:
    house.engine.refuse = 7
    batch = await house.run([line(n, f"q{n}") for n in range(5)])
    assert batch.request_counts.model_dump() == {"total": 5, "completed": 5, "failed": 0}
    assert sum(house.engine.asked.values()) == 12


async def test_cancelling_keeps_what_was_answered(tmp_path: Path) -> None:
    house = House(tmp_path / "b", inside=4)
    await start_layers(house.app)
    house.engine.hold = asyncio.Event()
    client = house.client()
    content = "\n".join(json.dumps(line(n)) for n in range(50)).encode()
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    await until(lambda: sum(house.engine.asked.values()) == 4)
    house.engine.hold.set()
    house.engine.hold = asyncio.Event()
    await until(lambda: sum(house.engine.asked.values()) == 8)
    assert (await client.batches.cancel(batch.id)).status == "cancelling"
    ended = await house.ended(batch.id)
    assert ended.status == "cancelled" and ended.cancelling_at and ended.cancelled_at
    assert ended.request_counts.completed == 4 == len(await house.results(ended.output_file_id))
    with pytest.raises(openai.ConflictError):
        await client.batches.cancel(batch.id)
    await stop_layers(house.app)


async def test_what_is_not_asked_in_time_is_an_error(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.layers.batches.DAY_S", -1.0)
    batch = await house.run([line(n) for n in range(3)])
    assert batch.status == "expired" and batch.request_counts.failed == 3 and not house.engine.asked
    assert {one["error"]["code"] for one in await house.results(batch.error_file_id)} == {"batch_expired"}


async def test_tenants_see_their_own(tmp_path: Path) -> None:
    store, bearer = open_keys(str(tmp_path / "keys.db")), {}
    for tenant in ("acme", "other"):
        bearer[tenant], key = make_key(tenant)
        await store.put(key)
    house = House(tmp_path / "b", str(tmp_path / "keys.db"))
    await start_layers(house.app)
    batch = await house.run([line(0)], bearer["acme"])
    assert batch.status == "completed" and house.engine.tenants == {"acme"}
    other = house.client(bearer["other"])
    for work in (
        other.batches.retrieve(batch.id),
        other.batches.cancel(batch.id),
        other.files.retrieve(batch.input_file_id),
        other.files.content(batch.output_file_id),
        other.files.delete(batch.input_file_id),
        other.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"),
    ):
        with pytest.raises(openai.NotFoundError):
            await work
    assert [one async for one in other.batches.list()] == [one async for one in other.files.list()] == []
    with pytest.raises(openai.AuthenticationError):
        await house.client("none").batches.list()
    await stop_layers(house.app)


async def test_a_tenant_that_is_gone_fails_its_batch(tmp_path: Path) -> None:
    store = open_keys(str(tmp_path / "keys.db"))
    text, key = make_key("acme")
    await store.put(key)
    house = House(tmp_path / "b", str(tmp_path / "keys.db"))
    await start_layers(house.app)
    assert house.layer.tenants is not None
    del house.layer.tenants["acme"]
    batch = await house.run([line(0)], text)
    assert batch.status == "failed" and "acme" in batch.errors.data[0].message
    await stop_layers(house.app)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"endpoint": "/v1/files"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"input_file_id": "empty"}, "input_file_id"),
    ],
)
async def test_wrong_batches(house: House, more: dict[str, Any], param: str) -> None:
    client = house.client()
    content = b"\n\n" if more.get("input_file_id") == "empty" else b"{}"
    file = await client.files.create(file=("in.jsonl", content), purpose="batch")
    body = {"endpoint": CHAT, "completion_window": "24h", **more, "input_file_id": file.id}
    with pytest.raises(openai.BadRequestError) as caught:
        await client.batches.create(**body)
    assert caught.value.param == param


async def test_wrong_files(house: House) -> None:
    client = house.client()
    house.layer.section.file_bytes = 10_000
    with pytest.raises(openai.BadRequestError, match="purpose"):
        await client.files.create(file=("in.jsonl", b"{}"), purpose="fine-tune")
    with pytest.raises(openai.APIStatusError) as caught:
        await client.files.create(file=("in.jsonl", b"x" * 20_000), purpose="batch")
    assert caught.value.status_code == 413
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=house.app), base_url="http://stack") as http:
        assert (await http.post("/v1/files", content=b"{}")).status_code == 400
        assert (await http.post("/v1/files", data={"purpose": "batch"}, files={"x": b""})).status_code == 400
        assert (await http.put("/v1/files")).status_code == 404
        assert (await http.get("/v1/batches?limit=0")).status_code == 400
        assert (await http.get("/v1/batches?limit=x")).status_code == 400
        assert (await http.post("/v1/batches", content=b"[]")).status_code == 400
    assert list((Path(house.layer.section.folder) / "files").iterdir()) == []
    house.layer.section.lines = 2
    file = await client.files.create(file=("in.jsonl", b"{}\n" * 3), purpose="batch")
    with pytest.raises(openai.BadRequestError, match="3 lines"):
        await client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")


async def test_files_take_only_so_much(house: House) -> None:
    house.layer.section.tenant_bytes = 3
    first = await house.client().files.create(file=("a", b"{} \n"), purpose="batch")
    with pytest.raises(openai.APIStatusError, match="Delete some"):
        await house.client().files.create(file=("a", b"{}"), purpose="batch")
    await house.client().files.delete(first.id)
    assert (await house.client().files.create(file=("a", b"{}"), purpose="batch")).bytes == 2


async def test_pages(house: House) -> None:
    client = house.client()
    ids = [(await client.files.create(file=("a", b"{}"), purpose="batch")).id for _ in range(7)]
    page = await client.files.list(limit=3)
    assert [one.id for one in page.data] == ids[:3:-1] and page.has_more
    assert [one.id async for one in client.files.list(limit=3)] == ids[::-1]


async def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError) as caught:
        await start_layers(House(tmp_path / "file").app)
    assert caught.value.field == "batches.folder"
