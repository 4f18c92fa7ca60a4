"""Whatever is sent to the routes that are ours, no answer is a 5xx: files, batches, purges, limits in front."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.layers import build_layers, start_layers, stop_layers
from serving.stack import Stack
from tests.serving.asgi import call, scope_of
from tests.serving.test_recall import Engine


class House:
    """A stack with every section that has routes or reads headers; one loop for all examples."""

    def __init__(self, folder: Any):
        self.loop = asyncio.new_event_loop()
        (folder / "config.json").write_text("{}")
        data: dict[str, Any] = {"models": [{"name": "fuzz-test", "source": str(folder)}], "metrics": True}
        data |= {"recall": {}, "lane": {}, "batches": {"folder": str(folder / "b")}}
        data |= {"admit": {"default": {"requests_per_minute": 10**8, "tokens_per_minute": 10**12}}}
        stack = Stack.model_validate(data)
        self.app = build_layers(Engine(), stack, stack.models[0])
        self.loop.run_until_complete(start_layers(self.app))

    def status(self, method: str, path: str, headers: list[tuple[bytes, bytes]], query: bytes, body: bytes) -> int:
        scope = scope_of(method, path, *headers, query_string=query)
        return self.loop.run_until_complete(call(self.app, scope, body)).status


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    one = House(tmp_path_factory.mktemp("fuzz"))
    yield one
    one.loop.run_until_complete(stop_layers(one.app))
    one.loop.close()


names = st.sampled_from([
    "input_file_id", "endpoint", "completion_window", "metadata", "all", "tag", "tenant", "messages", "temperature",
    "max_tokens", "n", "stream", "prompt", "priority", "service_tier", "tools", "x",
])  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["24h", "/v1/chat/completions", "flex", "batch"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12,
)  # fmt: skip
bodies = st.binary(max_size=40) | st.dictionaries(names, values, max_size=6).map(
    lambda value: json.dumps(value).encode()
)
paths = st.sampled_from([
    "/v1/files", "/v1/files/file-x", "/v1/files/file-x/content", "/v1/batches", "/v1/batches/batch_x",
    "/v1/batches/batch_x/cancel", "/fovea/cache/purge", "/v1/chat/completions", "/v1/completions", "/v1/embeddings",
    "/v1/messages",
])  # fmt: skip
header_names = st.sampled_from([
    b"content-type", b"authorization", b"cache-control", b"x-fovea-cache", b"x-fovea-cache-tags", b"x-fovea-lane",
    b"x-fovea-deadline-ms", b"content-length", b"x-request-id",
])  # fmt: skip
header_values = st.binary(max_size=30) | st.sampled_from([
    b"application/json", b"multipart/form-data; boundary=x", b"multipart/form-data", b"no-store, max-age=9", b"batch",
    b"only-if-cached", b"max-age=99999999999999999999999999",
])  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["GET", "POST", "DELETE", "PUT", "HEAD"]), paths,
    st.lists(st.tuples(header_names, header_values), max_size=4), st.binary(max_size=20), bodies,
)  # fmt: skip
def test_no_request_to_our_routes_is_a_5xx(
    house: House, method: str, path: str, headers: list[tuple[bytes, bytes]], query: bytes, body: bytes
) -> None:
    engines = path.startswith(("/v1/chat", "/v1/comp", "/v1/emb", "/v1/mess"))
    if engines and method != "POST":
        method = "POST"  # what the engine makes of the rest is not ours
    status = house.status(method, path, headers, query, body)
    assert 200 <= status < 500 or status == 504  # only-if-cached
