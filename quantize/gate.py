"""The gate: parent and candidate served by the same vLLM, the same items, paired; may the candidate replace the parent?

One side is served after the other, never both at once.  What a side gave is kept, so an interrupted gate continues;
what a parent gave is kept by its content, so that every candidate of one parent is compared with the same answers.
"""

from __future__ import annotations

import datetime as dt
import fcntl
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from models.evaluation import EvaluationSettings, evaluate
from models.evaluation.compare import Evaluated, read_evaluation
from models.evaluation.context import hardware, versions
from models.golden import GoldenItem, load_golden
from models.support.errors import CheckFailed, UsageError
from models.support.files import write_json
from quantize import artifact
from quantize.calibration import describe, unlike
from quantize.engine import EngineSettings, Held, Served, served
from quantize.probe import Probe, picture_share, probe
from quantize.run import checkpoint_folder, engine_for
from quantize.schemes import SCHEMES
from quantize.scope import bytes_by_part
from quantize.under_load import highest_rate
from quantize.verdict import load_thresholds

PROBED = 200
Say = Callable[[str], None]


@dataclass(frozen=True)
class GateSettings:
    """One comparison.  `usd_per_hour`: of the machine that serves, for $/query; None leaves money out.

    `slo_ms`: longest latency of a good answer: the highest rate that keeps it is searched, and the gate's own load is
    judged by it (goodput); None leaves both out.
    `parents`: where parents' answers are kept by content, the folder `parents` beside `out` by default.
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
    parents: Path | None = None
    engine: EngineSettings = field(default_factory=EngineSettings)

    def __post_init__(self) -> None:
        price = self.usd_per_hour
        if price is not None and not 0 < price <= 1e6:
            raise UsageError("must be dollars, above 0", field="usd-per-hour", value=price, fix="write it like 3.99")
        if self.slo_ms is not None and not 0 < self.slo_ms <= 1e7:
            raise UsageError("must be milliseconds, above 0", field="slo-ms", value=self.slo_ms, fix="like 500")
        self.evaluation("http://127.0.0.1", "parent", self.out)  # its limits are ours
        artifact.check_place(self.out, "report")
        artifact.check_place(self.parents or self.out.parent, "parents")

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
    warnings: list[str] = []
    if manifest.get("calibration"):
        asked_for = describe(golden, items, settings.golden, settings.seed)
        warnings = unlike(manifest["calibration"], asked_for, "golden set")
    for warning in warnings:
        say(f"warning: {warning}")
    scheme = SCHEMES[manifest["scheme"]]
    folders = {"parent": (parent, settings.engine), "candidate": (candidate, engine_for(scheme, settings.engine))}
    sides: dict[str, Side] = {}
    running = None if held is None else held.engine
    for name in ("candidate", "parent") if running is not None else ("parent", "candidate"):
        folder, engine = folders[name]
        identity = identity_of(folder, settings, engine, golden.digest)
        serving = running if name == "candidate" else None
        sides[name] = one_side(name, folder, identity, items, settings, engine, say, serving)
        if held is not None and name == "candidate":
            held.close()
    sides = {name: sides[name] for name in folders}  # the parent first, whichever was asked first
    report = build_report(settings, manifest, thresholds, items, len(asked) - len(items), sides)
    report["warnings"] = [*manifest.get("warnings", ()), *warnings]
    write_json(settings.out / "report.json", report)
    write_page(settings.out / "report.html", report, items, sides, manifest)
    return report


def one_side(
    name: str,
    folder: Path,
    identity: dict[str, Any],
    items: list[GoldenItem],
    settings: GateSettings,
    engine: EngineSettings,
    say: Say,
    running: Served | None = None,
) -> Side:
    """Serve one checkpoint (unless `running` does), evaluate and probe it; or read back what an earlier call kept."""
    place = settings.out / name
    if name == "parent":
        place = (settings.parents or settings.out.parent / "parents") / key_of(identity)
    with _alone(place, say) if name == "parent" else nullcontext():
        known = _read(place / "identity.json") == identity
        facts = _read(place / "side.json") if known else None
        rate = _read(place / "rate.json") if known and settings.slo_ms is not None else None
        wants_rate = settings.slo_ms is not None and (rate or {}).get("slo_ms") != settings.slo_ms
        if facts is not None and not wants_rate:
            say(f"{name}: measured before, {facts['facts']['measured']}")
            return _side(place, facts, rate)
        # an evaluation goes on only with the folder that it began with: a checkpoint is proven before it has its name
        begun = (_read(place / "run.json") or {}).get("root") or str(folder)
        if not known or (facts is None and (running is not None or begun != str(folder))):
            shutil.rmtree(place, ignore_errors=True)
            write_json(place / "identity.json", identity)
        with ExitStack() as stack:
            if running is None:
                say(f"{name}: starting vLLM on {folder.name}")
                running = stack.enter_context(served(folder, name, settings.out / f"{name}.log", engine))
            if facts is None:
                facts = _measure(name, folder, place, items, settings, running, say)
            if wants_rate:
                rate = _search_rate(name, place, settings, running, say)
    return _side(place, facts, rate)


def _measure(
    name: str, folder: Path, place: Path, items: list[GoldenItem], settings: GateSettings, engine: Served, say: Say
) -> dict[str, Any]:
    """Ask a served checkpoint everything; keep and return what it gave.  Raises CheckFailed when it stops answering."""
    say(f"{name}: {len(items)} items, {settings.concurrency} at a time")
    report = evaluate(settings.evaluation(engine.url, name, place))
    if report["run"]["stopped"] is not None:
        raise CheckFailed(f"{name}: {report['run']['stopped']}", field="engine")
    say(f"{name}: first tokens, one at a time")
    probed = probe(engine.url, name, distinct_pictures(items, PROBED))
    parts = bytes_by_part(folder)
    measured = {
        "folder": str(folder),
        "files": artifact.files_of(folder),
        "evaluation": str(place.resolve()),
        "measured": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "start_s": round(engine.start_s, 1),
        "kernels": engine.kernels,
        "memory_bytes": engine.memory_bytes(),
        "weights_gib": engine.weights_gib,
        "kv_tokens": engine.kv_tokens,
        "bytes": sum(parts.values()),
        "bytes_by_part": parts,
        "picture": picture_share(probed),
        "picture_note": probed.text_note,
    }
    found = {"facts": measured, "probe": probed.as_dict()}
    write_json(place / "side.json", found)
    return found


def _search_rate(name: str, place: Path, settings: GateSettings, engine: Served, say: Say) -> dict[str, Any]:
    """Search the highest rate that keeps the SLO; keep and return it.  Raises CheckFailed as `highest_rate`."""
    assert settings.slo_ms is not None
    say(f"{name}: searching the highest rate with P95 under {settings.slo_ms:g} ms (a minute or more)")
    near = read_evaluation(place).report["run"]["requests_per_s"]
    found = highest_rate(
        engine.url,
        name,
        settings.golden,
        place / "rate",
        slo_ms=settings.slo_ms,
        near=near,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
    )
    write_json(place / "rate.json", found)
    return found


def _side(place: Path, facts: dict[str, Any], rate: dict[str, Any] | None) -> Side:
    return Side(read_evaluation(place), {**facts["facts"], "rate_at_slo": rate}, Probe(**facts["probe"]))


def identity_of(folder: Path, settings: GateSettings, engine: EngineSettings, digest: str) -> dict[str, Any]:
    """Return everything that what a side gives depends on: weights, questions (`digest`), engine, machine."""
    machine = {k: v for k, v in hardware().items() if k in ("cpu", "cores", "memory_gib")}
    return {
        **settings.asked,
        "files": artifact.files_of(folder),
        "digest": digest,
        "engine": orjson.loads(orjson.dumps(asdict(engine))),  # as it is read again
        "vllm": {k: v for k, v in versions().items() if k.startswith("vllm")},
        "machine": machine,
    }


def key_of(identity: dict[str, Any]) -> str:
    """Return the folder name that a parent's answers have: a digest of their identity."""
    return hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


@contextmanager
def _alone(place: Path, say: Say) -> Iterator[None]:
    """Hold a place alone: two gates of one parent measure it once, one after the other."""
    place.parent.mkdir(parents=True, exist_ok=True)
    path = place.with_name(f".{place.name}.lock")
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting: another gate measures {place}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
