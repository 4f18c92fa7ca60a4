"""`/metrics` of a whole stack: every replica's series, whichever replica is asked.

Each replica opens a small listener of its own (`GET /metrics`, this process only: what a PodMonitor scrapes) and writes
its address into Ray's cluster-wide key-value store.  The one that is asked collects all and adds a `replica` label.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from enum import Enum

logger = logging.getLogger("fovea.serving")
PREFIX = b"fovea:metrics:"
SILENT = 5
"""Times in a row without an answer after which a replica that still listens counts as gone."""
_SAMPLE = re.compile(rb"^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{[^\n]*\})? ", re.MULTILINE)


class Peers:
    """This replica's metrics listener, and the way to the others'."""

    def __init__(self, replica: str, server: asyncio.Server, host: str):
        self.replica, self.server = replica, server
        port = server.sockets[0].getsockname()[1]
        self.key, self.address = PREFIX + replica.encode(), f"{host}:{port}"
        self.silent: dict[bytes, int] = {}

    @classmethod
    async def start(cls, model: str) -> Peers:
        """Open the listener and make it known."""
        import ray

        host = ray.util.get_node_ip_address()
        server = await asyncio.start_server(_serve_own, host=host, port=0)
        peers = cls(f"{model}-{uuid.uuid4().hex[:8]}", server, host)
        await peers._announce()
        return peers

    async def _announce(self) -> None:
        from ray.experimental.internal_kv import _internal_kv_put

        await asyncio.to_thread(_internal_kv_put, self.key, self.address.encode(), True)

    async def stop(self) -> None:
        """Close the listener and withdraw the address."""
        from ray.experimental.internal_kv import _internal_kv_del

        self.server.close()
        await asyncio.to_thread(_internal_kv_del, self.key)

    async def metrics(self) -> bytes:
        """Return the exposition of all replicas; one that does not answer is left out.

        Its address is withdrawn when nobody listens there, or after `SILENT` times: a replica may only be busy, and
        one that was taken for gone makes itself known again when it is asked.
        """
        from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list

        keys = await asyncio.to_thread(_internal_kv_list, PREFIX)
        if self.key not in keys:
            await self._announce()
            keys = [*keys, self.key]
        addresses = await asyncio.gather(*(asyncio.to_thread(_internal_kv_get, key) for key in keys))
        texts = await asyncio.gather(*(_fetch(address.decode() if address else "") for address in addresses))
        for key, text in zip(keys, texts, strict=True):
            if isinstance(text, bytes):
                self.silent.pop(key, None)
            elif key != self.key:
                logger.warning("replica %s does not answer its metrics listener", key.decode())
                self.silent[key] = SILENT if text is Missing.GONE else self.silent.get(key, 0) + 1
                if self.silent[key] >= SILENT:
                    self.silent.pop(key)
                    await asyncio.to_thread(_internal_kv_del, key)
        named = [
            (key.removeprefix(PREFIX), text) for key, text in zip(keys, texts, strict=True) if isinstance(text, bytes)
        ]
        return merge(named)


def merge(expositions: list[tuple[bytes, bytes]]) -> bytes:
    """Merge Prometheus text expositions, adding the label `replica` and keeping each family's lines together.

    Args:
        expositions: (replica name, exposition text) pairs.
    """
    heads: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for replica, text in expositions:
        family = b""
        for line in text.split(b"\n"):
            if line.startswith((b"# HELP ", b"# TYPE ")):
                family = line.split(b" ", 3)[2]
                known = heads.setdefault(family, [])
                if len(known) < 2 and line not in known:
                    known.append(line)
            elif line and not line.startswith(b"#"):
                samples.setdefault(family, []).append(_label(line, replica))
    lines = [line for family in samples for line in (*heads.get(family, ()), *samples[family])]
    return b"\n".join(lines) + b"\n"


def _label(line: bytes, replica: bytes) -> bytes:
    def add(match: re.Match[bytes]) -> bytes:
        name, labels = match.group(1), match.group(2)
        inner = labels[1:-1].rstrip(b",") + b"," if labels and labels != b"{}" else b""
        return b'%s{%sreplica="%s"} ' % (name, inner, replica)

    return _SAMPLE.sub(add, line, count=1)


class Missing(Enum):
    """Why there is no exposition."""

    GONE = "nobody listens"
    SILENT = "no whole answer in time"


async def _fetch(address: str) -> bytes | Missing:
    host, _, port = address.rpartition(":")
    if not port:  # withdrawn since it was listed
        return Missing.GONE
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
                answer = await reader.read()
            finally:
                writer.close()
    except ConnectionRefusedError:
        return Missing.GONE
    except (OSError, TimeoutError):
        return Missing.SILENT
    head, _, body = answer.partition(b"\r\n\r\n")
    whole = head.endswith(b"content-length: %d" % len(body))  # a replica that stopped meanwhile sends half a family
    return body if head.startswith(b"HTTP/1.0 200") and whole else Missing.SILENT


async def _serve_own(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    from prometheus_client import REGISTRY, generate_latest

    try:
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
            found = head.startswith(b"GET /metrics ")
            body = generate_latest(REGISTRY) if found else b"not found\n"
            status = b"200 OK" if found else b"404 Not Found"
            length = str(len(body)).encode()
            writer.write(
                b"HTTP/1.0 "
                + status
                + b"\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: "
                + length
                + b"\r\n\r\n"
                + body
            )
            await writer.drain()
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, TimeoutError):
        logger.debug("a metrics client left early")
    finally:
        writer.close()
