"""The stack in front of a checkpoint, for the benchmark: `fovea serve`, and a load test of it."""

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
from quantize.engine import end, end_with_parent, free_port
from quantize.schemes import SCHEMES

ROOT = Path(__file__).resolve().parent.parent
NAME = "candidate"
READY_S = 300.0


def stack_entry(folder: Path, scheme: str | None) -> dict[str, Any]:
    """Return the model's entry in stack.yaml; `scheme` None for 16 bits.

    A checkpoint in compressed-tensors' format says so itself; bitsandbytes is a plugin's, and is named.
    """
    entry: dict[str, Any] = {"name": NAME, "source": str(folder), "max_model_len": 2048}
    if scheme is not None:
        tool = SCHEMES[scheme].tool
        entry["quantization"] = "bitsandbytes" if tool == "bitsandbytes" else "compressed-tensors"
    return entry


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


def load(url: str, out: Path, *, concurrency: int, seconds: int, slo_ms: int) -> dict[str, Any]:
    """Put a closed loop of easy-VQA questions on the stack for so long; return what the load test measured.

    Raises:
        CheckFailed: the load test could not be made (its own last words), or its own schedule was not kept.
    """
    words = [sys.executable, str(ROOT / "fovea.py"), "loadtest", "run", "--url", url, "--model", NAME]
    words += ["--workload", "easy-vqa", "--concurrency", str(concurrency), "--duration", str(seconds)]
    words += ["--warmup", "4", "--max-tokens", "16", "--slo-latency-ms", str(slo_ms), "--out", str(out)]
    done = subprocess.run([*words, "--quiet", "--json"], capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CheckFailed("no load test", field="loadtest", value=last[:300]) from None
    if not report["valid"]:
        raise CheckFailed("the load test is not valid", field="loadtest", value="; ".join(report["invalid_because"]))
    return {
        "concurrency": concurrency,
        "requests": report["requests"],
        "errors": report["errors"],
        "requests_per_s": report["throughput_rps"],
        "latency_ms": {p: report["latency_ms"][p] for p in ("p50", "p95")},
        "slo_ms": slo_ms,
        "goodput": report["goodput"]["rps"],
        "accuracy": report["accuracy"],
        "report": str(out / "report.html"),
    }
