"""What set-up does inside site-packages: sweep up after an interrupted pip, compile, try torch, mend torchvision.

Standard library only.
"""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
from pathlib import Path

from scripts.setup_pip import SetupError

OPERATORS = "_fovea_torchvision_ops"  # the copy of serving/torchvision_ops.py, and the .pth file that imports it
PROBE = """
import json, sys
sys.path[:0] = sys.argv[1:]
import torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "error": None}
try:
    import torchvision
except Exception as error:
    found["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(found))
"""
# Not compiled ahead: large, and a process imports few or none of these modules.
RARELY_IMPORTED = r"/(tests?|testing|rllib|transformers/models|sympy|networkx|pip|setuptools)/"


def has(site: Path, name: str, version: str) -> bool:
    """Tell whether a package is there in this version, whatever its local build tag ("2.13.0+cpu")."""
    stem = f"{name.replace('-', '_')}-{version}"
    return (site / f"{stem}.dist-info").is_dir() or any(site.glob(f"{stem}+*.dist-info"))


def damaged(site: Path) -> list[Path]:
    """Return the dist-info folders of packages with files missing or cut short (an interrupted pip leaves such)."""
    bad = []
    for info in site.glob("*.dist-info"):
        try:
            with (info / "RECORD").open(newline="", encoding="utf-8") as file:
                # Compiled files are made anew whenever Python likes: theirs are the only sizes that may change.
                sized = [(site / row[0], int(row[2])) for row in csv.reader(file) if row[2] and row[0][-4:] != ".pyc"]
            whole = all(path.stat().st_size == size for path, size in sized)
        except (OSError, ValueError, IndexError):
            whole = False
        if not whole:
            bad.append(info)
    return bad


def sweep(site: Path) -> None:
    """Remove what an interrupted pip left: half-moved folders, and the claims of packages that are not whole."""
    for leftover in [*site.glob("~*"), *damaged(site)]:
        shutil.rmtree(leftover, ignore_errors=True)


def compile_all(python: Path, site: Path, log: Path) -> None:
    """Compile to bytecode on all cores what the stack imports (pip would do it on one).

    Some packages ship templates that are not Python; Python compiles whatever else is missing when it is imported.  So
    what fails here is only noted in the log.
    """
    with log.open("a", encoding="utf-8") as out:
        command = [str(python), "-m", "compileall", "-q", "-j", "0", "-x", RARELY_IMPORTED, str(site)]
        subprocess.run(command, stdout=out, stderr=out, check=False)


def probe(python: Path, without_pth: Path | None = None) -> dict[str, str | None]:
    """Import torch and torchvision in a fresh process.

    Args:
        python: the environment's interpreter.
        without_pth: site-packages, to be used without its .pth files.

    Returns:
        "torch" (version), "cuda" (what torch was built for, None for a CPU build), "error" (of importing torchvision).

    Raises:
        SetupError: torch itself cannot be imported.
    """
    options = ["-I"] if without_pth is None else ["-I", "-S"]
    command = [str(python), *options, "-c", PROBE, *([] if without_pth is None else [str(without_pth)])]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(f"torch is installed but cannot be imported [{last}]: make distclean, then make setup again")
    found: dict[str, str | None] = json.loads(ran.stdout.strip().splitlines()[-1])
    return found


def install_operators(python: Path, site: Path, source: Path, profile: str) -> str:
    """Put the torchvision work-around into site-packages where torchvision needs it, take it away where not.

    Args:
        python: the environment's interpreter.
        site: its site-packages.
        source: serving/torchvision_ops.py.
        profile: "cpu" or "gpu".

    Returns:
        "schemas" when it was put there, "native" when torchvision has operators of its own.

    Raises:
        SetupError: torch or torchvision cannot be imported, or torch is the wrong build for the profile.
    """
    module, pth = site / f"{OPERATORS}.py", site / f"{OPERATORS}.pth"
    found = probe(python, without_pth=site)
    if (found["cuda"] is None) != (profile == "cpu"):
        build = "CPU" if found["cuda"] is None else "CUDA"
        raise SetupError(
            f"the {profile.upper()} profile got a {build} build of torch ({found['torch']}): is one in PIP_FIND_LINKS?"
            " FOVEA_PROFILE=cpu or gpu chooses the profile; make distclean, then make setup again"
        )
    if found["error"] is None:
        pth.unlink(missing_ok=True)
        module.unlink(missing_ok=True)
        return "native"
    if profile == "cpu":
        # The module first: a .pth file whose module is missing makes every start of Python complain.
        for path, text in ((module, source.read_text()), (pth, f"import {OPERATORS}\n")):
            temporary = path.with_suffix(".tmp")
            temporary.write_text(text)
            temporary.replace(path)
        found = probe(python)
    if found["error"] is not None:
        raise SetupError(f"torchvision cannot be imported [{found['error']}] with torch {found['torch']}")
    return "schemas"
