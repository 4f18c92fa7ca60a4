"""Every way in which a request can end is seen, named and timed."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.apis import APIS, make_api
from loadtest.client import Connection, Exchange, Kind, Target, request_head
from loadtest.pool import Pool
from loadtest.run import run_load
from models.support.errors import UsageError
from tests.loadtest.conftest import Addressed, At, config_for
from tests.loadtest.server import Plan, Server

Serve = Callable[..., Server]
WORDS = ("Grüße ", "— 形 ", "🔺", " fin", "")


def run(server: Addressed, prompts: str, **values: Any) -> dict[str, Any]:
    options = {"concurrency": 2, "requests": 6, "check_model": False, **values}
    return run_load(config_for(server, prompts, **options)).data


def kinds(data: dict[str, Any]) -> dict[str, int]:
    return {row["kind"]: row["count"] for row in data["errors_by_kind"]}


@pytest.mark.parametrize("segments", [0, 1, 7, 50])
@pytest.mark.parametrize("stream", [True, False])
def test_replies_in_any_segments(serve: Serve, tmp_path: Path, segments: int, stream: bool) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text(json.dumps({"prompt": "x", "expected": "".join(WORDS), "accept": {"rule": "exact"}}))
    server = serve(Plan(pieces=WORDS, segments=segments))
    data = run(server, str(path), requests=3, stream=stream)
    assert (data["requests"], data["errors"]) == (3, 0)
    assert data["accuracy"]["value"] == 1.0
    assert data["tokens"]["completion_per_request"]["value"] == len(WORDS)
    assert data["ttft_ms"]["p50"]["n"] == (3 if stream else 0)


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        (Plan(status=500, body=b'{"error":{"message":"boom"}}'), "http_500"),
        (Plan(status=429, headers={"Retry-After": "0"}, body=b"slow down"), "http_429"),
        (Plan(status=400, body=b""), "http_400"),
        (Plan(body=b"<html>hello</html>"), "protocol"),
        (Plan(body=b'{"object":"error"}'), "protocol"),
        (Plan(pieces=("a", "b"), cut_after=250), "cut"),
        (Plan(pieces=("a", "b"), cut_after=0), "reset"),
        (Plan(pieces=("a", "b"), end_mark=False), "cut"),
        (Plan(first_s=5), "timeout"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_by_kind(serve: Serve, prompts: str, plan: Plan, expected: str) -> None:
    data = run(serve(plan), prompts, requests=3, timeout_s=0.4)
    assert kinds(data) == {expected: 3}
    assert data["errors"] == data["requests"] == 3
    assert data["latency_ms"]["p50"]["n"] == 0
    if plan.body:
        assert plan.body.decode()[:4] in str(data["errors_by_kind"][0]["examples"]) or expected == "protocol"


def test_an_error_inside_a_stream_is_an_error(prompts: str) -> None:
    event = b'data: {"error":{"message":"engine died"}}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: %d\r\n\r\n" % len(event)
    with raw_server(head + event) as url:
        data = run(At(url), prompts)
    assert kinds(data) == {"stream": 6}
    assert "engine died" in data["errors_by_kind"][0]["examples"]


def test_not_http_is_named(prompts: str) -> None:
    with raw_server(b"SSH-2.0-OpenSSH_9.2\r\n") as url:
        data = run(At(url), prompts, requests=2)
    assert kinds(data) == {"protocol": 2}


def test_interim_replies_and_bodies_ended_by_closing(prompts: str) -> None:
    body = json.dumps({"choices": [{"message": {"content": "yes"}}]}).encode()
    reply = (
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + body
    )
    with raw_server(reply, close=True) as url:
        data = run(At(url), prompts, stream=False)
    assert (data["requests"], data["errors"], data["accuracy"]["value"]) == (6, 0, 1.0)


def test_a_kept_connection_that_the_server_closed_is_replaced(serve: Serve, prompts: str) -> None:
    """The server drops the connection after every fifth reply; no request is lost by that."""

    def decide(request: dict[str, Any]) -> Plan:
        return Plan(hang_up=len(server.requests) % 5 == 0)

    server = serve(decide)
    data = run(server, prompts, concurrency=4, requests=60, think_s=0.01)
    assert (data["errors"], data["requests"]) == (0, 60)
    assert server.connections > 4


@pytest.mark.parametrize("most", [2, 8])
async def test_what_is_sent_again_gets_a_connection_of_its_own(most: int) -> None:
    """A server that closes one idle connection closes others too: a second try on one of them would be the last."""
    over: list[Exchange] = []
    pool = Pool(
        Target.parse("http://h"), make_api("openai"), over.append, keep_text=False, gaps=[], timeout_s=5, most=most,
        tls=None,
    )  # fmt: skip
    made: list[Connection] = []

    async def new() -> Connection:
        made.append(Connection(pool, pool.api))
        made[-1].connection_made(_Wire())
        return made[-1]

    pool._new = new  # type: ignore[method-assign]
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    await pool.connect(2)
    first, second = Exchange(0, b"", 0.0), Exchange(1, b"", 0.0)
    pool.place(first)
    pool.place(second)
    for connection in made:
        connection.data_received(reply)
    again = Exchange(2, b"", 0.0)
    pool.place(again)
    used = next(one for one in made if one.exchange is again)
    used.connection_lost(None)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(made) == 3 and made[2].exchange is again and set(over) == {first, second}
    made[2].data_received(reply)
    assert over[2] is again and again.resent and pool.peak <= most


def test_connections_are_kept(serve: Serve, prompts: str) -> None:
    server = serve()
    data = run(server, prompts, concurrency=3, requests=60)
    assert data["requests"] == 60 and server.connections == 3


def test_a_limit_on_connections_shows_as_client_queue(serve: Serve, prompts: str) -> None:
    server = serve(Plan(first_s=0.05))
    data = run(server, prompts, concurrency=None, rate=200, requests=80, arrival="constant", max_connections=1)
    assert data["generator"]["peak_connections"] == server.connections == 1
    # 80 requests of 50 ms one after another, due within 0.4 s: the middle one waits 1.8 s, and that counts
    assert data["queue_ms"]["p50"]["value"] > 500
    assert data["latency_ms"]["p50"]["value"] > 500 > data["service_ms"]["p50"]["value"]
    assert any("--max-connections" in text for text in data["warnings"])


@contextmanager
def raw_server(reply: bytes, close: bool = False) -> Iterator[str]:
    """Answer every request (of one segment) with the same bytes."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def talk(connection: socket.socket) -> None:
        with connection:
            while connection.recv(1 << 20):
                connection.sendall(reply)
                if close:
                    return

    def accept() -> None:
        while not done.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        done.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


