"""Run the chart's little programs and its jobs' scripts as its pods run them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.helm.chart import CHART, EVERYTHING, pods, render

FILES = CHART / "files"
Answer = Callable[[str, str, bytes, dict[str, str]], tuple[int, bytes]]


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """Serve `answer(method, path, body, headers) -> (status, body)` on loopback."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, out = answer(self.command, self.path, body, {k.lower(): v for k, v in self.headers.items()})
            self.send_response(status)
            self.send_header("content-length", str(len(out)))
            self.end_headers()
            self.wfile.write(out)

        do_GET = do_POST = do_PUT = do

    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{found.server_address[1]}"
    finally:
        found.shutdown()
        found.server_close()


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one of the programs, isolated: the standard library has to do."""
    command = [sys.executable, "-I", str(FILES / program), *arguments]
    env = {"PATH": os.environ["PATH"], "EVERY_S": "0.05", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=60)


def job(name: str) -> dict[str, Any]:
    """Return the container of one of the jobs, everything switched on."""
    found = next(pod for key, pod in pods(render(EVERYTHING)).items() if key.endswith(name))
    (container,) = found["spec"]["containers"]
    return dict(container)


def play(container: dict[str, Any], tmp_path: Path, failing: str = "") -> tuple[int, list[list[str]]]:
    """Run a job's script with stand-ins for the programs that note how they are called; one that matches may fail."""
    log = tmp_path / "calls"
    log.write_text("")
    stub = tmp_path / "bin" / "stub"
    stub.parent.mkdir(exist_ok=True)
    fail = f'case "$*" in *{failing}*) exit 1;; esac' if failing else ""
    stub.write_text(f'#!/bin/sh\nprintf "%s\\n" "$0 $*" >> {log}\n{fail}\n')
    stub.chmod(0o755)
    for name in ("fovea", "python", "hf"):
        (stub.parent / name).unlink(missing_ok=True)
        (stub.parent / name).symlink_to(stub)
    command = container["command"]
    if command[1] == "/chart/job.py":  # this one runs itself; nobody listens where it tells of the end
        command = [sys.executable, str(FILES / "job.py"), "http://127.0.0.1:9", *command[3:]]
    words = [
        word.replace("/opt/fovea/.venv/bin", str(stub.parent))
        .replace("/reports", str(tmp_path))
        .replace("touch /models/", f"touch {tmp_path}/")
        for word in command
    ]
    environment = {**os.environ, "EVERY_S": "0"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    calls = [line.removeprefix(f"{stub.parent}/").split(" ") for line in log.read_text().splitlines()]
    return done.returncode, calls
