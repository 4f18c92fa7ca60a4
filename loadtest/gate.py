"""A gate for CI: which changes from A to B are not acceptable.

    # gate.yaml
    mode: detect            # or: prove
    limits:
      latency_p95: {max_increase: 10%}
      ttft_p99: {max_increase: 50ms}
      accuracy: {max_drop: 0.01}
      errors: {max_increase: 0.001}
      usd_per_query: {max_increase: 5%}

`detect` fails when the change is beyond its limit for certain: the whole interval lies beyond it.  Noise alone does
not fail a build. `prove` fails unless the change is within its limit for certain: the whole interval lies within it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.compare import METRICS
from models.support.errors import UsageError

KNOWN = (*METRICS, "usd_per_query")
_LIMIT = re.compile(r"^\s*([0-9.]+)\s*(%|ms|s)?\s*$")


@dataclass(frozen=True)
class Limit:
    """The largest acceptable change of one metric for the worse; `relative`: as a share of A."""

    metric: str
    amount: float
    relative: bool
    text: str


@dataclass(frozen=True)
class Gate:
    """Limits and how certain a breach must be."""

    mode: str
    limits: tuple[Limit, ...]


def read_gate(path: Path | str) -> Gate:
    """Read a gate file.

    Raises:
        UsageError: it cannot be read, or a key or limit is wrong.
    """
    import yaml

    def wrong(message: str, value: object = None, fix: str | None = None) -> UsageError:
        return UsageError(message, field=f"--gate {path}", value=value, fix=fix)

    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise wrong(f"cannot read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise wrong(f"not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(loaded, dict) or set(loaded) - {"mode", "limits"} or not isinstance(loaded.get("limits"), dict):
        raise wrong("must have the keys mode and limits", fix="see docs/loadtest.md, Compare")
    mode = loaded.get("mode", "detect")
    if mode not in ("detect", "prove"):
        raise wrong("mode must be detect or prove", mode)
    if not loaded["limits"]:
        raise wrong("has no limits, so it could never fail", fix="add at least one")
    limits = []
    for metric, given in loaded["limits"].items():
        if metric not in KNOWN:
            raise wrong("unknown metric", metric, f"use {', '.join(KNOWN)}")
        word = "max_drop" if metric == "accuracy" else "max_increase"
        if not isinstance(given, dict) or set(given) != {word}:
            raise wrong(f"{metric} takes exactly {word}", given)
        limits.append(_limit(metric, str(given[word]), wrong))
    return Gate(mode, tuple(limits))


def _limit(metric: str, text: str, wrong: Any) -> Limit:
    match = _LIMIT.match(text)
    if match is None:
        raise wrong(f"{metric}: not a limit", text, "for instance 10%, 50ms or 0.01")
    try:
        amount = float(match[1])
    except ValueError as error:
        raise wrong(f"{metric}: not a number", text) from error
    timed = metric in METRICS and METRICS[metric].unit == "ms"
    unit = match[2]
    if unit in ("ms", "s") and not timed:
        raise wrong(f"{metric} is not a time", text)
    if unit is None and timed:
        raise wrong(f"{metric}: say what unit", text, "10%, 50ms or 0.1s")
    return Limit(metric, amount / 100 if unit == "%" else amount * (1000 if unit == "s" else 1), unit == "%", text)


def apply_gate(gate: Gate, comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row per limit: metric, limit, the change for the worse with its interval, and whether it passed."""
    rows = {row["metric"]: row for row in comparison["rows"]}
    out = []
    for limit in gate.limits:
        row = rows.get(limit.metric)
        result: dict[str, Any] = {"metric": limit.metric, "limit": limit.text, "mode": gate.mode}
        if row is None or row["difference"] is None:
            why = "not measured" if row is None else row.get("note", "no figure")
            # What was not measured cannot be shown to be within its limit; nor can it be shown to break it.
            out.append({**result, "passed": gate.mode == "detect" and row is not None, "note": why})
            continue
        change = row.get("relative") if limit.relative else row["difference"]
        if change is None:  # relative to nothing: any increase is beyond every share
            change = {k: float("inf") if row["difference"][k] > 0 else 0.0 for k in ("value", "low", "high")}
        low, high = change["low"], change["high"]
        if limit.metric == "accuracy":
            low, high = -high, -low
        passed = low <= limit.amount if gate.mode == "detect" else high <= limit.amount
        out.append({**result, "passed": bool(passed), "worse_by": [low, high]})
    return out
