"""A registry version as the target of an evaluation: it is served for as long as it is asked."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.registry.files import read_mark
from models.support.errors import CheckFailed

ROOT = Path(__file__).resolve().parents[2]
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*@(live|canary|\d+)")


def is_version(target: str) -> bool:
    """Return whether `target` is a registry version, `name@3` or `name@live`, and no address."""
    return _REF.fullmatch(target) is not None


def version_of(served: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return name, version and digest of what an endpoint serves; None when it serves no checkout of the registry.

    `served` is the endpoint's own entry for the model: vLLM names the folder that it loaded as `root`, and a checkout
    holds a file that says which version it is.  An endpoint on another machine cannot be looked into.
    """
    return read_mark(Path(str(served["root"]))) if served.get("root") else None


@contextmanager
def served_version(ref: str, store: str | None) -> Iterator[tuple[str, str]]:
    """Serve a version with `fovea serve` on a free port of this machine; yield its address and model name.

    Raises:
        UsageError: there is no such version.
        CheckFailed: it is damaged, or the stack did not start (the end of its log is in the message).
    """
    from models.registry import open_registry

    found = open_registry(store).resolve(ref)
    with served_folder(found.folder, found.version.name, shown=found.version.ref) as url:
        yield url, found.version.name


@contextmanager
def served_folder(source: Path | str, name: str, *, shown: str | None = None, **entry: Any) -> Iterator[str]:
    """Serve a checkpoint with `fovea serve` on a free port of this machine; yield its address (ends in `/v1`).

    Args:
        source: folder of the checkpoint, or what else a stack's `source` takes.
        shown: how errors call it; its name by default.
        entry: more settings of the model in the stack.

    Raises:
        CheckFailed: the stack did not start (the end of its log is in the message).
    """
    import yaml

    shown = shown or name
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stack = {"models": [{"name": name, "source": str(source), **entry}], "listen": {"port": port}}
    with tempfile.TemporaryDirectory(prefix="fovea-evaluate-") as folder:
        path, log = Path(folder) / "stack.yaml", Path(folder) / "serve.log"
        path.write_text(yaml.safe_dump(stack), "utf-8")
        command = [sys.executable, "-m", "fovea", "serve", str(path), "--json"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        print(f"serving {shown} to ask it", file=sys.stderr)
        with log.open("w") as errors:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True
            )
        try:
            assert process.stdout is not None
            if not any(line.startswith("{") and json.loads(line).get("ready") for line in process.stdout):
                end = " ".join(log.read_text("utf-8", "replace").split()[-40:])
                raise CheckFailed(f"the stack did not start: {end}", field="version", value=shown)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(90)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
