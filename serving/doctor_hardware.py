"""Checks of `fovea doctor` that look at the machine: CPU, GPU, memory, disk, limits, ports."""

from __future__ import annotations

import errno
import functools
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

from serving.doctor import DEFAULT_PORT, Machine, Row, check

GIB = 2**30
# CPU flags by what vLLM's CPU kernels use them for.
CPU_FEATURES = {
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "VNNI": "avx512_vnni",
    "BF16": "avx512_bf16",
    "AMX": "amx_tile",
}
# torch 2.13's CUDA build is made for CUDA 13: driver and GPU generation that CUDA 13.0 asks for (its release notes).
MIN_DRIVER, MIN_CAPABILITY, BF16_CAPABILITY = 580, 7.5, 8.0
PORTS = {8265: "Ray's dashboard", 6379: "Ray's head node"}


@functools.cache
def gpus() -> list[dict[str, str]] | None:
    """Return name, driver, memory (MiB) and compute capability of each GPU; None when nvidia-smi does not work."""
    fields = ("name", "driver_version", "memory.total", "memory.free", "compute_cap")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [[cell.strip() for cell in line.split(",")] for line in ran.stdout.splitlines() if line.strip()]
    return [dict(zip(fields, cells, strict=True)) for cells in lines]


@check("cpu")
def cpu(machine: Machine) -> Iterator[Row]:
    """Instruction sets and cores; what is missing matters only where there is no GPU to serve on."""
    text = (machine.proc / "cpuinfo").read_text(errors="replace")
    flags = next((set(line.split(":", 1)[1].split()) for line in text.splitlines() if line.startswith("flags")), set())
    has = [name for name, flag in CPU_FEATURES.items() if flag in flags]
    lacks = [name for name in CPU_FEATURES if name not in has]
    detail = f"{' '.join(has) or 'none of the instruction sets'}{f'; no {chr(32).join(lacks)}' if lacks else ''}"
    if gpus():
        yield Row("cpu", "ok", f"{detail} (serving uses the GPU)")
    elif "AVX2" not in has:
        yield Row("cpu", "fail", detail, "vLLM's CPU kernels need AVX2: use another machine, or a GPU")
    elif "AVX-512" not in has:
        yield Row(
            "cpu", "warn", detail, "works with the AVX2 kernels, slower; a machine with AVX-512 (best AMX) is faster"
        )
    else:
        yield Row("cpu", "ok", detail)
    cores, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    quota = _cpu_quota(machine.cgroup)
    limit = min(usable, quota) if quota else usable
    text = f"{limit:g} of {cores} usable" if limit < cores else f"{cores}"
    if limit < 2:
        yield Row("cores", "warn", text, "the engine spins one core: give it at least 2")
    else:
        yield Row("cores", "ok", text)


def _cpu_quota(cgroup: Path) -> float | None:
    """Return the control group's limit in cores, None when it has none."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


@check("gpu")
def gpu(machine: Machine) -> Iterator[Row]:
    """Each NVIDIA GPU: driver, memory, compute capability."""
    found = gpus()
    if not found:
        if (machine.proc / "driver" / "nvidia").exists():
            yield Row("gpu", "fail", "an NVIDIA driver is loaded but nvidia-smi lists no GPU", "repair the driver")
        else:
            yield Row("gpu", "ok", "none (CPU profile)")
        return
    for index, one in enumerate(found):
        name = f"gpu {index}"
        capability, driver = float(one["compute_cap"]), one["driver_version"]
        try:
            total, free = float(one["memory.total"]) / 1024, float(one["memory.free"]) / 1024
            room = f"{free:.0f} of {total:.0f} GiB free"
        except ValueError:  # "[N/A]": a GPU that shares the machine's memory
            total = free = 0.0
            room = "memory shared with the CPU"
        detail = f"{one['name']}, driver {driver}, {room}, compute capability {capability}"
        if int(driver.split(".")[0]) < MIN_DRIVER:
            yield Row(name, "fail", detail, f"CUDA 13 needs driver {MIN_DRIVER} or newer: update it")
        elif capability < MIN_CAPABILITY:
            yield Row(name, "fail", detail, f"CUDA 13 needs compute capability {MIN_CAPABILITY} or newer: another GPU")
        elif free < 0.5 * total:
            yield Row(name, "warn", detail, "another process holds its memory (nvidia-smi shows it): stop that one")
        elif capability < BF16_CAPABILITY:
            yield Row(name, "warn", detail, "no bfloat16: serve with dtype float16")
        else:
            yield Row(name, "ok", detail)


def available_memory(machine: Machine) -> int:
    """Return the bytes that a new process could take: the kernel's estimate, or less under a control group's limit."""
    lines = (machine.proc / "meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit = (machine.cgroup / "memory.max").read_text().strip()
        used = int((machine.cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, int(limit) - used)


@check("memory")
def memory(machine: Machine) -> Iterator[Row]:
    """Memory that is free, and the shared memory that Ray's object store takes."""
    free = available_memory(machine) / GIB
    detail = f"{free:.1f} GiB available"
    if free < 3:
        yield Row("memory", "fail", detail, "one small model with Ray takes about 3 GiB: stop other programs")
    elif free < 8:
        yield Row("memory", "warn", detail, "enough for the embedded models; larger ones need their weights twice over")
    else:
        yield Row("memory", "ok", detail)
    shm = shutil.disk_usage("/dev/shm").free / GIB if Path("/dev/shm").is_dir() else 0.0
    detail = f"{shm:.1f} GiB free in /dev/shm"
    if shm < 1:
        yield Row(
            "shared memory", "warn", detail, "Ray falls back to slow files: docker run --shm-size=4g, or a larger tmpfs"
        )
    else:
        yield Row("shared memory", "ok", detail)