class _Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        return

    def close(self) -> None:
        return

    def abort(self) -> None:
        return


class _Ended:
    """Takes note of every exchange that ends."""

    keep_text = True

    def __init__(self) -> None:
        self.gaps: list[float] = []
        self.ended: list[Exchange] = []

    def on_done(self, connection: Connection, exchange: Exchange) -> None:
        self.ended.append(exchange)


HEADS = [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n"]
HEADS += [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"]
PARTS = [b"5\r\n", b"data: ", b"[DONE]", b"\n\n", b"\r\n", b"0\r\n\r\n", b'{"choices":[]}', b"HTTP/1.1 100 C\r\n\r\n"]


@pytest.mark.parametrize("api", list(APIS))
@given(
    head=st.sampled_from(HEADS),
    parts=st.lists(st.one_of(st.sampled_from(PARTS), st.binary(max_size=12)), max_size=12),
    cuts=st.integers(1, 9),
)
def test_any_bytes_end_the_request_exactly_once(api: str, head: bytes, parts: list[bytes], cuts: int) -> None:
    """Whatever a server sends, in whatever segments, and then hangs up: one end, of a known kind, and no exception."""
    owner = _Ended()
    connection = Connection(owner, make_api(api))
    connection.connection_made(_Wire())
    exchange = Exchange(0, b"", 0.0)
    connection.start(exchange)
    data = head + b"".join(parts)
    for at in range(0, len(data), cuts):
        connection.data_received(data[at : at + cuts])
    connection.connection_lost(None)
    assert owner.ended == [exchange] and exchange.end > 0
    assert isinstance(exchange.kind, Kind) and exchange.kind not in (Kind.CONNECT, Kind.TIMEOUT, Kind.UNFINISHED)


def test_a_connection_that_was_lost_before_its_first_request_ends_it_at_once() -> None:
    """Between the handshake and the request; the loop tells of a loss once, and nobody would wait for this one."""
    owner = _Ended()
    connection = Connection(owner, make_api("openai"))
    connection.connection_made(_Wire())
    connection.connection_lost(ConnectionResetError())
    exchange = Exchange(0, b"", 0.0)
    connection.start(exchange)
    assert owner.ended == [exchange] and exchange.kind is Kind.RESET and exchange.end >= exchange.sent > 0


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h/v1", Target("http", "h", 80, "/v1")),
        ("https://h:8443/v1/", Target("https", "h", 8443, "/v1")),
        ("http://[::1]:9", Target("http", "::1", 9, "")),
    ],
)
def test_targets(url: str, expected: Target) -> None:
    assert Target.parse(url) == expected


@pytest.mark.parametrize(
    "url", ["", "h:80", "ftp://h/", "http://", "http://h:99999/", "http://u:p@h/", "http://h/?a=1"]
)
def test_wrong_urls(url: str) -> None:
    with pytest.raises(UsageError, match="--url"):
        Target.parse(url)


def test_a_key_cannot_smuggle_headers() -> None:
    with pytest.raises(UsageError, match="line break"):
        request_head(Target.parse("http://h/"), "/", {"Authorization": "Bearer a\r\nX: y"})
