"""`/metrics` of a whole stack: what several replicas say becomes one correct exposition."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from serving.peers import PREFIX, SILENT, Missing, Peers, _fetch, merge


def exposition(value: float, label: str = "x") -> bytes:
    registry = CollectorRegistry()
    Counter("requests_total", "Requests.", ["kind"], registry=registry).labels(label).inc(value)
    Gauge("running", "Now running.", registry=registry).set(value)
    Histogram("seconds", "Seconds.", ["kind"], buckets=(1, 2), registry=registry).labels(label).observe(value)
    return generate_latest(registry)


def parse(text: bytes) -> dict[str, Metric]:
    families = list(text_string_to_metric_families(text.decode()))
    assert len({family.name for family in families}) == len(families), "a family stands twice"
    return {family.name: family for family in families}


def test_two_replicas() -> None:
    families = parse(merge([(b"a", exposition(1)), (b"b", exposition(2))]))
    assert families["running"].type == "gauge" and families["running"].documentation == "Now running."
    assert {sample.labels["replica"]: sample.value for sample in families["running"].samples} == {"a": 1, "b": 2}
    requests = [s for s in families["requests"].samples if s.name == "requests_total"]
    assert [(s.labels, s.value) for s in requests] == [
        ({"kind": "x", "replica": "a"}, 1),
        ({"kind": "x", "replica": "b"}, 2),
    ]
    counts = [s.value for s in families["seconds"].samples if s.name == "seconds_count"]
    assert counts == [1, 1] and families["seconds"].type == "histogram"


def test_replicas_with_different_families() -> None:
    only_a = b"# HELP a A.\n# TYPE a gauge\na 1\n"
    only_b = b"# HELP b B.\n# TYPE b gauge\nb 2\n"
    assert set(parse(merge([(b"1", only_a), (b"2", only_b + only_a)]))) == {"a", "b"}


def test_nothing_to_merge() -> None:
    assert parse(merge([])) == {} and parse(merge([(b"a", b"")])) == {}


@pytest.mark.parametrize(
    "line",
    [
        b"m 1",
        b"m{} 1",
        b'm{a="x",} 1',
        b'm{a="x"} 1',
        b'm{a="} 2"} 1',
        b'm{a="\\"} 9 \\\\",b="{"} 1',
        b'm{a="x,"} 1',
        b'm{a="m{b=\\"c\\"} 7"} 1 1700000000000',
        b'm{a="replica=\\"evil\\""} 1',
        b'm{a="line\\nbreak"} 1',
    ],
)
def test_labels_whose_values_look_like_syntax(line: bytes) -> None:
    (before,) = next(iter(text_string_to_metric_families(line.decode()))).samples
    (after,) = parse(merge([(b"r", b"# TYPE m gauge\n" + line + b"\n")]))["m"].samples
    assert after.labels == {**before.labels, "replica": "r"}
    assert (after.name, after.value, after.timestamp) == (before.name, before.value, before.timestamp)


@given(st.lists(st.text(max_size=12), min_size=1, max_size=4, unique=True), st.floats(allow_nan=False))
def test_any_label_value_survives(values: list[str], number: float) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("m", "Any # TYPE text\nin it.", ["a", "b"], registry=registry)
    for value in values:
        value = value.encode(errors="replace").decode().replace("\r", "")
        gauge.labels(value, '"} 1').set(number)
    text = generate_latest(registry)
    before = next(iter(text_string_to_metric_families(text.decode()))).samples
    after = parse(merge([(b"r1", text), (b"r2", text)]))["m"].samples
    assert [s.labels for s in after] == [{**s.labels, "replica": name} for name in ("r1", "r2") for s in before]
    assert {s.value for s in after} == {s.value for s in before}


# the listeners


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[bytes, bytes]]:
    """Ray's key-value store as a dictionary, so that no Ray is started."""
    kept: dict[bytes, bytes] = {}
    kv = types.ModuleType("ray.experimental.internal_kv")
    kv._internal_kv_put = lambda key, value, overwrite: kept.__setitem__(key, value)  # type: ignore[attr-defined]
    kv._internal_kv_get = kept.get  # type: ignore[attr-defined]
    kv._internal_kv_del = lambda key: kept.pop(key, None)  # type: ignore[attr-defined]
    kv._internal_kv_list = lambda prefix: [key for key in kept if key.startswith(prefix)]  # type: ignore[attr-defined]
    ray = types.ModuleType("ray")
    ray.util = types.SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1")  # type: ignore[attr-defined]
    experimental = types.ModuleType("ray.experimental")
    for name, module in (("ray", ray), ("ray.experimental", experimental), ("ray.experimental.internal_kv", kv)):
        monkeypatch.setitem(sys.modules, name, module)
    yield kept


