"""`fovea quantize run`: from a 16-bit checkpoint to a quantized one that is known to load and answer."""

from __future__ import annotations

import datetime as dt
import importlib.util
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from models.evaluation.context import command, hardware, versions
from models.support.errors import CheckFailed, UsageError
from models.support.files import write_json
from quantize import artifact
from quantize.accept import accept
from quantize.calibration import SAMPLES, Calibration, differences, draw
from quantize.engine import EngineSettings, Held
from quantize.hardware import check_target
from quantize.request import FEWEST_TOKENS, Event, JobRequest, JobResult
from quantize.runner import find_python, run_job
from quantize.schemes import Scheme, choose_group, find_method, find_scheme
from quantize.scope import Scope, plan_scope, read_headers
from quantize.smoothing import check_method

EMBEDDED = Path(__file__).resolve().parent.parent / "models" / "embedded"
Say = Callable[[str], None]


@dataclass(frozen=True)
class RunSettings:
    """One quantization as a user asks for it.  `target`: where it will be served (`here`, a GPU's name, `cpu`)."""

    model: str
    out: Path
    scheme: str = "w4a16"
    method: str | None = None
    group: int | None = None
    calibration: str | None = None
    samples: int = SAMPLES
    traffic: str | None = None
    target: str = "here"
    vision: bool = False
    seed: int = 0
    max_tokens: int = 2048
    replace: bool = False
    engine: EngineSettings = field(default_factory=EngineSettings)

    def __post_init__(self) -> None:
        if self.max_tokens < FEWEST_TOKENS:
            fix = "2048 is the default"
            raise UsageError(f"must be at least {FEWEST_TOKENS}", field="max-tokens", value=self.max_tokens, fix=fix)


def checkpoint_folder(model: str) -> Path:
    """Return the folder of `embedded:NAME` or of a path.  Raises UsageError when there is no checkpoint."""
    if model.startswith("embedded:"):
        folder = EMBEDDED / model.removeprefix("embedded:")
        if not (folder / "config.json").exists() or folder.parent != EMBEDDED:
            names = ", ".join(f"embedded:{p.parent.name}" for p in sorted(EMBEDDED.glob("*/config.json")))
            raise UsageError("no such embedded model", field="model", value=model, fix=f"one of {names}")
        return folder
    folder = Path(model).expanduser().resolve()
    if not (folder / "config.json").is_file():
        fix = "name a checkpoint folder (download it first), or embedded:qwen2_5_vl"
        raise UsageError("no checkpoint (config.json) there", field="model", value=model, fix=fix)
    return folder


@dataclass(frozen=True)
class Plan:
    """What was decided before any work: nothing has been written yet."""

    parent: Path
    scheme: Scheme
    method: str
    group: int | None
    scope: Scope
    calibration: Calibration | None
    warnings: list[str]


def plan(settings: RunSettings) -> Plan:
    """Check everything that can be checked without work.  Raises UsageError for the first thing that is wrong."""
    parent = checkpoint_folder(settings.model)
    scheme = find_scheme(settings.scheme)
    method = find_method(scheme, settings.method)
    warnings = check_target(scheme, settings.target)
    check_engine(scheme)
    if settings.vision and scheme.tool != "llmcompressor":
        raise UsageError("is for llm-compressor's schemes only", field="vision", value=scheme.name)
    scope = plan_scope(parent, vision=settings.vision)
    check_method(method, scope.architecture)
    group = choose_group(scheme, scope.widths, settings.group)
    calibration = None
    if scheme.needs_calibration(method):
        if settings.calibration is None:
            fix = "give --calibration: a golden set of your own pictures and questions, or easy-vqa-train"
            raise UsageError(f"{method} needs pictures to calibrate on", field="calibration", fix=fix)
        calibration = draw(settings.calibration, settings.samples, settings.seed)
        if settings.traffic is not None:
            warnings += differences(calibration.facts, settings.traffic)
    elif settings.calibration is not None:
        warnings.append(f"{scheme.name} by {method} looks at no data: --calibration is not used")
    if settings.vision:
        warnings.append("the vision tower is quantized too, as asked: expect a loss of accuracy and little speed")
    return Plan(parent, scheme, method, group, scope, calibration, warnings)


def check_engine(scheme: Scheme) -> None:
    """Find out before the work that this environment's vLLM could not load the scheme.  Raises UsageError."""
    if scheme.tool == "bitsandbytes" and importlib.util.find_spec("vllm_bnb_plugin") is None:
        fix = "run make setup: the plugin is in its lock"
        raise UsageError("vLLM 0.29 loads it by a plugin that is not here", field="scheme", value=scheme.name, fix=fix)


