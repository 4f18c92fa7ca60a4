"""Every architecture of the catalog in the real vLLM on CPU: a tiny checkpoint with random weights is loaded and asked.

What ran and what the engine refuses is on record (models/proof/results.json, the table in docs/models.md); a row that
ran must run, and one that is refused must still be refused for the recorded reason: an engine that learned an
architecture is a reason to run `fovea models prove` again, not to keep an old row.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.proof.run import RESULTS, known, prove_all

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]
RECORDED: dict[str, dict[str, Any]] = {row["variant"]: row for row in json.loads(RESULTS.read_text())["rows"]}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """All proofs, in one process: about a minute and a half."""
    folder: Path = tmp_path_factory.mktemp("proof")
    return {row["variant"]: row for row in prove_all(known(), folder)}


@pytest.mark.parametrize("variant", RECORDED)
def test_it_runs_as_recorded(rows: dict[str, dict[str, Any]], variant: str) -> None:
    row, recorded = rows[variant], RECORDED[variant]
    if recorded["result"] == "not run":
        assert row["result"] in ("ran", "refused"), row  # either is worth a record: run `fovea models prove`
        return
    assert row["result"] == recorded["result"], row
    for key in recorded.keys() - {"start_s", "ask_s"}:
        assert row[key] == recorded[key], key
