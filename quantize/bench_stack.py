"""The whole stack in front of a checkpoint, for the benchmark: `fovea serve`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from models.support.errors import CheckFailed
from quantize.engine import ROOT, end, end_with_parent, free_port

NAME = "candidate"
READY_S = 300.0


def stack_entry(folder: Path, scheme: str | None) -> dict[str, Any]:
    """Return the model's entry in stack.yaml, which names the scheme as `fovea quantize` does; None for 16 bits."""
    entry: dict[str, Any] = {"name": NAME, "source": str(folder), "max_model_len": 2048}
    return entry if scheme is None else {**entry, "quantization": scheme}


@contextmanager
def stack(folder: Path, log: Path, scheme: str | None = None) -> Iterator[str]:
    """Serve a checkpoint with the whole stack (`fovea serve`); yields the API's address.

    Raises:
        CheckFailed: it did not become ready within `READY_S`.
    """
    port = free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({"models": [stack_entry(folder, scheme)], "listen": {"port": port}}))
    words = [sys.executable, str(ROOT / "fovea.py"), "serve", str(file), "--json"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"}, preexec_fn=end_with_parent,
        )  # fmt: skip
        ready = threading.Event()

        def read() -> None:
            for line in process.stdout or ():
                if line.startswith(b"{") and json.loads(line).get("ready"):
                    ready.set()

        threading.Thread(target=read, daemon=True).start()
        try:
            if not ready.wait(READY_S):
                raise CheckFailed("fovea serve did not become ready", field="stack", value=str(log))
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            end(process, grace_s=90)