def quantize(settings: RunSettings, say: Say = lambda text: None, held: Held | None = None) -> dict[str, Any]:
    """Quantize, prove, serve once, and put the checkpoint in place; return its manifest.

    With `held` the engine that served it goes on running there, for the gate.

    Raises:
        UsageError: wrong input; nothing was written.
        CheckFailed: a check failed; nothing is left under `settings.out`.
    """
    decided = plan(settings)
    for warning in decided.warnings:
        say(f"warning: {warning}")
    python = find_python(say)
    started = time.monotonic()  # an environment that had to be made first is not the checkpoint's time
    # 16-bit weights are held while the tensors are renamed
    size = sum(t.size for t in read_headers(decided.parent).values())
    with (
        artifact.staging(settings.out, need_bytes=2 * size + 50_000_000, replace=settings.replace) as staged,
        tempfile.TemporaryDirectory(prefix="fovea-quantize-") as folder,
    ):
        work = Path(folder)
        try:
            with nullcontext(held) if held is not None else Held(work / "vllm.log") as engine:
                manifest = _make(settings, decided, python, staged, work, say, started, engine)
        except (CheckFailed, UsageError):
            _keep_logs(work, settings.out)
            raise
    return manifest


def _make(
    settings: RunSettings, plan: Plan, python: Path, staged: Path, work: Path, say: Say, started: float, held: Held
) -> dict[str, Any]:
    request = _request(settings, plan, staged, work)
    last = ""

    def listen(event: Event) -> None:
        nonlocal last
        if event.stage != last:
            say(event.stage)
            last = event.stage

    result = run_job(request, work, listen, python=python)
    companions = artifact.copy_companions(plan.parent, staged)
    say("serving it once with vLLM")
    first = None
    facts = result.calibration
    if plan.calibration is not None and facts is not None:
        first = next(i for i in plan.calibration.items if i.id == facts.first_item)
    tokens = facts.first_prompt_tokens if facts is not None else None
    answered = accept(staged, held, first, tokens, engine_for(plan.scheme, settings.engine))
    manifest = describe(settings, plan, result, companions, answered, staged)
    manifest["seconds"]["total"] = round(time.monotonic() - started, 1)
    write_json(staged / artifact.MANIFEST, manifest)
    return manifest


def engine_for(scheme: Scheme, settings: EngineSettings) -> EngineSettings:
    """Return the engine's settings for a scheme: vLLM takes bitsandbytes from a plugin, and must be told so."""
    if scheme.tool != "bitsandbytes":
        return settings
    return replace(settings, arguments=(*settings.arguments, "--quantization", "bitsandbytes"))


def _request(settings: RunSettings, plan: Plan, staged: Path, work: Path) -> JobRequest:
    folder = None
    if plan.calibration is not None:
        folder = work / "calibration"
        plan.calibration.write(folder)
    tool = plan.scheme.tool
    assert tool == "llmcompressor" or tool == "bitsandbytes"
    return JobRequest(
        model=plan.parent,
        staging=staged,
        architecture=plan.scope.architecture,
        scheme=plan.scheme.name,
        tool=tool,
        method=plan.method,
        group=plan.group,
        expected=sorted(plan.scope.expected),
        kept=plan.scope.kept,
        ignore=plan.scope.ignore,
        forced=plan.scope.forced,
        calibration=folder,
        max_tokens=settings.max_tokens,
        seed=settings.seed,
    )


def describe(
    settings: RunSettings,
    plan: Plan,
    result: JobResult,
    companions: dict[str, str],
    answered: dict[str, Any],
    staged: Path,
) -> dict[str, Any]:
    """Return the manifest: what was made of what, with which recipe, and how it was checked."""
    calibration = None
    if plan.calibration is not None and result.calibration is not None:
        calibration = {**plan.calibration.facts, "processor": result.calibration.model_dump()}
    return {
        "kind": artifact.KIND,
        "scheme": plan.scheme.name,
        "method": plan.method,
        "group": plan.group,
        "architecture": plan.scope.architecture,
        "family": plan.scope.family,
        "target": settings.target,
        "parent": {"source": settings.model, "path": str(plan.parent), "files": artifact.files_of(plan.parent)},
        "recipe": result.recipe,
        "calibration": calibration,
        "modules": [m.model_dump() for m in result.modules],
        "smoothed": result.changed,
        "size": {
            "bytes": result.bytes_after,
            "parent_bytes": result.bytes_before,
            "ratio": result.bytes_after / result.bytes_before,
            "quantized_bytes": result.quantized_bytes_after,
            "quantized_parent_bytes": result.quantized_bytes_before,
            "quantized_ratio": result.quantized_bytes_after / result.quantized_bytes_before,
        },
        "companions": companions,
        "accepted": answered,
        "files": artifact.files_of(staged),
        "seed": settings.seed,
        "seconds": dict(result.seconds),
        "warnings": plan.warnings,
        "versions": {"job": result.versions, "engine": versions()},
        "hardware": hardware() | {"role": "quantized and served here"},
        "command": command(),
        "made": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
    }


def _keep_logs(work: Path, out: Path) -> None:
    """Copy the logs of a failed job beside where its folder would have been: the error points to them."""
    folder = out.expanduser().resolve().with_name(f"{out.name}-failed-logs")
    logs = [p for p in (work / "job.log", work / "vllm.log") if p.exists() and p.stat().st_size]
    if not logs:
        return
    try:
        folder.mkdir(exist_ok=True)
        for path in logs:
            shutil.copyfile(path, folder / path.name)
        print(f"logs: {folder}", file=sys.stderr)
    except OSError as error:
        print(f"logs could not be kept: {error}", file=sys.stderr)
