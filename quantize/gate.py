"""The gate: parent and candidate served by the same vLLM, the same items, paired; may the candidate replace the parent?

One side is served after the other, never both at once.  What a side gave is kept in the output folder, so an
interrupted gate continues, and a ladder asks the parent once.
"""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from models.evaluation import EvaluationSettings, evaluate
from models.evaluation.compare import Evaluated, read_evaluation
from models.evaluation.context import command, hardware, versions
from models.evaluation.score import is_right
from models.golden import GoldenItem, load_golden
from models.stats import mcnemar, paired_difference, quantile, wilson
from models.support.errors import CheckFailed, UsageError
from models.support.files import write_json
from quantize import artifact
from quantize.engine import EngineSettings, Held, Served, served
from quantize.probe import Probe, divergence, picture_share, probe
from quantize.recovery import recovery
from quantize.run import checkpoint_folder, engine_for
from quantize.schemes import SCHEMES
from quantize.scope import read_headers
from quantize.verdict import Thresholds, decide, load_thresholds

PROBED = 200
Say = Callable[[str], None]


@dataclass(frozen=True)
class GateSettings:
    """One comparison.  `usd_per_hour`: of the machine that serves, for $/query; None leaves money out.

    `parent_out`: where the parent's answers are kept, `out/parent` by default; a ladder keeps them once for all rungs.
    """

    parent: str
    candidate: Path
    golden: str
    out: Path
    limit: int | None = None
    seed: int = 0
    concurrency: int = 32
    max_tokens: int = 16
    thresholds: Path | None = None
    usd_per_hour: float | None = None
    parent_out: Path | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)

    def __post_init__(self) -> None:
        price = self.usd_per_hour
        if price is not None and not 0 < price <= 1e6:
            raise UsageError("must be dollars, above 0", field="usd-per-hour", value=price, fix="write it like 3.99")


@dataclass(frozen=True)
class Side:
    """What one served checkpoint gave."""

    evaluated: Evaluated
    facts: dict[str, Any]
    probe: Probe


def run_gate(settings: GateSettings, say: Say = lambda text: None, held: Held | None = None) -> dict[str, Any]:
    """Serve, ask, compare, decide; write report.json and report.html; return the report.

    `held` may hold an engine that serves the candidate already: it is asked first, and ended.

    Raises:
        UsageError: wrong input.
        CheckFailed: a checkpoint does not load or stops answering (a bad verdict is not an error here).
    """
    from quantize.gate_page import write_page

    parent = checkpoint_folder(settings.parent)
    candidate = checkpoint_folder(str(settings.candidate))
    manifest = artifact.read_manifest(candidate)
    if manifest.get("kind") != artifact.KIND:
        raise UsageError(
            "was not quantized by fovea", field="candidate", value=str(candidate), fix="fovea quantize run"
        )
    if manifest["parent"]["files"] != artifact.files_of(parent):
        raise UsageError("is not the checkpoint that the candidate was made of", field="parent", value=str(parent))
    thresholds = load_thresholds(manifest["scheme"], settings.thresholds)
    golden = load_golden(settings.golden)
    asked = golden.sample(settings.limit, settings.seed)
    seen = set((manifest.get("calibration") or {}).get("images", ()))
    items = [i for i in asked if i.image.digest not in seen] if seen else list(asked)
    if not items:
        fix = "gate on other items than those calibrated on"
        raise UsageError("every picture was used to calibrate", field="golden", value=settings.golden, fix=fix)
    scheme = SCHEMES[manifest["scheme"]]
    folders = {"parent": (parent, settings.engine), "candidate": (candidate, engine_for(scheme, settings.engine))}
    sides: dict[str, Side] = {}
    running = None if held is None else held.engine
    for name in ("candidate", "parent") if running is not None else ("parent", "candidate"):
        folder, engine = folders[name]
        sides[name] = one_side(name, folder, items, settings, engine, say, running if name == "candidate" else None)
        if held is not None and name == "candidate":
            held.close()
    report = build_report(settings, manifest, thresholds, items, len(asked) - len(items), sides)
    write_json(settings.out / "report.json", report)
    write_page(settings.out / "report.html", report, items, sides, manifest)
    return report


