"""Serve one checkpoint with bare vLLM for as long as a block lasts: to prove that it loads, and for the gate.

Both sides of a comparison get the same engine, the same arguments and the same machine, one after the other.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from models.support.errors import CheckFailed, UsageError

ROOT = Path(__file__).resolve().parent.parent
READY_S = 900.0
# the stack's way to run vLLM's worker on a CPU: in the engine's process (named, not imported: vLLM loads it)
IN_PROCESS = "serving.executor.InProcess"
PARALLEL = ("--tensor-parallel-size", "-tp", "--distributed-executor-backend")
_KERNEL = re.compile(r"(?:Using|Selected) (\w+Kernel\w*) for (\w+)")
_LOADED = re.compile(r"Model loading took ([\d.]+) GiB")
_ROOM = re.compile(r"KV cache size: ([\d,]+) tokens")


@dataclass(frozen=True)
class EngineSettings:
    """How both sides of a comparison are served.

    Attributes:
        max_model_len: context in tokens, None for the model's own.
        kv_gib: KV cache on a CPU, GiB.
        kv_dtype: `auto` (16 bits) or `fp8`.
        arguments: more of vLLM's own command line.
        without: kernels of linear layers that vLLM must not take.

    Raises:
        UsageError: a value that no picture and question would fit in.
    """

    max_model_len: int | None = 2048
    kv_gib: int = 1
    kv_dtype: str = "auto"
    arguments: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, lowest in (("max_model_len", 64), ("kv_gib", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise UsageError(f"must be at least {lowest}", field=name.replace("_", "-"), value=value)


@dataclass
class Served:
    """A running engine.

    `kernels`: layer kind -> kernel, as vLLM logged it; `weights_gib` (memory of the weights) and `kv_tokens` (tokens
    that its KV cache holds) likewise, where it does.
    """

    url: str
    name: str
    pid: int
    start_s: float
    kernels: dict[str, str] = field(default_factory=dict)
    weights_gib: float | None = None
    kv_tokens: int | None = None

    def memory_bytes(self) -> int:
        """Return the memory of the engine's processes: proportional set size, KV cache included."""
        import psutil

        total = 0
        try:
            processes = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        for process in processes:
            with suppress(psutil.Error):
                total += process.memory_full_info().pss
        return total


def command(model: Path, name: str, port: int, settings: EngineSettings) -> list[str]:
    """Return vLLM's command line.  `vllm serve` does not know its own name in the CPU package: the module is run."""
    words = [sys.executable, "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    words += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), "--max-logprobs", "20"]
    words += ["--limit-mm-per-prompt", json.dumps({"image": 4, "video": 0}), "--kv-cache-dtype", settings.kv_dtype]
    if settings.max_model_len is not None:
        words += ["--max-model-len", str(settings.max_model_len)]
    if not _has_gpu():
        if not _has_compiler():
            words.append("--enforce-eager")
        if not any(word.startswith(PARALLEL) for word in settings.arguments):
            words += ["--distributed-executor-backend", IN_PROCESS]
    return [*words, *settings.arguments]


def _has_gpu() -> bool:
    return Path("/dev/nvidiactl").exists()


def _has_compiler() -> bool:
    """Return whether there is a C++ compiler: torch.compile needs one on a CPU, and without it nothing is compiled."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def environment(settings: EngineSettings) -> dict[str, str]:
    """Return the variables of an engine's processes, as the stack sets them."""
    found = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(settings.kv_gib),
    }
    if settings.without:
        found["VLLM_DISABLED_KERNELS"] = ",".join(settings.without)
    if not _has_gpu():
        # vLLM 0.29 cannot load what it compiled for a CPU ahead of time, and compiles at every start; inductor's own
        # cache works
        found["VLLM_USE_AOT_COMPILE"] = "0"
        if not _has_compiler():
            found["TORCHDYNAMO_DISABLE"] = "1"  # vLLM compiles more than the model: ranks of log probabilities, too
        cache = Path(os.environ.get("VLLM_CACHE_ROOT") or Path.home() / ".cache" / "vllm")
        found.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    return found


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this (new) process when its parent is gone, even if that was killed: Linux."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def free_port() -> int:
    """Return a port on loopback that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(model: Path, name: str, log: Path, settings: EngineSettings | None = None) -> Iterator[Served]:
    """Serve `model` until the block ends; vLLM's log goes to `log`.

    Raises:
        CheckFailed: the engine did not start; the message has its own reason.
    """
    settings = settings or EngineSettings()
    port = free_port()
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(
            command(model, name, port, settings),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment(settings),
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        try:
            wait_ready(process, port, log)
            engine = Served(f"http://127.0.0.1:{port}/v1", name, process.pid, time.monotonic() - started)
            text = log.read_text("utf-8", "replace")
            engine.kernels = {layer: kernel for kernel, layer in _KERNEL.findall(text)}
            loaded, room = _LOADED.search(text), _ROOM.search(text)
            engine.weights_gib = float(loaded.group(1)) if loaded else None
            engine.kv_tokens = int(room.group(1).replace(",", "")) if room else None
            yield engine
        finally:
            end(process)


class Held:
    """A place for one engine that outlives the call that starts it: what proved a checkpoint goes on to the gate.

    `log`: where its log goes.  Used as a context manager it ends the engine, whatever happened.
    """

    def __init__(self, log: Path):
        self.log = log
        self.engine: Served | None = None
        self._stack = ExitStack()

    def start(self, model: Path, name: str, settings: EngineSettings) -> Served:
        """Serve `model` until `close`.  Raises CheckFailed as `served`."""
        self.engine = self._stack.enter_context(served(model, name, self.log, settings))
        return self.engine

    def close(self) -> None:
        """End the engine, if there is one."""
        self.engine = None
        self._stack.close()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def wait_ready(process: subprocess.Popen[bytes], port: int, log: Path, timeout_s: float = READY_S) -> None:
    """Wait until `/health` answers.  Raises CheckFailed with the engine's reason when it ends or takes too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise CheckFailed("vLLM did not start", field="engine", value=reason(log), fix=f"see {log}")
        with (
            suppress(OSError, urllib.error.URLError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply,
        ):
            if reply.status == 200:
                return
        time.sleep(0.25)
    raise CheckFailed(f"vLLM is not ready after {timeout_s:g} s", field="engine", value=reason(log), fix=f"see {log}")


def reason(log: Path) -> str:
    """Return the engine's own reason in its log: the first real exception, or the last line."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    # a warning may speak of an error that could come
    errors = [
        n for n in lines if re.search(r"\b[A-Z]\w*(Error|Exception): ", n) and not re.search(r"\) (WARNING|INFO) ", n)
    ]
    told = [line for line in errors if "Engine core init" not in line] or lines[-1:] or ["it said nothing"]
    return re.sub(r"^.*?(?=\b[A-Z]\w*(Error|Exception): )", "", told[0])[:300]


def end(process: subprocess.Popen[bytes], grace_s: float = 30.0) -> None:
    """Stop a server and its worker processes; those that are still there after `grace_s` are killed."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(grace_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
