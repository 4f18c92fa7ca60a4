"""Run the quantization job in its own environment, as a process with a typed request and reply.

llm-compressor and vLLM want different versions of compressed-tensors, so the job's Python is that of `.venv-quantize`
(`make setup-quantize`, or made on first use).  `FOVEA_QUANTIZE_PYTHON` names another one, such as a container's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pydantic import ValidationError

from models.support.errors import CheckFailed, FoveaError, UsageError
from quantize.request import Event, JobRequest, JobResult, Reply

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-quantize"
GRACE_S = 10.0
Listen = Callable[[Event], None]


def find_python(say: Callable[[str], None]) -> Path:
    """Return the quantization environment's Python, making the environment on first use.

    Raises:
        UsageError: `FOVEA_QUANTIZE_PYTHON` is wrong, or there is no environment and none can be made.
    """
    named = os.environ.get("FOVEA_QUANTIZE_PYTHON")
    if named:
        if not os.access(named, os.X_OK):
            raise UsageError("no such program", field="FOVEA_QUANTIZE_PYTHON", value=named, fix="name a Python")
        return Path(named)
    if not _finished():
        script = ROOT / "scripts" / "setup"
        if not script.exists():
            fix = "set FOVEA_QUANTIZE_PYTHON to a Python with the extra fovea[quantize]"
            raise UsageError("no environment for quantization", field="quantize", fix=fix)
        say("making the quantization environment (once, a few minutes)")
        made = subprocess.run(["sh", str(script), "quantize"], cwd=ROOT, check=False)
        if made.returncode or not _finished():
            raise UsageError("the environment could not be made", field="quantize", fix="run make setup-quantize")
    return FOLDER / "bin" / "python"


def _finished() -> bool:
    """Whether set-up wrote its stamp, last of all, and did not mark it unfinished."""
    try:
        stamp = json.loads((FOLDER / "fovea-setup.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(stamp, dict) and "lock" in stamp and not stamp.get("unfinished")


def run_job(request: JobRequest, work: Path, listen: Listen, *, python: Path) -> JobResult:
    """Run one job and return its result.

    Args:
        request: what to do.
        work: folder for request.json, reply.json and job.log (the libraries' own output).
        listen: gets every event.
        python: the environment's Python.

    An interruption of this process ends the job too: the job ends when its stdin closes.

    Raises:
        UsageError, CheckFailed: as the job says; CheckFailed too when it died without a word.
    """
    paths = {name: work / name for name in ("request.json", "reply.json", "job.log")}
    paths["request.json"].write_text(request.model_dump_json(indent=1), "utf-8")
    paths["reply.json"].unlink(missing_ok=True)
    command = [str(python), "-m", "quantize.job", str(paths["request.json"]), str(paths["reply.json"])]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with paths["job.log"].open("w") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            start_new_session=True,
        )
        try:
            for line in process.stdout or ():
                with suppress(ValidationError):  # a line that a library printed before the job took stdout away
                    listen(Event.model_validate_json(line))
            code = process.wait()
        finally:
            stop(process)
    return read_reply(paths["reply.json"], code, paths["job.log"])


def stop(process: subprocess.Popen[str]) -> None:
    """End a job that still runs, its own processes included."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def read_reply(path: Path, code: int, log: Path) -> JobResult:
    """Return the result in a reply file, or raise the error that it holds (or that its absence means)."""
    try:
        reply = Reply.model_validate_json(path.read_text("utf-8"))
    except (OSError, ValidationError):
        raise _died(code, log) from None
    if reply.result is not None:
        return reply.result
    if reply.error is None:
        raise _died(code, log)
    kinds: dict[str, type[FoveaError]] = {"UsageError": UsageError, "CheckFailed": CheckFailed}
    e = reply.error
    raise kinds[e.kind](e.message, field=e.field, value=e.value, fix=e.fix)


def _died(code: int, log: Path) -> CheckFailed:
    last = deque[str](maxlen=1)
    with suppress(OSError):
        last.extend(line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip())
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    killed = "the kernel ends the largest process when memory runs out: free some" if code == -9 else "see job.log"
    return CheckFailed(
        f"the job ended without a result ({how})", field="quantize", value=last[0][:300] if last else None, fix=killed
    )
