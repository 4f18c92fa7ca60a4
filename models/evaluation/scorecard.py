"""Several candidates in one weighted table that shows the trade instead of hiding it in one number.

Every dimension is printed as measured, with its unit and interval, beside its score between 0 and 1; the weighted total
comes last.  A candidate that another one beats or equals everywhere is marked as dominated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from models.evaluation.compare import Evaluated
from models.support.errors import UsageError


@dataclass(frozen=True)
class Dimension:
    """One dimension: where its figure lies in a report, and whether more is better.

    `score`: more is better and a share: the value itself; less is better: the best candidate's value over this one's.
    """

    name: str
    unit: str
    read: Callable[[Mapping[str, Any]], float | None]
    more_is_better: bool


def _value(figure: Mapping[str, Any] | None) -> float | None:
    return None if figure is None else figure.get("value")


def _robustness(report: Mapping[str, Any]) -> float | None:
    """Accuracy on damaged images over accuracy on clean ones (tag `slice`)."""
    clean, ugly = (_value(report["by_tag"].get(f"slice={name}")) for name in ("clean", "ugly"))
    return None if not clean or ugly is None else min(1.0, ugly / clean)


def _calibration(report: Mapping[str, Any]) -> float | None:
    error = _value((report["calibration"] or {}).get("ece"))
    return None if error is None else 1 - error


def _usd_per_1k(report: Mapping[str, Any]) -> float | None:
    per_query = (report.get("cost") or {}).get("usd_per_query")
    return None if per_query is None else 1000 * float(per_query)


def _explanation(report: Mapping[str, Any]) -> float | None:
    return _value((report["explanation"] or {}).get("right_for_the_right_reason"))


def _languages(report: Mapping[str, Any]) -> float | None:
    """Accuracy in the weakest language over that in the strongest (tag `language`)."""
    found = [v for tag, f in report["by_tag"].items() if tag.startswith("language=") and (v := _value(f)) is not None]
    return min(found) / max(found) if len(found) > 1 and max(found) else None


DIMENSIONS: dict[str, Dimension] = {
    d.name: d
    for d in (
        Dimension("accuracy", "share right", lambda r: _value(r["accuracy"]), True),
        Dimension("latency_p95", "ms", lambda r: _value(r["latency_ms"]["p95"]), False),
        Dimension("usd_per_1k", "$ per 1,000 queries", _usd_per_1k, False),
        Dimension("calibration", "1 - calibration error", _calibration, True),
        Dimension("robustness", "damaged over clean", _robustness, True),
        Dimension("languages", "weakest over strongest language", _languages, True),
        Dimension("explanation", "share right for the right reason", _explanation, True),
        Dimension("governance", "share of the checklist that holds", lambda r: r.get("governance"), True),
        Dimension("availability", "share answered", lambda r: r["answered"] / r["golden"]["asked"], True),
    )
}


def add_governance(candidates: Sequence[Evaluated], store: str | None = None) -> None:
    """Put the share of the governance checklist that holds into the reports of versions that the registry knows.

    Their files are hashed for it.  What is no version, or one of another registry, has no figure.
    """
    from models.registry import open_registry
    from models.registry.governance import checklist

    registry = open_registry(store)
    for candidate in candidates:
        target = candidate.report.get("target")
        if not target or target["name"] not in registry.names():
            continue
        for version in registry.versions(target["name"]):
            if version.digest == target["digest"]:
                rows = checklist(registry, version)
                candidate.report["governance"] = sum(row["holds"] for row in rows) / len(rows)


def equal_weights(candidates: Sequence[Evaluated]) -> dict[str, float]:
    """Return equal weights for the dimensions that at least one candidate has a figure for."""
    known = [d.name for d in DIMENSIONS.values() if any(d.read(c.report) is not None for c in candidates)]
    return dict.fromkeys(known, 1 / len(known))


def load_weights(path: Path) -> dict[str, float]:
    """Return weights by dimension, adding up to 1.

    Raises:
        UsageError: the file is broken, names an unknown dimension, or a weight is negative, or all are 0.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror}", field="weights", value=str(path)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError("not YAML", field="weights", value=str(path)) from error
    if not isinstance(raw, dict) or not raw:
        raise UsageError(
            "must be dimension: weight", field="weights", value=str(path), fix=f"known: {', '.join(DIMENSIONS)}"
        )
    for name, weight in raw.items():
        if name not in DIMENSIONS:
            raise UsageError(
                "unknown dimension", field="weights", value=str(name), fix=f"one of {', '.join(DIMENSIONS)}"
            )
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < 1e9:
            raise UsageError("must be a number, 0 or more", field=f"weights: {name}", value=str(weight))
    total = sum(raw.values())
    if total <= 0:
        raise UsageError("all weights are 0", field="weights", value=str(path))
    return {name: weight / total for name, weight in raw.items()}


def scorecard(candidates: Sequence[Evaluated], weights: Mapping[str, float]) -> dict[str, Any]:
    """Return the table: per candidate every dimension's value and score, the total, and who is dominated.

    A dimension that some candidate has no figure for scores 0 there, and is named in `missing`: no figure is not a good
    figure.

    Raises:
        UsageError: fewer than two candidates, or they were evaluated on different golden sets.
    """
    if len(candidates) < 2:
        raise UsageError("needs at least two evaluations", field="evaluation", value=len(candidates))
    if len({c.report["golden"]["digest"] for c in candidates}) > 1:
        raise UsageError("the golden sets differ", field="evaluation", fix="evaluate all candidates on one set")
    chosen = [DIMENSIONS[name] for name in weights]
    values = [{d.name: d.read(c.report) for d in chosen} for c in candidates]
    scores = [{d.name: _score(d, row[d.name], [v[d.name] for v in values]) for d in chosen} for row in values]
    rows = []
    for candidate, value, score in zip(candidates, values, scores, strict=True):
        rows.append(
            {
                "model": candidate.name,
                "folder": str(candidate.folder),
                "values": value,
                "scores": score,
                "total": sum(weights[name] * score[name] for name in weights),
                "missing": [name for name, v in value.items() if v is None],
                "dominated_by": [
                    other.name
                    for other, theirs in zip(candidates, scores, strict=True)
                    if other is not candidate and _dominates(theirs, score)
                ],
            }
        )
    return {
        "kind": "scorecard",
        "golden": candidates[0].report["golden"],
        "weights": dict(weights),
        "units": {d.name: d.unit for d in chosen},
        "candidates": sorted(rows, key=lambda r: -r["total"]),
    }


def _score(dimension: Dimension, value: float | None, everybody: Sequence[float | None]) -> float:
    if value is None:
        return 0.0
    if dimension.more_is_better:
        return max(0.0, min(1.0, value))
    best = min(v for v in everybody if v is not None)
    return 1.0 if value <= best else best / value


def _dominates(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    return all(one[k] >= other[k] for k in other) and any(one[k] > other[k] for k in other)
