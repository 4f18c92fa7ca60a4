"""The `fovea` command itself: help without heavy imports, and one clear line for bad usage."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

import fovea
from models.support.errors import CheckFailed

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `fovea ARGUMENTS` in a fresh process."""
    return subprocess.run([sys.executable, ROOT / "fovea.py", *arguments], capture_output=True, text=True, check=False)


def test_help_lists_every_command() -> None:
    ran = run("--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    for name, (_, text) in fovea.COMMANDS.items():
        assert name in ran.stdout and text in " ".join(ran.stdout.split())


@pytest.mark.parametrize("arguments", [["--help"], *([name, "--help"] for name in fovea.COMMANDS)], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    """What makes `fovea --help` slow is imports, so they are what is checked."""
    code = (
        "import sys, fovea\n"
        "try:\n    fovea.main(sys.argv[1:])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print([m for m in ('torch', 'vllm', 'ray', 'transformers', 'torchvision', 'scipy') if m in sys.modules])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1] == "[]"


def test_version_is_the_projects() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run("--version").stdout.strip() == f"fovea {version}"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["sevre"], "invalid choice: 'sevre'"),
        ([], "the following arguments are required: COMMAND"),
        (["doctor", "--port", "many"], "argument --port: invalid int value: 'many'"),
        (["doctor", "--prot", "1"], "unrecognized arguments: --prot 1"),
    ],
)
def test_bad_usage_is_exit_code_2_and_says_what_is_wrong(arguments: list[str], text: str) -> None:
    ran = run(*arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert text in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr


def test_bad_input_is_exit_code_2_and_one_line() -> None:
    ran = run("doctor", "--port", "70000")
    assert ran.returncode == 2
    assert ran.stderr == "fovea doctor: --port: must be between 1 and 65535 (got 70000); name a port that is free\n"


def test_bad_input_as_json() -> None:
    ran = run("doctor", "--port", "70000", "--json")
    assert ran.returncode == 2
    assert json.loads(ran.stdout)["error"] == {
        "type": "UsageError",
        "message": "must be between 1 and 65535",
        "field": "--port",
        "value": 70000,
        "fix": "name a port that is free",
    }


def test_the_installed_command_is_this_one() -> None:
    from importlib.metadata import entry_points

    (found,) = entry_points(group="console_scripts", name="fovea")
    assert found.load() is fovea.main


def test_json_is_one_document_whether_or_not_a_check_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(says: str) -> None:
        def run(args: argparse.Namespace) -> int:
            print(says, end="")
            raise CheckFailed("too slow", field="p95")

        module = types.ModuleType("command_for_a_test")
        module.add_arguments = lambda parser: parser.set_defaults(run=run, json=True)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(fovea.COMMANDS, "try", (module.__name__, "a command"))
        assert fovea.main(["try"]) == 1

    command('{"p95": 3}')
    told = capsys.readouterr()
    assert json.loads(told.out) == {"p95": 3} and told.err == "fovea try: p95: too slow\n"
    command("")
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "too slow"
