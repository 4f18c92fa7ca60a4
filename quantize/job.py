"""The quantization job: `python -m quantize.job REQUEST RESULT` in the quantization environment.

Stages: read the checkpoint and look for NaN, put the calibration items through the real processor, quantize, save
beside, check every tensor of the file.  stdout carries `Event`s only; the libraries' own words go to stderr.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.support.errors import CheckFailed, FoveaError, UsageError
from quantize.request import CalibrationFacts, Event, JobError, JobRequest, JobResult, Reply

if TYPE_CHECKING:
    from quantize.job_data import Batches

PACKAGES = ("torch", "transformers", "llmcompressor", "compressed-tensors", "bitsandbytes", "fovea")
Say = Callable[..., None]


def load_model(request: JobRequest) -> Any:
    """Return the 16-bit model on the CPU or, where there is one, the GPU.

    Raises:
        UsageError: it cannot be loaded, or a weight is NaN or infinite (the tensor is named).
    """
    import torch
    from transformers import AutoModelForImageTextToText

    try:
        model = AutoModelForImageTextToText.from_pretrained(request.model, dtype="auto")
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        fix = "copy or download the checkpoint again"
        raise UsageError(f"cannot be loaded: {reason}", field="model", value=str(request.model), fix=fix) from error
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            fix = "the checkpoint is damaged: take another one"
            raise UsageError(f"{bad} weights are NaN or infinite", field="model", value=name, fix=fix)
    return place(model)


def place(model: Any) -> Any:
    """Return the model on the GPU where there is one."""
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model


def execute(request: JobRequest, say: Say) -> JobResult:
    """Do the whole job.

    Raises:
        UsageError: wrong input.
        CheckFailed: what came out is not what was asked for, or could not be saved.
    """
    import torch

    from quantize.job_files import save_and_check
    from quantize.job_tools import TOOLS

    if request.threads is not None:
        torch.set_num_threads(request.threads)
    torch.manual_seed(request.seed)
    seconds: dict[str, float] = {}
    started = time.perf_counter()

    def timed(stage: str) -> None:
        nonlocal started
        now = time.perf_counter()
        seconds[stage] = round(now - started, 3)
        started = now

    say("loading the checkpoint")
    model = load_model(request)
    timed("load")
    batches: Batches | None = None
    facts: CalibrationFacts | None = None
    if request.calibration is not None:
        from quantize.job_data import prepare

        batches, facts = prepare(request, model, say)
        timed("prepare")
    say(f"quantizing {len(request.expected)} modules")
    done = TOOLS[request.tool](request, model, batches, say)
    timed("quantize")
    say("saving and checking")
    saved = save_and_check(request, model, done)
    timed("save")
    return JobResult(
        modules=saved.modules,
        changed=saved.changed,
        calibration=facts,
        recipe=done.recipe,
        quantization_config=saved.quantization_config,
        seconds=seconds,
        versions=versions(),
        bytes_before=saved.bytes_before,
        bytes_after=saved.bytes_after,
        quantized_bytes_before=saved.quantized_bytes_before,
        quantized_bytes_after=saved.quantized_bytes_after,
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages of this environment that matter."""
    found = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def as_error(error: BaseException) -> JobError:
    """Return the error as the other side gets it; what is not ours is a failed check with its class and last words."""
    if isinstance(error, FoveaError):
        kind = "UsageError" if isinstance(error, UsageError) else "CheckFailed"
        value = None if error.value is None else str(error.value)
        return JobError(kind=kind, message=error.message, field=error.field, value=value, fix=error.fix)
    words = " ".join(str(error).split())[:400]
    fix = "see the log; free memory or use a larger machine" if isinstance(error, MemoryError) else "see the log"
    return JobError(kind="CheckFailed", message=f"the job failed: {type(error).__name__}: {words}", fix=fix)


def end_with_parent() -> None:
    """End this process when its stdin closes: whoever asked for the job is gone."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(130)

    threading.Thread(target=watch, daemon=True).start()


def main(argv: list[str]) -> int:
    """Run the request file `argv[0]`, leave the reply in `argv[1]`; 0 when there is a result."""
    request = JobRequest.model_validate_json(Path(argv[0]).read_text("utf-8"))
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        end_with_parent()
    # our own handle on stdout; whatever a library prints goes to stderr with the rest of its words
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(stage: str, done: int | None = None, total: int | None = None) -> None:
        events.write(Event(stage=stage, done=done, total=total).model_dump_json(exclude_none=True) + "\n")

    try:
        reply = Reply(result=execute(request, say))
    except Exception as error:
        import traceback

        traceback.print_exc()
        reply = Reply(error=as_error(error))
    target = Path(argv[1])
    try:
        target.write_text(reply.model_dump_json(), "utf-8")
    except OSError as error:
        raise CheckFailed(f"cannot write: {error.strerror}", field=str(target), fix="free space") from error
    return 0 if reply.error is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