def one_side(
    name: str,
    folder: Path,
    items: list[GoldenItem],
    settings: GateSettings,
    engine: EngineSettings,
    say: Say,
    running: Served | None = None,
) -> Side:
    """Serve one checkpoint (unless `running` does), evaluate and probe it; or read back what an earlier call kept."""
    place = settings.parent_out if name == "parent" and settings.parent_out else settings.out / name
    asked = {n: getattr(settings, n) for n in ("golden", "limit", "seed", "concurrency", "max_tokens")}
    identity = {
        **asked,
        "files": artifact.files_of(folder),
        "digest": load_golden(settings.golden).digest,
        "engine": asdict(engine) | {"arguments": list(engine.arguments)},
        "vllm": {k: v for k, v in versions().items() if k.startswith("vllm")},
    }
    known = _read(place / "identity.json") == identity
    facts = _read(place / "side.json") if known else None
    if facts is not None:
        say(f"{name}: measured before")
        return Side(read_evaluation(place), facts["facts"], Probe(**facts["probe"]))
    if not known:
        if (place / "identity.json").exists():
            shutil.rmtree(place)  # of another comparison
        write_json(place / "identity.json", identity)
    with ExitStack() as stack:
        if running is None:
            say(f"{name}: starting vLLM on {folder.name}")
            running = stack.enter_context(served(folder, name, settings.out / f"{name}.log", engine))
        say(f"{name}: {len(items)} items, {settings.concurrency} at a time")
        report = evaluate(EvaluationSettings(url=running.url, model=name, out=place, **asked))
        if report["run"]["stopped"] is not None:
            raise CheckFailed(f"{name}: {report['run']['stopped']}", field="engine")
        say(f"{name}: first tokens, one at a time")
        probed = probe(running.url, name, distinct_pictures(items, PROBED))
        measured = {
            "folder": str(folder),
            "files": identity["files"],
            "evaluation": str(place.resolve()),
            "start_s": round(running.start_s, 1),
            "kernels": running.kernels,
            "memory_bytes": running.memory_bytes(),
            "weights_gib": running.weights_gib,
            "bytes": sum(t.size for t in read_headers(folder).values()),
            "picture": picture_share(probed),
            "picture_note": probed.text_note,
        }
    write_json(place / "side.json", {"facts": measured, "probe": probed.as_dict()})
    return Side(read_evaluation(place), measured, probed)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def distinct_pictures(items: list[GoldenItem], most: int) -> list[GoldenItem]:
    """Return up to `most` items with a picture each that no earlier one has: a repeated one would hit a cache."""
    chosen: dict[int, GoldenItem] = {}
    for item in items:
        chosen.setdefault(id(item.image), item)
        if len(chosen) == most:
            break
    return list(chosen.values())


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
    shown = {name: describe_side(settings, side, items, right[name]) for name, side in sides.items()}
    diverged = divergence(sides["parent"].probe.first, sides["candidate"].probe.first)
    figures = {
        "divergence": diverged.value,
        "calibration_error": _rise(shown["parent"]["calibration_error"], shown["candidate"]["calibration_error"]),
        "p95_ratio": _ratio(
            shown["candidate"]["latency_ms"]["p95"]["value"], shown["parent"]["latency_ms"]["p95"]["value"]
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
        "sides": shown,
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
    return {
        **facts,
        "accuracy": accuracy.as_dict(),
        "errors": report["errors"],
        "calibration_error": (report["calibration"] or {}).get("ece"),
        "reliability": (report["calibration"] or {}).get("bins"),
        "latency_ms": {f"p{round(100 * q)}": quantile(times, q).as_dict() for q in (0.5, 0.95, 0.99)},
        "requests_per_s": rate,
        "concurrency": settings.concurrency,
        "first_token_ms": quantile(side.probe.picture_ms, 0.5).as_dict() if side.probe.picture_ms else None,
        "usd_per_hour": settings.usd_per_hour,
        "usd_per_query": per_query,
        "usd_per_right_answer": per_query / accuracy.value if per_query and accuracy.value else None,
    }


def _rise(parent: dict[str, Any] | None, candidate: dict[str, Any] | None) -> float | None:
    """How much the calibration error rose; None where one side has none."""
    if not parent or not candidate or parent["value"] is None or candidate["value"] is None:
        return None
    return float(candidate["value"]) - float(parent["value"])


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
