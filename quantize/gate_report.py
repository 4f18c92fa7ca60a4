"""The gate's report: two served sides compared item by item, each described, and the verdict."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.evaluation.context import command, hardware, versions
from models.evaluation.score import is_right
from models.golden import GoldenItem
from models.stats import mcnemar, paired_difference, quantile, wilson
from quantize.gate_rows import SIDES, speed_rows
from quantize.probe import divergence
from quantize.recovery import recovery, shown
from quantize.verdict import Thresholds, decide

if TYPE_CHECKING:
    from quantize.gate import GateSettings, Side


def build_report(
    settings: GateSettings,
    manifest: dict[str, Any],
    thresholds: Thresholds,
    items: list[GoldenItem],
    excluded: int,
    sides: dict[str, Side],
) -> dict[str, Any]:
    """Return the whole comparison with its verdict.  An item without an answer counts as wrong."""
    right = {name: [is_right(i, side.evaluated.answers.get(i.id)) for i in items] for name, side in sides.items()}
    a, b = right["parent"], right["candidate"]
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(item.category, []).append(index)
    categories = {
        name: recovery([a[i] for i in chosen], [b[i] for i in chosen]) for name, chosen in sorted(groups.items())
    }
    overall = recovery(a, b)
    figured = {name: describe_side(settings, side, items, right[name]) for name, side in sides.items()}
    diverged = divergence(sides["parent"].probe.first, sides["candidate"].probe.first)
    figures = {
        "divergence": diverged.value,
        "calibration_error": _rise(figured["parent"]["calibration_error"], figured["candidate"]["calibration_error"]),
        "p95_ratio": _ratio(
            figured["candidate"]["latency_ms"]["p95"]["value"], figured["parent"]["latency_ms"]["p95"]["value"]
        ),
        "size_ratio": sides["candidate"].facts["bytes"] / sides["parent"].facts["bytes"],
    }
    verdict = decide(thresholds, overall, categories, figures)
    test = mcnemar(a, b)
    answers = {name: side.evaluated.answers for name, side in sides.items()}
    changed = sum(1 for i in items if _text(answers["parent"].get(i.id)) != _text(answers["candidate"].get(i.id)))
    golden = sides["parent"].evaluated.report["golden"]
    return {
        "kind": "quantization-gate",
        "verdict": verdict.as_dict(),
        "scheme": manifest["scheme"],
        "method": manifest["method"],
        "group": manifest["group"],
        "thresholds": thresholds.model_dump(),
        "golden": {k: golden[k] for k in ("name", "spec", "digest")} | {"asked": len(items), "excluded": excluded},
        "recovery": overall.as_dict(),
        "by_category": {
            name: {
                "recovery": found.as_dict(),
                "parent": wilson(sum(a[i] for i in groups[name]), len(groups[name])).as_dict(),
                "candidate": wilson(sum(b[i] for i in groups[name]), len(groups[name])).as_dict(),
            }
            for name, found in categories.items()
        },
        "difference": paired_difference(a, b, seed=settings.seed).as_dict(),
        "mcnemar": {"only_parent": test.only_first, "only_candidate": test.only_second, "p_value": test.p_value},
        "flips": {
            "lost": [i.id for i, x, y in zip(items, a, b, strict=True) if x and not y],
            "won": [i.id for i, x, y in zip(items, a, b, strict=True) if y and not x],
            "changed_answer": wilson(changed, len(items)).as_dict(),
        },
        "divergence_nats": diverged.as_dict(),
        "figures": figures,
        "sides": figured,
        "seed": settings.seed,
        "finished": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": hardware() | {"role": "engine and client on this machine"},
        "command": command(),
    }


def _text(answer: Any) -> str | None:
    return None if answer is None else answer.text


def describe_side(settings: GateSettings, side: Side, items: list[GoldenItem], right: list[bool]) -> dict[str, Any]:
    """Return the figures of one side: accuracy, latency, throughput, memory, the picture's share, money."""
    report, facts = side.evaluated.report, side.facts
    answers = [side.evaluated.answers[i.id] for i in items if i.id in side.evaluated.answers]
    times = [x.latency_ms for x in answers if x.latency_ms is not None]
    rate = report["run"]["requests_per_s"]
    accuracy = wilson(sum(right), len(right))
    per_query = None
    if settings.usd_per_hour is not None and rate:
        per_query = settings.usd_per_hour / 3600 / rate
    kept = facts["rate_at_slo"]["certified_per_s"] if facts["rate_at_slo"] else None
    within = None
    if settings.slo_ms is not None:
        within = wilson(sum(x <= settings.slo_ms for x in times), len(items))  # without an answer: not within
    return {
        **facts,
        "accuracy": accuracy.as_dict(),
        "errors": report["errors"],
        "calibration_error": (report["calibration"] or {}).get("ece"),
        "reliability": (report["calibration"] or {}).get("bins"),
        "latency_ms": {f"p{round(100 * q)}": quantile(times, q).as_dict() for q in (0.5, 0.95, 0.99)},
        "requests_per_s": rate,
        "concurrency": settings.concurrency,
        "slo_ms": settings.slo_ms,
        "within_slo": within.as_dict() if within else None,
        "goodput_per_s": within.value * rate if within and within.value is not None and rate else None,
        "first_token_ms": quantile(side.probe.picture_ms, 0.5).as_dict() if side.probe.picture_ms else None,
        "usd_per_hour": settings.usd_per_hour,
        "usd_per_query": per_query,
        "usd_per_query_at_slo": settings.usd_per_hour / 3600 / kept if settings.usd_per_hour and kept else None,
        "usd_per_right_answer": per_query / accuracy.value if per_query and accuracy.value else None,
    }


def _rise(parent: dict[str, Any] | None, candidate: dict[str, Any] | None) -> float | None:
    """How much the calibration error rose; None where one side has none."""
    if not parent or not candidate or parent["value"] is None or candidate["value"] is None:
        return None
    return float(candidate["value"]) - float(parent["value"])


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def print_gate(report: dict[str, Any], out: Path) -> None:
    """Print a gate's report, a line per figure."""
    verdict = report["verdict"]
    print(f"verdict     {verdict['outcome']}: {verdict['sentence']}")
    for name, group in report["by_category"].items():
        print(f"  {name:<12}{shown(group['recovery'])}, n = {group['recovery']['n']}")
    for warning in report["warnings"]:
        print(f"warning     {warning}")
    flips, test = report["flips"], report["mcnemar"]
    print(f"flips       lost {len(flips['lost'])}, won {len(flips['won'])}, p = {test['p_value']:.2g}")
    kl = report["divergence_nats"]
    if kl["value"] is not None:
        print(f"divergence  {kl['value']:.2g} nats ({kl['low']:.2g} to {kl['high']:.2g}), n = {kl['n']}")
    from models.support.terminal import print_table

    print()
    print_table(["", *SIDES], [[row.name, *row.texts] for row in speed_rows(report)])
    print()
    print(f"report      {out / 'report.html'}")
