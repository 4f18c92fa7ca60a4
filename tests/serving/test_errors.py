"""Every error that a person may see says what is wrong where, and what to do about it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("serving", "loadtest") for path in (ROOT / folder).rglob("*.py"))
NEEDED = {"UsageError": {"field", "fix"}, "CheckFailed": {"fix"}}


def lacking(source: str) -> list[tuple[int, list[str]]]:
    """Return line and missing arguments of every error that is made in a source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NEEDED:
            missing = NEEDED[node.func.id] - {keyword.arg for keyword in node.keywords if keyword.arg}
            if missing:
                found.append((node.lineno, sorted(missing)))
    return found


@pytest.mark.parametrize("folder", ["serving", "loadtest"])
def test_errors_name_their_field_and_the_fix(folder: str) -> None:
    files = [path for path in FILES if path.is_relative_to(ROOT / folder)]
    assert len(files) > 40
    wrong = {str(path.relative_to(ROOT)): lacking(path.read_text()) for path in files}
    assert {name: rows for name, rows in wrong.items() if rows} == {}


def test_what_is_lacking_is_seen() -> None:
    source = "raise UsageError('x', field='a')\nraise CheckFailed('y')\nraise UsageError('z', field='a', fix='b')\n"
    assert lacking(source) == [(1, ["fix"]), (2, ["fix"])]
