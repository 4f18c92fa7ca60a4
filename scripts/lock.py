"""Write requirements/*.lock from pyproject.toml (`make lock`; `make lock UPGRADE=1` moves to the newest versions).

Each lock is resolved by uv once for Python 3.11 and once for 3.12, always for Linux x86-64 and from wheels alone, and
the two are merged: a marker appears only where the versions differ.  Every pin carries the sha256 of each wheel that
such a machine could take.  The locks are installed with `pip install --no-deps`, so they are the whole truth.

What development adds (tests, lint, the resolver) is in PROFILE-dev.lock, so that an image installs PROFILE.lock alone.
Both come out of one resolution: what the run time needs is looked up among the versions of the whole, so no package is
in both, and the run time's versions are those that the tests ran with.

The CPU locks leave out torch and torchvision (their CPU builds come from PyTorch's own index or from a local wheel, so
they have other hashes; torch-cpu.lock pins their versions) and the CUDA libraries that only torch's CUDA build needs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
OVERRIDES = REQUIREMENTS / "overrides.txt"
PYTHONS = ("3.11", "3.12")
GLIBC = (2, 31)  # the oldest that every wheel runs on: Debian 11, Ubuntu 20.04, RHEL 9
TORCH = ("torch", "torchvision")
CUDA_LIBRARY = re.compile(r"(nvidia|cuda)-")


@dataclass(frozen=True)
class Profile:
    """One environment's locks.

    Attributes:
        extras: those of pyproject.toml that the run time is made from.
        cpu: whether its torch is a CPU build.
        development: extras that only development needs; their lock holds what they add.
    """

    name: str
    extras: tuple[str, ...]
    cpu: bool
    development: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        return REQUIREMENTS / f"{self.name}.lock"

    @property
    def development_path(self) -> Path:
        return REQUIREMENTS / f"{self.name}-dev.lock"

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path, self.development_path) if self.development else (self.path,)


PROFILES = (
    Profile("cpu", ("cpu", "distill", "s3", "gs"), cpu=True, development=("dev",)),
    Profile("gpu", ("gpu", "distill", "s3", "gs"), cpu=False, development=("dev",)),
    Profile("quantize-cpu", ("quantize",), cpu=True),
    Profile("quantize-gpu", ("quantize",), cpu=False),
)
TORCH_LOCK = REQUIREMENTS / "torch-cpu.lock"


def inputs_digest(profile: Profile) -> str:
    """Return the sha256 of everything that the user writes and the locks depend on (a test compares it)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    overrides = [line for line in OVERRIDES.read_text().splitlines() if line and not line.startswith("#")]
    parts = [project["requires-python"], project["dependencies"], [extras[name] for name in profile.extras]]
    parts += [[extras[name] for name in profile.development]] if profile.development else []
    parts.append(overrides if profile.cpu else [])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def uv(*args: str) -> None:
    """Run `uv pip compile`; its own message is shown when it fails."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", *args]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        raise SystemExit("make lock: uv could not resolve the requirements (see above); no lock was changed")


def target(python: str) -> list[str]:
    """Return uv's arguments for one Python on the machines that the locks are for."""
    platform = f"x86_64-manylinux_{GLIBC[0]}_{GLIBC[1]}"
    return ["--python-version", python, "--python-platform", platform, "--only-binary", ":all:"]


def pins(text: str) -> dict[str, str]:
    """Return name -> version of every `name==version` line of a requirements file."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in found}


def resolve(profile: Profile, python: str, seed: dict[str, str], upgrade: bool, folder: Path) -> dict[str, str]:
    """Return name -> version of the whole for one Python; `seed` holds the versions to keep where they still fit."""
    out = folder / f"{profile.name}-{python}.txt"
    out.write_text("".join(f"{name}=={version}\n" for name, version in seed.items()))
    more = ["--upgrade"] if upgrade else []
    uv(*wanted(profile, (*profile.extras, *profile.development)), *target(python), *more, "-o", str(out))
    return pins(out.read_text())


def needed(profile: Profile, python: str, whole: dict[str, str], folder: Path) -> set[str]:
    """Return the names, among those of the whole, that the run time needs."""
    held, out = folder / "held.txt", folder / "run-time.txt"
    held.write_text("".join(f"{name}=={version}\n" for name, version in whole.items()))
    out.unlink(missing_ok=True)
    uv(*wanted(profile, profile.extras), "--constraints", str(held), *target(python), "-o", str(out))
    found = pins(out.read_text())
    if not found.items() <= whole.items():
        raise SystemExit(f"make lock: {profile.name}: the run time alone wants {set(found.items()) - whole.items()}")
    return set(found)


def wanted(profile: Profile, extras: tuple[str, ...]) -> list[str]:
    """Return uv's arguments for what is asked for."""
    overrides = ["--overrides", str(OVERRIDES.relative_to(ROOT))] if profile.cpu else []
    return ["pyproject.toml", *(arg for extra in extras for arg in ("--extra", extra)), *overrides]


