"""A hard day: the clock jumps, an hour or two days, forward and back, while requests and a batch run.

All layers are on.  No answer is wrong, no line of the batch is lost or answered twice, and nobody is locked out.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from serving.exchange import exchange_of
from serving.keys import make_key, open_keys
from serving.layers import build_layers, layers_of, start_layers, stop_layers
from serving.layers.batches import BatchesApi
from serving.layers.recall import Recall
from serving.stack import Stack
from tests.serving.asgi import JSON, Answer, call, scope_of

CHAT = "/v1/chat/completions"
HOUR = 3600.0
LINES = 120


async def engine(scope: Any, receive: Any, send: Any) -> None:
    """Say what was asked."""
    await receive()
    await asyncio.sleep(0.002)
    text = exchange_of(scope).json()["messages"][-1]["content"]
    answer = {"choices": [{"index": 0, "message": {"content": f"re: {text}"}, "finish_reason": "stop"}], "usage": {
        "prompt_tokens": 1, "completion_tokens": 1}}  # fmt: skip
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


@pytest.mark.parametrize("jump", [HOUR, -HOUR, 48 * HOUR, -48 * HOUR])
async def test_the_clock_jumps(jump: float, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    keys = str(tmp_path / "keys.db")
    data: dict[str, Any] = {"models": [{"name": "m", "source": str(tmp_path)}], "metrics": False}
    data |= {"identify": {"keys": keys, "tenants": [{"name": "acme"}], "refresh_s": 0.01}}
    data |= {"admit": {"store": f"{location}2" if "://" not in location else location,
                       "default": {"requests_per_minute": 100_000, "concurrent": 1000}}}  # fmt: skip
    data |= {"recall": {"store": location, "purge_s": 0.01}, "lane": {}}
    data |= {"batches": {"folder": str(tmp_path / "batches"), "lease_s": 0.5, "inside": 4}}
    stack = Stack.model_validate(data)
    store = open_keys(keys)
    text, key = make_key("acme")
    await store.put(key)
    app = build_layers(engine, stack, stack.models[0])
    layer = next(one for one in layers_of(app) if isinstance(one, Recall))
    batches = next(one for one in layers_of(app) if isinstance(one, BatchesApi))
    await start_layers(app)
    bearer = (b"authorization", f"Bearer {text}".encode())

    async def ask(number: int) -> Answer:
        body = {"model": "m", "messages": [{"role": "user", "content": f"q{number}"}], "temperature": 0}
        answer = await call(app, scope_of("POST", CHAT, JSON, bearer), body)
        await asyncio.gather(*layer.writes)
        return answer

    async def api(method: str, path: str, body: Any = b"", *headers: tuple[bytes, bytes]) -> Answer:
        return await call(app, scope_of(method, path, bearer, *headers), body)

    lines = "\n".join(
        json.dumps({"custom_id": f"r-{n}", "method": "POST", "url": CHAT,
                    "body": {"model": "m", "messages": [{"role": "user", "content": f"line {n}"}]}})
        for n in range(LINES)
    )  # fmt: skip
    form = (
        '--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x\r\ncontent-disposition: form-data; '
        f'name="file"; filename="in.jsonl"\r\n\r\n{lines}\r\n--x--\r\n'
    )
    file = await api("POST", "/v1/files", form.encode(), (b"content-type", b"multipart/form-data; boundary=x"))
    asked = {"input_file_id": json.loads(file.body)["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = json.loads((await api("POST", "/v1/batches", asked, JSON)).body)["id"]
    now = time.time
    for number in range(30):
        if number == 10:
            monkeypatch.setattr(time, "time", lambda: now() + jump)
        if number == 20:
            monkeypatch.setattr(time, "time", now)
        for asked_again in (number, number // 2):
            answer = await ask(asked_again)
            assert answer.status == 200, (number, answer.body)
            assert json.loads(answer.body)["choices"][0]["message"]["content"] == f"re: q{asked_again}"
    async with asyncio.timeout(60):
        state: dict[str, Any] = {"status": "in_progress"}
        while state["status"] in ("in_progress", "finalizing"):
            await asyncio.sleep(0.02)
            state = json.loads((await api("GET", f"/v1/batches/{batch}")).body)
    # two days later the window of 24 h has ended: its lines are told, not lost
    assert state["status"] in (("completed", "expired") if jump > 24 * HOUR else ("completed",))
    found = []
    for name in (state["output_file_id"], state["error_file_id"]):
        if name:
            found += [json.loads(line) for line in batches.store.path(name).read_text().splitlines()]
    assert sorted(int(one["custom_id"][2:]) for one in found) == list(range(LINES))
    for one in found:
        if one["response"] is not None:
            said = one["response"]["body"]["choices"][0]["message"]["content"]
            assert said == f"re: line {one['custom_id'][2:]}"
        else:
            assert one["error"]["code"] == "batch_expired"
    await stop_layers(app)
    await store.close()
