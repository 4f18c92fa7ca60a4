"""`fovea loadtest` on a served checkpoint, as a process of its own: what it measures is its report, not its code."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from models.support.errors import CheckFailed
from quantize.engine import ROOT, end_with_parent

ERRORS = "errors<1%"  # a server that answers with errors keeps any latency


def load(url: str, model: str, out: Path, *, concurrency: int, seconds: int, slo_ms: int) -> dict[str, Any]:
    """Put a closed loop of easy-VQA questions on a server for so long; return what the load test measured.

    Raises:
        CheckFailed: the load test could not be made (its own last words), or its own schedule was not kept.
    """
    words = ["run", "--url", url, "--model", model, "--workload", "easy-vqa", "--concurrency", str(concurrency)]
    words += ["--duration", str(seconds), "--warmup", "4", "--max-tokens", "16", "--slo-latency-ms", str(slo_ms)]
    report = fovea_loadtest([*words, "--out", str(out)])
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


def highest_rate(
    url: str, model: str, golden: str, out: Path, *, slo_ms: float, near: float | None, max_tokens: int, seed: int
) -> dict[str, Any]:
    """Search the highest arrival rate at which P95 stays under `slo_ms` and errors under 1 %; open loop, Poisson.

    Args:
        golden: set whose questions and pictures are sent.
        out: folder for the load test's own report.
        near: answers a second of a closed loop, around which is searched; None when it is not known.

    Returns:
        `certified_per_s`: rate that holds with 95 % confidence, None when none could be shown; `best_per_s`: the
        highest that seemed to; `broken_per_s`: the lowest that did not; `reason`: why there is no certificate.

    Raises:
        CheckFailed: no load test could be made at all.
    """
    near = near or 1.0
    slo = f"p95<{slo_ms:g}ms,{ERRORS}"
    words = ["capacity", "--url", url, "--model", model, "--workload", "golden", "--workload-option", f"set={golden}"]
    words += ["--slo", slo, "--start-rate", f"{near / 2:.4g}", "--max-rate", f"{4 * near:.4g}", "--seed", str(seed)]
    words += ["--step", f"{_within(200 / near, 8, 60):.1f}", "--confirm", f"{_within(1000 / near, 20, 240):.1f}"]
    # the engine and the generator share this machine: its lateness is part of every latency, and may not be most of it
    words += ["--max-slip-ms", f"{max(20.0, slo_ms / 4):g}", "--max-tokens", str(max_tokens), "--out", str(out)]
    report = fovea_loadtest(words)
    return {
        "slo": slo,
        "slo_ms": slo_ms,
        "certified_per_s": report["capacity_rps"],
        "best_per_s": report["best_rate_rps"] or None,
        "broken_per_s": report["broken_rate_rps"],
        "reason": report["reason"] or None,
        "confidence": report["confidence"],
        "measured": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "report": str(out / "capacity.html"),
    }


def _within(value: float, lowest: float, highest: float) -> float:
    return min(max(value, lowest), highest)


def fovea_loadtest(words: list[str]) -> dict[str, Any]:
    """Run `fovea loadtest` with these words; return the report that it prints, whatever its exit code.

    Raises:
        CheckFailed: it printed none.
    """
    command = [sys.executable, "-m", "fovea", "loadtest", *words, "--quiet", "--json"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
        preexec_fn=end_with_parent,
    )
    try:
        report = json.loads(done.stdout)
    except ValueError:
        report = {"error": None}
    if not isinstance(report, dict) or "error" in report:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise CheckFailed("no load test", field="loadtest", value=last[:300])
    return report