@check("disk")
def disk(machine: Machine) -> Iterator[Row]:
    """Free disk where the project, the model cache and Ray's logs are."""
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    temporary = Path(os.environ.get("RAY_TMPDIR") or "/tmp")
    for name, folder, low, least in (
        ("disk, project", machine.root, 5.0, 0.5),
        ("disk, models", hub, 20.0, 0.5),
        ("disk, Ray", temporary, 5.0, 0.5),
    ):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        usage = shutil.disk_usage(there)
        free = usage.free / 1e9
        detail = f"{free:.1f} GB free at {folder}"
        if free < least:
            yield Row(name, "fail", detail, "free some space")
        elif name == "disk, Ray" and usage.free < 0.05 * usage.total:
            yield Row(
                name, "warn", detail, "Ray stops spilling when 95% is in use: free some, or set RAY_TMPDIR elsewhere"
            )
        elif free < low:
            fix = "set HF_HOME to a larger disk" if name == "disk, models" else "free some space soon"
            yield Row(name, "warn", detail, fix)
        else:
            yield Row(name, "ok", detail)


@check("open files")
def open_files(machine: Machine) -> Iterator[Row]:
    """The limit on file descriptors: every connection and every Ray process takes some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = f"limit {soft} (hard {'none' if hard == resource.RLIM_INFINITY else hard})"
    if soft < 1024:
        yield Row("open files", "fail", detail, "ulimit -n 65536 (or LimitNOFILE= of the service)")
    elif soft < 8192:
        yield Row("open files", "warn", detail, "ulimit -n 65536 before serving many connections")
    else:
        yield Row("open files", "ok", detail)


@check("ports")
def ports(machine: Machine) -> Iterator[Row]:
    """The ports that serving takes; the one that the user named must be free."""
    wanted = {machine.port or DEFAULT_PORT: "serving"} | PORTS
    for port, use in wanted.items():
        problem = port_problem(port)
        if problem is None:
            yield Row(f"port {port}", "ok", f"free ({use})")
        elif port == machine.port:
            yield Row(f"port {port}", "fail", f"{problem} ({use})", "stop what holds it, or name another with --port")
        elif use == "serving":
            yield Row(f"port {port}", "warn", f"{problem} ({use})", "fovea serve --port N takes another")
        else:
            yield Row(
                f"port {port}", "warn", f"{problem} ({use})", "a Ray that runs already? `ray stop`, if it is yours"
            )


def port_problem(port: int) -> str | None:
    """Return why a server cannot listen on the port on loopback, None when it can."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
        # As servers do: connections that are winding down do not count as use.
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
            tried.listen(1)
        except OSError as error:
            return f"in use{_holder(port)}" if error.errno == errno.EADDRINUSE else f"{error.strerror}"
    return None


def _holder(port: int) -> str:
    """Return " by NAME (pid N)" of the process that listens there, "" when it is somebody else's."""
    import psutil

    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == "LISTEN" and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except psutil.Error:
        return ""
    return ""
