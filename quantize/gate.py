"""The gate: parent and candidate served by the same vLLM, the same items, paired; may the candidate replace the parent?

One side is served after the other, never both at once.  What a side gave is kept in the output folder, so an
interrupted gate continues, and a ladder asks the parent once.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from models.evaluation import EvaluationSettings, evaluate
from models.evaluation.compare import Evaluated, read_evaluation
from models.evaluation.context import versions
from models.golden import GoldenItem, load_golden
from models.support.errors import CheckFailed, UsageError
from models.support.files import write_json
from quantize import artifact
from quantize.engine import EngineSettings, Held, Served, served
from quantize.probe import Probe, picture_share, probe
from quantize.run import checkpoint_folder, engine_for
from quantize.schemes import SCHEMES
from quantize.scope import read_headers
from quantize.verdict import load_thresholds

PROBED = 200
Say = Callable[[str], None]


@dataclass(frozen=True)
class GateSettings:
    """One comparison.  `usd_per_hour`: of the machine that serves, for $/query; None leaves money out.

    `slo_ms`: longest latency of a good answer, for goodput (answers a second within it); None leaves it out.
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
    slo_ms: float | None = None
    parent_out: Path | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)

    def __post_init__(self) -> None:
        price = self.usd_per_hour
        if price is not None and not 0 < price <= 1e6:
            raise UsageError("must be dollars, above 0", field="usd-per-hour", value=price, fix="write it like 3.99")
        if self.slo_ms is not None and not 0 < self.slo_ms <= 1e7:
            raise UsageError("must be milliseconds, above 0", field="slo-ms", value=self.slo_ms, fix="like 500")
        self.evaluation("http://127.0.0.1", "parent", self.out)  # its limits are ours

    @property
    def asked(self) -> dict[str, Any]:
        """What both sides are asked, as `EvaluationSettings` names it."""
        return {n: getattr(self, n) for n in ("golden", "limit", "seed", "concurrency", "max_tokens")}

    def evaluation(self, url: str, model: str, out: Path) -> EvaluationSettings:
        """Return the evaluation of one side.  Raises UsageError as `EvaluationSettings`."""
        return EvaluationSettings(url=url, model=model, out=out, **self.asked)


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
    from quantize.gate_report import build_report

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
    identity = {
        **settings.asked,
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
        report = evaluate(settings.evaluation(running.url, name, place))
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
