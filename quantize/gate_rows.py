"""Speed, memory and money of both sides of a gate as rows of text, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.evaluation.page import interval, percent

SIDES = ("parent", "candidate")
Side = Mapping[str, Any]


@dataclass(frozen=True)
class SpeedRow:
    """One line: what it is, and its text for each side."""

    name: str
    texts: Sequence[str]


def speed_rows(report: Mapping[str, Any]) -> list[SpeedRow]:
    """Return the rows of a gate's report, both sides in each; what was not asked for has no row."""
    sides = [report["sides"][s] for s in SIDES]
    rows: list[SpeedRow] = []

    def row(name: str, text: Callable[[Side], str]) -> None:
        rows.append(SpeedRow(name, [text(side) for side in sides]))

    row("accuracy", lambda s: f"{percent(s['accuracy'])} ({interval(s['accuracy'])})")
    for p in ("p50", "p95", "p99"):
        row(f"latency {p}", lambda s, p=p: _ms(s["latency_ms"][p]))  # type: ignore[misc]
    row("requests a second", lambda s: _rate(s["requests_per_s"]))
    slo = sides[0]["slo_ms"]
    if slo is not None:
        row(f"answers within {slo:g} ms", lambda s: f"{percent(s['within_slo'])} ({interval(s['within_slo'])})")
        row(f"goodput within {slo:g} ms, 1/s", lambda s: _rate(s["goodput_per_s"]))
        row(f"highest rate with p95 under {slo:g} ms, 1/s", lambda s: rate_at_slo(s["rate_at_slo"]))
    row("first token alone, p50", lambda s: "" if s["first_token_ms"] is None else _ms(s["first_token_ms"]))
    row("of it, the picture", _picture)
    row("engine memory", lambda s: f"{s['memory_bytes'] / 2**30:.2f} GiB")
    if any(s["weights_gib"] is not None for s in sides):
        row("of it, weights", lambda s: _or_not(s["weights_gib"], "{:.2f} GiB"))
    row("room in the KV cache", lambda s: _or_not(s["kv_tokens"], "{:,} tokens"))
    row("checkpoint", lambda s: f"{s['bytes'] / 1e6:.2f} MB")
    row("of it, the vision tower", _tower)
    if sides[0]["usd_per_query"] is not None:
        row("$ per 1,000 queries", lambda s: _usd(s["usd_per_query"]))
        row("$ per 1,000 right answers", lambda s: _usd(s["usd_per_right_answer"]))
        if slo is not None:
            row("$ per 1,000 queries at the highest rate", lambda s: _usd(s["usd_per_query_at_slo"]))
    row("kernels that vLLM logged", lambda s: ", ".join(sorted(set(s["kernels"].values()))) or "none")
    row("measured", lambda s: str(s["measured"]))
    return rows


def rate_at_slo(found: Mapping[str, Any] | None) -> str:
    """Return the highest rate that keeps the SLO: certified, or what seemed to hold and why it is not shown."""
    if found is None:
        return "not measured"
    if found["certified_per_s"] is not None:
        more = " or more: none tried broke it" if found["broken_per_s"] is None else ""
        return f"{found['certified_per_s']:.1f}{more} ({100 * found['confidence']:g} % sure)"
    best = f"about {found['best_per_s']:.1f}, not shown" if found["best_per_s"] else "none"
    return f"{best}: {found['reason']}"


def _ms(figure: Mapping[str, Any]) -> str:
    return "n too small" if figure["value"] is None else f"{figure['value']:.1f} ms"


def _rate(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.1f}"


def _or_not(value: float | None, form: str) -> str:
    return "vLLM logged none" if value is None else form.format(value)


def _usd(value: float | None) -> str:
    return "not measured" if value is None else f"${1000 * value:.5f}"


def _picture(side: Side) -> str:
    found = side["picture"]
    if found is None:
        return str(side["picture_note"] or "not measured")
    ends = found.get("picture_range_ms")
    inside = "" if ends is None else f" ({ends[0]:.1f} to {ends[1]:.1f})"
    return f"{found['picture_ms']:.1f} ms{inside}, {100 * found['share']:.0f} % (n = {found['n']})"


def _tower(side: Side) -> str:
    size = side["bytes_by_part"].get("vision", 0)
    return f"{size / 1e6:.2f} MB, {100 * size / side['bytes']:.0f} %"
