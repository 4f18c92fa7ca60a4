"""schemathesis over the routes that are the layers' own, over real HTTP: no answer is a 5xx."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from serving.layers import build_layers, start_layers, stop_layers
from serving.runtime import free_port
from serving.stack import Stack
from tests.serving.own_routes import SCHEMA
from tests.serving.test_recall import Engine

schema = schemathesis.openapi.from_dict(SCHEMA)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the layers, every section with routes or headers on; behind it, an engine that answers at once."""
    folder = tmp_path_factory.mktemp("routes")
    (folder / "config.json").write_text("{}")
    data: dict[str, Any] = {"models": [{"name": "fuzz-test", "source": str(folder)}], "metrics": False}
    data |= {"recall": {"semantic": {}}, "lane": {}, "batches": {"folder": str(folder / "b")}}
    data |= {"admit": {"default": {"requests_per_minute": 10**8, "tokens_per_minute": 10**12}}}
    stack = Stack.model_validate(data)
    app = build_layers(Engine(), stack, stack.models[0])
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, lifespan="off", log_level="critical"))
    started = threading.Event()

    async def serve() -> None:
        await start_layers(app)
        running = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        started.set()
        await running
        await stop_layers(app)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert started.wait(60)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive()


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_answer_is_a_5xx(case: schemathesis.Case, address: str) -> None:
    case.validate_response(case.call(base_url=address, timeout=30), checks=[not_a_server_error])
