"""Run pip quietly inside an environment, and say in one line what went wrong when it fails.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE_SECONDS = 10.0
# Settings of the user's that would send packages elsewhere than into the environment.
MISLEADING = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PIP_NO_DEPS", "PIP_REQUIRE_HASHES", "PIP_NO_BINARY")
# What pip printed -> what that means for the user; the first that fits counts.
CAUSES = {
    "disk": (
        r"No space left on device|Errno 28|Disk quota exceeded",
        "the disk is full (the environment, pip's cache or TMPDIR): free some space",
    ),
    "hashes": (
        r"DO NOT MATCH THE HASHES",
        "the package index served a file that the lock does not name: use another mirror (PIP_INDEX_URL)",
    ),
    "certificate": (
        r"CERTIFICATE_VERIFY_FAILED|SSLError|SSL: ",
        "the package index's certificate is not trusted here: name the CA file in PIP_CERT",
    ),
    "unreachable": (
        r"Failed to establish a new connection|Temporary failure in name resolution|Name or service not known"
        r"|NameResolution|Max retries exceeded|ReadTimeout|Read timed out|ConnectTimeout|Cannot connect to proxy"
        r"|ProxyError|Connection refused|Connection reset|RemoteDisconnected"
        r"|\b50[0-9] (Server Error|Bad Gateway|Service Unavailable)",
        "the package index does not answer: check the network and the mirror that pip is set to (`pip config list`)",
    ),
    "permission": (
        r"Permission denied|Read-only file system",
        "the environment's folder cannot be written to: check its owner",
    ),
    "missing": (
        r"Could not find a version that satisfies|No matching distribution found",
        "the package index lacks a package of the lock, or does not answer: check the mirror that pip is set to",
    ),
}


class SetupError(Exception):
    """Set-up cannot go on; the text is the one line that the user sees.

    Args:
        message: that line.
        kind: a key of CAUSES when pip failed in a known way.
    """

    def __init__(self, message: str, kind: str | None = None):
        super().__init__(message)
        self.kind = kind


def diagnose(output: str, log: Path) -> SetupError:
    """Return what pip's output means, in one line: the cause, pip's own last error, and the log's name."""
    kind = next((key for key, (pattern, _) in CAUSES.items() if re.search(pattern, output)), None)
    cause = CAUSES[kind][1] if kind else "pip failed"
    errors = re.findall(r"^\s*ERROR: (.+)$", output, re.MULTILINE)
    said = (errors or output.strip().splitlines() or ["nothing"])[-1].strip()[:200]
    return SetupError(f"{cause} [pip said: {said}] (log: {log}); then run make setup again, it goes on from here", kind)


def clean_environment(temporary: Path) -> dict[str, str]:
    """Return this process's environment less what would lead pip astray; big temporary files go beside the project."""
    env = {name: value for name, value in os.environ.items() if name not in (*MISLEADING, "PYTHONPATH", "PYTHONHOME")}
    env.setdefault("TMPDIR", str(temporary))
    return env | {"PYTHONNOUSERSITE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}


def patience() -> list[str]:
    """Return pip's network limits, unless the user set their own: a dead mirror must be noticed within minutes."""
    wanted = {"--timeout": ("PIP_TIMEOUT", "PIP_DEFAULT_TIMEOUT", "30"), "--retries": ("PIP_RETRIES", "2")}
    found = []
    for option, (*names, value) in wanted.items():
        if not any(name in os.environ for name in names):
            found += [option, value]
    return found


class Pip:
    """pip of one environment.

    Args:
        python: the environment's interpreter.
        log: file that all of pip's output is appended to.
        temporary: folder for pip's temporary files.
        keep: file descriptors that pip inherits.
    """

    def __init__(self, python: Path, log: Path, temporary: Path, keep: tuple[int, ...] = ()):
        self.python, self.log, self.env, self.keep = python, log, clean_environment(temporary), keep

    def run(self, *args: str, each: Callable[[str], None] | None = None) -> str:
        """Run `pip ARGS`, give each line of output to `each`, return all of it.

        Raises:
            SetupError: pip failed; the text says why.
        """
        command = [str(self.python), "-m", "pip", "--no-input", *args]
        lines = []
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n$ pip {' '.join(args)}\n")
            with subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env=self.env,
                pass_fds=self.keep,
            ) as process:
                try:
                    assert process.stdout is not None
                    for line in process.stdout:
                        lines.append(line)
                        log.write(line)
                        if each:
                            each(line)
                except BaseException:
                    process.terminate()
                    raise
        output = "".join(lines)
        if process.returncode:
            raise diagnose(output, self.log)
        return output

    def install(self, *args: str, each: Callable[[str], None] | None = None) -> None:
        """Run `pip install --no-deps ARGS`."""
        self.run("install", "--no-deps", "--no-compile", "--progress-bar", "off", *patience(), *args, each=each)


