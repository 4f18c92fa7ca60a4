"""A small HTTP/1.1 client whose only purpose is to time requests.

One `Connection` carries one request at a time and calls its owner back when that request is over; there is no task,
future or timer per request.  Parsing of the HTTP frame is llhttp's (through `httptools`), so keep-alive, chunked and
sized bodies, trailers and interim responses follow the standard.  All times are seconds of `time.perf_counter()`, taken
when the bytes arrive, before they are looked at.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from enum import IntEnum
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, cast
from urllib.parse import urlsplit

import httptools

from loadtest.apis import Api, Reply
from loadtest.sse import EventScanner
from models.support.errors import UsageError

if TYPE_CHECKING:
    from loadtest.dialogue import Talk

CACHE_HEADER, MADE = b"x-fovea-cache", (b"miss", b"bypass")  # anything else: no engine was asked for this answer
MAX_BODY = 64 << 20  # a reply larger than this is an error, not something to hold in memory


class Kind(IntEnum):
    """How a request ended.  Everything but `OK` is an error and is kept out of the latency figures."""

    OK = 0
    CONNECT = 1  # no connection: refused, unreachable, TLS failed
    RESET = 2  # the connection was lost before the first byte of the reply
    CUT = 3  # the reply began and did not end: connection lost, or the stream stopped without its end mark
    TIMEOUT = 4
    STATUS = 5  # any status other than 2xx
    PROTOCOL = 6  # not HTTP, not JSON, not an event stream
    STREAM = 7  # an error object inside a stream that began with 200
    UNFINISHED = 8  # still running when the run was stopped: neither a success nor an error


@dataclass(frozen=True)
class Target:
    """Where to connect, taken from a base URL such as `https://host:8000/v1`."""

    scheme: str
    host: str
    port: int
    base: str

    @classmethod
    def parse(cls, url: str) -> Target:
        """Return the target of `url`.

        Raises:
            UsageError: not an http(s) URL with a host.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise UsageError(f"not a URL: {error}", field="--url", value=url, fix="give http://HOST:PORT/v1") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError("not an http(s) URL", field="--url", value=url, fix="give http://HOST:PORT/v1")
        if parts.username or parts.query or parts.fragment:
            raise UsageError(
                "a user, query or fragment in the URL is not used", field="--url", value=url, fix="remove it"
            )
        default = 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, parts.hostname, port or default, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        """The value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    def ssl_context(self, verify: bool = True) -> ssl.SSLContext | None:
        """Return the TLS settings, or None for plain http."""
        if self.scheme == "http":
            return None
        context = ssl.create_default_context()
        if not verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def request_head(target: Target, path: str, headers: dict[str, str]) -> bytes:
    """Return the head of a POST up to and including `Content-Length: ` (the number and the body follow)."""
    fields = {"Host": target.authority, "Content-Type": "application/json", "User-Agent": "fovea-loadtest", **headers}
    for name, value in fields.items():
        if any(c in name + value for c in "\r\n\0"):
            raise UsageError("a header must not hold a line break", field=name, fix="check the key in the environment")
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}Content-Length: ".encode("latin-1")


class Exchange:
    """One request and what happened to it.  Times are absolute; 0.0 means "did not happen".

    `sent` is the first send, `begun` the last one (they differ when the request was sent again); `talk` is the
    conversation that it is a turn of.
    """

    __slots__ = (
        "begun", "bytes_in", "chunks", "cls", "correct", "detail", "dispatched", "end", "first", "intended", "item",
        "kind", "last", "max_gap", "payload", "recalled", "reply", "resent", "retries", "retry_after", "sent", "slot",
        "status", "talk", "turn",
    )  # fmt: skip

    def __init__(self, item: int, payload: bytes, intended: float, slot: int = 0, cls: int = 0):
        self.item, self.payload, self.intended, self.slot, self.cls = item, payload, intended, slot, cls
        self.dispatched = self.sent = 0.0
        self.turn = self.retries = 0
        self.resent = False
        self.correct = -1
        self.talk: Talk | None = None
        self.fresh()

    def fresh(self) -> None:
        """Forget what came back, for another try.  (The first send is kept: the user has waited since then.)"""
        self.begun = self.first = self.last = self.end = self.max_gap = self.retry_after = 0.0
        self.chunks = self.bytes_in = self.status = 0
        self.recalled = False
        self.kind = Kind.OK
        self.detail = ""
        self.reply: Reply | None = None


class Owner(Protocol):
    """Who is told about the end of a request."""

    keep_text: bool
    gaps: list[float]

    def on_done(self, connection: Connection, exchange: Exchange) -> None:
        """The exchange is over; the connection is free when `connection.usable`."""


class Connection(asyncio.Protocol):
    """One keep-alive connection.

    Args:
        owner: called back at the end of each exchange.
        api: tells content events from others and reads replies.
    """

    __slots__ = (
        "api", "body", "body_size", "chunked", "complete", "events", "exchange", "is_stream", "now", "owner",
        "parser", "scanner", "served", "sized", "streaming", "transport", "usable", "wants_close",
    )  # fmt: skip

    def __init__(self, owner: Owner, api: Api):
        self.owner, self.api = owner, api
        self.transport: asyncio.Transport | None = None
        self.exchange: Exchange | None = None
        self.scanner = EventScanner()
        self.parser = httptools.HttpResponseParser(self)
        self.events: list[bytes] = []
        self.body: list[bytes] = []
        self.body_size = 0
        self.now = 0.0
        self.usable = False
        self.served = 0
        self.complete = self.streaming = False
        self.is_stream = self.chunked = self.sized = self.wants_close = False

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.usable = True

    def data_received(self, data: bytes) -> None:
        self.now = perf_counter()
        exchange = self.exchange
        if exchange is None:  # bytes that nobody asked for: this connection cannot be trusted any more
            self.discard()
            return
        exchange.bytes_in += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError as error:
            cause = error.__context__  # what a callback below raised, when it was one of them
            self._fail(Kind.PROTOCOL, str(cause) if isinstance(cause, ValueError) else f"not HTTP: {error}")
            return
        if self.complete:
            self._close_exchange(exchange)

    def connection_lost(self, error: Exception | None) -> None:
        self.usable = False
        exchange = self.exchange
        if exchange is None:
            return
        self.now = perf_counter()
        if exchange.status and not self.sized and not self.chunked:
            self._close_exchange(exchange)  # a body that is ended by closing, as HTTP/1.0 does it
        elif exchange.bytes_in:
            self._fail(Kind.CUT, f"connection lost inside the reply{f': {error}' if error else ''}")
        else:
            self._fail(Kind.RESET, f"connection lost before the reply{f': {error}' if error else ''}")

    # -- one exchange

    def start(self, exchange: Exchange) -> None:
        """Send the request of `exchange`; the owner is called back when it is over."""
        assert self.transport is not None
        self.exchange = exchange
        self.events.clear()
        self.body.clear()
        self.body_size = 0
        self.scanner.tail = b""
        exchange.begun = perf_counter()
        exchange.sent = exchange.sent or exchange.begun
        if not self.usable:  # the server hung up between the handshake and now: nobody would tell again
            self.abort(Kind.RESET, "connection lost before the request")
            return
        self.transport.write(exchange.payload)

    def discard(self) -> None:
        """Close the connection at once."""
        self.usable = False
        if self.transport is not None:
            self.transport.abort()

    def abort(self, kind: Kind, detail: str) -> None:
        """End the running exchange from outside (timeout, end of the run)."""
        self.now = perf_counter()
        self._fail(kind, detail)

    def _fail(self, kind: Kind, detail: str) -> None:
        exchange = self.exchange
        self.discard()
        if exchange is not None:
            exchange.kind, exchange.detail = kind, detail
            self._finish(exchange)

    def _finish(self, exchange: Exchange) -> None:
        exchange.end = self.now
        self.exchange = None
        self.served += 1
        self.owner.on_done(self, exchange)

    # -- callbacks of the HTTP parser

    def on_message_begin(self) -> None:
        self.is_stream = self.chunked = self.sized = self.wants_close = False

    def on_header(self, name: bytes, value: bytes) -> None:
        # Only these headers matter; their first letters sort out nearly all others.
        first = name[0] | 32
        if first not in b"ctrx":
            return
        lowered = name.lower()
        if lowered == b"content-length":
            self.sized = True
        elif lowered == b"transfer-encoding":
            self.chunked = b"chunked" in value.lower()
        elif lowered == b"content-type":
            self.is_stream = value.startswith(b"text/event-stream")
        elif lowered == b"connection":
            self.wants_close = value.lower() == b"close"
        elif lowered == CACHE_HEADER and self.exchange is not None:
            self.exchange.recalled = value.strip().lower() not in MADE
        elif lowered == b"retry-after" and self.exchange is not None:
            text = value.decode("latin-1").strip()
            self.exchange.retry_after = float(text) if text.isdigit() else 0.0

    def on_headers_complete(self) -> None:
        if self.exchange is not None:
            status = self.exchange.status = self.parser.get_status_code()
            self.streaming = self.is_stream and 200 <= status < 300

    def on_body(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            return
        if not self.streaming:
            self.body_size += len(data)
            if self.body_size > MAX_BODY:
                raise ValueError(f"the reply is longer than {MAX_BODY} bytes")
            self.body.append(data)
            return
        events = self.scanner.feed(data)
        has_content = self.api.has_content
        found = 0
        for event in events:
            if has_content(event):
                found += 1
            elif event != b"[DONE]" and exchange.kind is Kind.OK:
                text = self.api.stream_error(event)
                if text:
                    exchange.kind, exchange.detail = Kind.STREAM, text
        self.events += events
        if found:
            now = self.now
            if exchange.chunks:
                gap = now - exchange.last
                # Events that arrive together are one arrival: what a reader sees is the pause before it.
                if gap > 0:
                    self.owner.gaps.append(gap)
                    if gap > exchange.max_gap:
                        exchange.max_gap = gap
            else:
                exchange.first = now
            exchange.last = now
            exchange.chunks += found

    def on_message_complete(self) -> None:
        # Only a mark: the owner may start the next request, which must not happen inside the parser.
        if self.exchange is not None and self.exchange.status < 200:
            self.exchange.status = 0  # an interim response: the real one follows
            return
        self.complete = True
        if not self.parser.should_keep_alive():  # only known here, inside the parser's callback
            self.wants_close = True

    # -- the end of an exchange

    def _close_exchange(self, exchange: Exchange) -> None:
        self.complete = False
        status = exchange.status
        if self.wants_close or not (self.sized or self.chunked or status == 204):
            self.usable = False
            if self.transport is not None:
                self.transport.close()
        self._read(exchange, status)
        self._finish(exchange)

    def _read(self, exchange: Exchange, status: int) -> None:
        """Turn the finished reply into tokens, text or an error."""
        if not 200 <= status < 300:
            exchange.kind = Kind.STATUS
            exchange.detail = b"".join(self.body)[:500].decode("utf-8", "replace")
            return
        if exchange.kind is not Kind.OK:
            return
        try:
            if self.streaming:
                exchange.reply = self.api.read_stream(self.events, self.owner.keep_text)
                if not self.api.finished(self.events):
                    exchange.kind, exchange.detail = Kind.CUT, "the stream stopped without its end mark"
            else:
                exchange.reply = self.api.read_body(b"".join(self.body))
        except ValueError as error:
            exchange.kind, exchange.detail = Kind.PROTOCOL, str(error)