async def test_every_replica_speaks_for_all(store: dict[bytes, bytes]) -> None:
    first, second = await Peers.start("model-a"), await Peers.start("model-b")
    assert len(store) == 2
    for peer in (first, second):
        families = parse(await peer.metrics())
        replicas = {sample.labels["replica"] for sample in families["python_info"].samples}
        assert replicas == {first.replica, second.replica}
    await second.stop()
    assert list(store) == [first.key]
    families = parse(await first.metrics())
    assert {sample.labels["replica"] for sample in families["python_info"].samples} == {first.replica}
    await first.stop()
    assert store == {}


async def test_a_replica_that_is_gone_is_left_out_and_forgotten(store: dict[bytes, bytes]) -> None:
    peer = await Peers.start("model")
    dead = PREFIX + b"dead"
    store[dead] = b"127.0.0.1:1"
    assert "python_info" in parse(await peer.metrics())
    assert list(store) == [peer.key]
    await peer.stop()


async def test_a_replica_that_is_only_busy_keeps_its_place(store: dict[bytes, bytes]) -> None:
    peer, other = await Peers.start("model"), await Peers.start("model")

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    busy = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    address, store[other.key] = store[other.key], b"127.0.0.1:%d" % busy.sockets[0].getsockname()[1]
    for _ in range(SILENT - 1):
        assert other.replica.encode() not in await peer.metrics()
        assert other.key in store
    store[other.key] = address  # it answers again, and is counted from the start
    assert other.replica.encode() in await peer.metrics()
    store[other.key] = b"127.0.0.1:%d" % busy.sockets[0].getsockname()[1]
    for _ in range(SILENT):
        assert other.key in store
        await peer.metrics()
    assert other.key not in store
    assert other.replica.encode() in await other.metrics() and store[other.key] == address
    busy.close()
    await peer.stop()
    await other.stop()


@pytest.mark.parametrize(
    "request_line", [b"GET / HTTP/1.0", b"POST /metrics HTTP/1.0", b"GET /metricsx HTTP/1.0", b"nonsense"]
)
async def test_the_listener_answers_nothing_else(store: dict[bytes, bytes], request_line: bytes) -> None:
    peer = await Peers.start("model")
    host, _, port = peer.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request_line + b"\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.0 404")
    writer.close()
    await peer.stop()


async def test_the_listener_survives_clients_that_leave_or_never_end(store: dict[bytes, bytes]) -> None:
    peer = await Peers.start("model")
    host, _, port = peer.address.rpartition(":")
    for data in (b"", b"GET", b"x" * 100_000):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        writer.close()
    assert await _fetch(peer.address)
    await peer.stop()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.0 500 X\r\n\r\n", b"HTTP/1.0 200 OK\r\ncontent-length: 100\r\n\r\nm 1\n", b"SSH-2.0\r\n"]
)
async def test_half_an_answer_is_none(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    assert await _fetch(f"127.0.0.1:{server.sockets[0].getsockname()[1]}") is Missing.SILENT
    server.close()
