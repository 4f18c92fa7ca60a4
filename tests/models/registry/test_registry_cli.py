"""`fovea models registry`: every command, its text and JSON, its exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import fovea
from models.registry import open_registry
from tests.models.registry.conftest import checkpoint, report


class Shell:
    """Runs commands on one store."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]):
        self.folder, self.capsys, self.store = folder, capsys, str(folder / "store")

    def _command(self, words: tuple[object, ...]) -> list[str]:
        command, *rest = map(str, words)
        group = [] if command in ("promote", "rollback") else ["registry"]
        return ["models", *group, command, "--store", self.store, *rest]

    def text(self, *words: object, code: int = 0) -> str:
        """Return what was printed; the exit code must be `code`."""
        found = fovea.main(self._command(words))
        out, err = self.capsys.readouterr()
        assert found == code, err
        return out + err

    def json(self, *words: object, code: int = 0) -> dict[str, Any]:
        """Return the JSON that was printed."""
        found = fovea.main([*self._command(words), "--json"])
        out, err = self.capsys.readouterr()
        assert found == code, err
        value: dict[str, Any] = json.loads(out)
        return value

    def report(self, ref: str, right: int) -> Path:
        """Write an evaluation report of a version into a folder."""
        folder = self.folder / f"{ref}-{right}"
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(report(open_registry(self.store).find(ref), right)))
        return folder


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Shell(tmp_path, capsys)


def test_from_register_to_rollback(shell: Shell, tmp_path: Path) -> None:
    recipe, policy = tmp_path / "recipe.yaml", tmp_path / "policy.yaml"
    recipe.write_text(yaml.safe_dump({"steps": 3, "on": "2026-01-01"}))
    policy.write_text(yaml.safe_dump({"require": [{"golden": "set", "min_accuracy": 0.9}], "two_person": True}))
    more = ["--recipe", recipe, "--data", "train=d1", "--licence", "MIT", "--note", "first"]
    told = shell.text("register", checkpoint(tmp_path / "a"), "--name", "m", "--by", "ada", *more)
    assert told.startswith("m@1: 2 files, 0.0 MiB, digest ")
    second = checkpoint(tmp_path / "b", b"12345678")
    assert shell.json("register", second, "--name", "m", "--by", "ada", "--parent", "m@1")["version"] == "m@2"
    assert shell.json("policy", "m", policy)["two_person"] is True == shell.json("policy", "m")["two_person"]
    for number, right in ((1, 950), (2, 970)):
        ref = f"m@{number}"
        assert "no report on set" in shell.text("promote", ref, "--to", "canary", "--by", "ada", code=1)
        assert "report on set attached" in shell.text("attach", ref, shell.report(ref, right), "--by", "ada")
        shell.text("promote", ref, "--to", "canary", "--by", "ada")
        assert "nobody but ada" in shell.text("promote", ref, "--to", "live", "--by", "ada", code=1)
        shell.text("approve", ref, "--by", "bob")
        assert shell.text("promote", ref, "--to", "live", "--by", "ada") == f"version {number} is live\n"
    assert shell.json("rollback", "m", "--by", "bob", "--note", "slow")["text"].startswith("version 1 is live again")
    shown = shell.text("show", "m@1")
    for line in ("licence  MIT", "data     train d1", "note     first", "set 0.9500 [0.93", "(rollback)  by bob: slow"):
        assert line in shown, line
    assert shell.json("show", "m@live")["recipe"] == {"steps": 3, "on": "2026-01-01"}
    assert [row["stage"] for row in shell.json("list")["versions"]] == ["live", "retired"]
    assert "m@1" in shell.text("list") and "retired" in shell.text("list")


def test_diff_path_verify_gc(shell: Shell, tmp_path: Path) -> None:
    shell.text("register", checkpoint(tmp_path / "a"), "--name", "m", "--by", "ada")
    shell.text("register", checkpoint(tmp_path / "b", b"12345678"), "--name", "m", "--by", "bob", "--parent", "m@1")
    shell.text("attach", "m@2", shell.report("m@2", 950))
    told = shell.text("diff", "m@1", "m@2")
    assert "changed  model.safetensors" in told and "parent   None -> m@1" in told and "m@2 0.9500 (n = 1000)" in told
    assert shell.json("diff", "m@1", "m@1")["changed"] == []
    folder = Path(shell.text("path", "m@2").strip())
    assert json.loads((folder / "fovea-version.json").read_text())["version"] == 2
    assert shell.json("path", "m@1")["stage"] == "candidate"
    assert shell.text("verify") == "every file has its recorded digest\n"
    assert shell.text("gc", "--dry-run") == "0 files of no version\n"
    (stored,) = Path(shell.store, "blobs").glob(
        f"*/{open_registry(shell.store).find('m@2').files['config.json'].sha256}"
    )
    stored.chmod(0o644)
    stored.write_text("{}")
    assert shell.json("verify", "m", code=1)["problems"][0].startswith("m@1: config.json is corrupted")
    orphan = Path(shell.store, "blobs", "00", "0" * 64)
    orphan.parent.mkdir(exist_ok=True)
    orphan.write_text("left over")
    assert shell.text("gc") == "1 files of no version removed\n" and not orphan.exists()


def test_governance(shell: Shell, tmp_path: Path) -> None:
    shell.text("register", checkpoint(tmp_path / "a"), "--name", "m", "--by", "ada")
    assert "oversight attested by eve" in shell.text("attest", "m@1", "oversight", "--by", "eve")
    told = shell.text("governance", "m@1", code=1)
    assert "attested by eve" in told and "2 of 16 hold" in told
    rows = shell.json("governance", "m@1", code=1)["items"]
    assert {row["item"] for row in rows if row["holds"]} == {"intact", "oversight"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["register", "nowhere", "--name", "m"], "no such folder"),
        (["register", "A", "--name", "../m"], "is not a name"),
        (["register", "A", "--name", "m", "--data", "x"], "must be NAME=DIGEST"),
        (["register", "A", "--name", "m", "--recipe", "nowhere.yaml"], "cannot read"),
        (["register", "A", "--name", "m", "--by", " "], "who registers it"),
        (["register", "A", "--name", "m", "--family", "gemma3"], "the checkpoint is Qwen2_5_VL"),
        (["show", "m@1"], "is not in the registry"),
        (["policy", "m"], "has no policy"),
        (["policy", "m", "BROKEN"], "extra inputs|Extra inputs"),
        (["attach", "m@1", "nowhere"], "cannot read"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(shell: Shell, tmp_path: Path, words: list[str], message: str) -> None:
    import re

    (tmp_path / "broken.yaml").write_text("requires: []")
    places = {"A": checkpoint(tmp_path / "a"), "BROKEN": tmp_path / "broken.yaml"}
    told = shell.text(*(places.get(word, word) for word in words), code=2)
    assert re.search(message, told) and told.count("\n") == 1
    assert not Path(shell.store, "versions").exists()


def test_a_store_of_an_unknown_kind(shell: Shell) -> None:
    shell.store = "nosuch://bucket"
    assert "store: cannot open" in shell.text("list", code=2)
    file = shell.folder / "file"
    file.write_text("x")
    shell.store = str(file)
    assert "is a file" in shell.text("list", code=2)