class Progress:
    """Count the packages of a lock as pip collects them: one moving line on a terminal, otherwise one line per 50."""

    def __init__(self, total: int):
        self.total, self.seen, self.unpacking = total, 0, False
        self.tty = sys.stdout.isatty()
        self.started = time.monotonic()

    def __call__(self, line: str) -> None:
        if line.startswith(("Collecting ", "Requirement already satisfied")):
            self.seen += 1
            if self.tty:
                print(f"\rset-up: packages {self.seen}/{self.total} ", end="", flush=True)
            elif self.seen % 50 == 0:
                print(f"set-up: packages {self.seen}/{self.total}", flush=True)
        elif line.startswith("Installing collected packages"):
            self.unpacking = True
            print(f"{chr(13) if self.tty else ''}set-up: unpacking {self.total} packages (a few minutes)", flush=True)

    def close(self) -> None:
        """End the moving line."""
        if self.tty and self.seen and not self.unpacking:
            print(flush=True)


def fetch(url: str, seconds: float) -> str | None:
    """Return the text at `url`, or None when it cannot be had within `seconds` (name look-up included)."""
    found: list[str] = []

    def load() -> None:
        context = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or os.environ.get("REQUESTS_CA_BUNDLE"))
        try:
            with urllib.request.urlopen(url, timeout=seconds, context=context) as reply:
                found.append(reply.read(20_000_000).decode("utf-8", "replace"))
        except (OSError, ValueError):
            return  # not reachable: the caller goes another way

    # A thread, because a name look-up knows no time limit; as a daemon it does not hold up the end of the process.
    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def index_has_torch(versions: dict[str, str], python: str, index: str = TORCH_CPU_INDEX) -> bool:
    """Tell whether PyTorch's own CPU index answers in time and has these versions for this Python (as "3.11")."""
    tag = "cp" + python.replace(".", "")
    for name, version in versions.items():
        page = fetch(f"{index}/{name}/", PROBE_SECONDS)
        if page is None or not re.search(rf"{name}-{re.escape(version)}(\+|%2B)cpu-{tag}-{tag}-[^\"'<>]*x86_64", page):
            return False
    return True


def install_torch_cpu(pip: Pip, versions: dict[str, str], python: str, say: Callable[[str], None]) -> None:
    """Install CPU builds of torch and torchvision: from PyTorch's own index, otherwise what pip finds elsewhere.

    Args:
        versions: exact version of each, e.g. {"torch": "2.13.0", "torchvision": "0.28.0"}.
        python: the environment's Python, e.g. "3.11".

    Raises:
        SetupError: no CPU build is to be had, or pip failed otherwise.
    """
    if index_has_torch(versions, python):
        say(f"torch {versions['torch']}+cpu from PyTorch's own index")
        pins = [f"{name}=={version}+cpu" for name, version in versions.items()]
        pip.install("--index-url", TORCH_CPU_INDEX, *pins)
        return
    say(f"PyTorch's own index does not answer: torch {versions['torch']}+cpu from pip's other sources")
    # Never the bare version: without a CPU wheel among its sources pip would take the CUDA build for it.
    try:
        pip.install(f"torch=={versions['torch']}+cpu")
    except SetupError as error:
        if error.kind != "missing":
            raise
        raise SetupError(
            f"no CPU build of torch {versions['torch']} is to be had for Python {python} (the CUDA build would be"
            f" several GB of no use without an NVIDIA GPU): let this machine reach {TORCH_CPU_INDEX}, or put the +cpu"
            f" wheel for cp{python.replace('.', '')} into a folder and set PIP_FIND_LINKS to it, or choose the Python"
            " that your wheel is for (make setup PYTHON=python3.11)"
        ) from error
    pip.install(*[f"{name}=={version}" for name, version in versions.items() if name != "torch"])