def accepted_tags(python: str) -> frozenset[Tag]:
    """Return the wheel tags that any glibc Linux x86-64 machine of ours may take (its glibc may be newer)."""
    major, minor = (int(part) for part in python.split("."))
    platforms = [f"manylinux_2_{glibc}_x86_64" for glibc in range(5, 60)]
    platforms += ["manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64", "linux_x86_64"]
    interpreter = f"cp{major}{minor}"
    return frozenset(cpython_tags((major, minor), platforms=platforms)) | frozenset(
        compatible_tags((major, minor), interpreter, platforms)
    )


def hashes(versions: dict[str, str], python: str, folder: Path) -> dict[str, set[str]]:
    """Return name -> the sha256 of each wheel of that version that fits this Python."""
    listed, out = folder / "pins.txt", folder / "pylock.toml"
    listed.write_text("".join(f"{name}=={version}\n" for name, version in versions.items()))
    out.unlink(missing_ok=True)
    uv(str(listed), "--no-deps", "--format", "pylock.toml", *target(python), "-o", str(out))
    tags = accepted_tags(python)
    found: dict[str, set[str]] = {}
    for package in tomllib.loads(out.read_text())["packages"]:
        fitting: set[str] = set()
        for wheel in package.get("wheels", []):
            name = wheel.get("name") or wheel["url"].rsplit("/", 1)[1]
            if parse_wheel_filename(name)[3] & tags:
                fitting.add(wheel["hashes"]["sha256"])
        if not fitting:
            raise SystemExit(f"make lock: {package['name']} {package['version']} has no wheel for Python {python}")
        found[canonicalize_name(package["name"])] = fitting
    return found


def merge(resolved: dict[str, dict[str, str]], sums: dict[str, dict[str, set[str]]]) -> list[str]:
    """Return the lock's lines; a marker only where the Pythons differ."""
    lines = []
    for name in sorted({name for versions in resolved.values() for name in versions}):
        by_version: dict[str, list[str]] = {}
        for python in PYTHONS:
            if name in resolved[python]:
                by_version.setdefault(resolved[python][name], []).append(python)
        for version, pythons in by_version.items():
            marker = "" if pythons == list(PYTHONS) else f" ; python_version == '{pythons[0]}'"
            digests = sorted(set().union(*(sums[python][name] for python in pythons)))
            lines.append(" \\\n    ".join([f"{name}=={version}{marker}", *(f"--hash=sha256:{d}" for d in digests)]))
    return lines


def header(profile: Profile, path: Path) -> str:
    """Return the comment at the top of a lock."""
    files = " ".join(f"-r {one.name}" for one in profile.paths[: profile.paths.index(path) + 1])
    return (
        f"# Written by `make lock` for Python {' and '.join(PYTHONS)}, Linux x86-64, glibc {GLIBC[0]}.{GLIBC[1]}+.\n"
        f"# Install with: pip install --no-deps {files}\n"
        f"# inputs-sha256: {inputs_digest(profile)}\n"
    )


def main() -> int:
    """Resolve every profile, then write all locks: none changes when one fails."""
    parser = argparse.ArgumentParser(description="Write requirements/*.lock from pyproject.toml.")
    parser.add_argument("--upgrade", action="store_true", help="move to the newest versions that fit")
    upgrade = parser.parse_args().upgrade
    texts: dict[Path, str] = {}
    torch: dict[str, str] = {}
    seed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for profile in PROFILES:
            print(f"resolving {profile.name} ...", flush=True)
            if not upgrade:
                seed |= {
                    name: v for path in profile.paths if path.exists() for name, v in pins(path.read_text()).items()
                }
            resolved: dict[str, dict[str, str]] = {}
            for python in PYTHONS:
                resolved[python] = resolve(profile, python, seed, upgrade and not resolved, folder)
                seed |= resolved[python]
            names = {python: needed(profile, python, resolved[python], folder) for python in PYTHONS}
            if profile.cpu:
                torch |= {name: resolved[PYTHONS[0]][name] for name in TORCH}
                for versions in resolved.values():
                    for name in [n for n in versions if n in TORCH or CUDA_LIBRARY.match(n)]:
                        del versions[name]
            sums = {python: hashes(resolved[python], python, folder) for python in PYTHONS}
            for path in profile.paths:
                part = {
                    python: {name: v for name, v in all_.items() if (name in names[python]) is (path == profile.path)}
                    for python, all_ in resolved.items()
                }
                texts[path] = header(profile, path) + "\n".join(merge(part, sums)) + "\n"
    texts[TORCH_LOCK] = (
        "# Written by `make lock`. Any CPU build of these versions will do (docs/setup.md), so there are no hashes.\n"
        + "".join(f"{name}=={version}\n" for name, version in torch.items())
    )
    for path, text in texts.items():
        path.write_text(text)
        print(f"{path.relative_to(ROOT)}: {len(pins(text))} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
