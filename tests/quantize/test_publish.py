"""What passes the gate becomes a version, with its parent and both evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.evaluation.answers import ANSWERS_FILE
from models.registry import open_registry
from models.support.errors import CheckFailed, UsageError
from quantize import artifact
from quantize.publish import check_register, publish
from tests.models.registry.conftest import checkpoint


def evaluation(folder: Path, right: int) -> str:
    from models.stats import wilson

    folder.mkdir(parents=True)
    report = {
        "kind": "evaluation",
        "golden": {"name": "set", "digest": "d" * 64, "items": 1000, "asked": 1000},
        "accuracy": wilson(right, 1000).as_dict(),
        "run": {"stopped": None},
        "calibration": None,
    }
    (folder / "report.json").write_text(json.dumps(report))
    (folder / ANSWERS_FILE).write_text("")
    return str(folder)


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Any]:
    parent = checkpoint(tmp_path / "parent")
    candidate = checkpoint(tmp_path / "candidate", b"\x01" * 4)
    manifest: dict[str, Any] = {
        "kind": artifact.KIND,
        "scheme": "w8a8",
        "method": "gptq",
        "group": None,
        "family": "qwen2.5-vl",
        "recipe": {},
        "seed": 0,
    }
    calibration = {"set": "mine", "digest": "c" * 64}
    (candidate / "manifest.json").write_text(json.dumps({**manifest, "versions": {}, "calibration": calibration}))
    report = {
        "verdict": {"outcome": "pass", "sentence": "may replace its parent"},
        "sides": {
            "parent": {"files": artifact.files_of(parent), "evaluation": evaluation(tmp_path / "gate" / "parent", 960)},
            "candidate": {
                "files": artifact.files_of(candidate),
                "evaluation": evaluation(tmp_path / "gate" / "candidate", 955),
            },
        },
    }
    return {"parent": parent, "candidate": candidate, "report": report}


def test_parent_and_candidate_become_versions_with_their_reports(tmp_path: Path, made: dict[str, Any]) -> None:
    store = str(tmp_path / "store")
    told = publish("m", made["parent"], made["candidate"], made["report"], by="ada", store=store)
    assert (told["parent"], told["version"]) == ("m@1", "m@2")
    registry = open_registry(store)
    version = registry.find("m@2")
    assert version.parent == "m@1" and version.data == {"mine": "c" * 64}
    assert version.recipe is not None and version.recipe["scheme"] == "w8a8"
    reports = registry.state("m").reports
    assert reports[1][0]["accuracy"]["value"] == 0.96 and reports[2][0]["accuracy"]["value"] == 0.955
    again = publish("m", made["parent"], made["candidate"], made["report"], by="ada", store=store)
    assert again == told  # the same files are the same versions


def test_a_rollback_returns_to_the_parent(tmp_path: Path, made: dict[str, Any]) -> None:
    from models.registry import Policy
    from models.registry.schema import Requirement

    store = str(tmp_path / "store")
    publish("m", made["parent"], made["candidate"], made["report"], by="ada", store=store)
    registry = open_registry(store)
    registry.set_policy("m", Policy(require=[Requirement(golden="set", min_accuracy=0.9, max_drop=0.03)]))
    for ref in ("m@1", "m@2"):
        registry.promote(ref, "canary", by="ada")
        registry.promote(ref, "live", by="ada")
    assert registry.find("m@live").number == 2
    registry.rollback("m", by="ada")
    assert registry.find("m@live").number == 1


def test_what_did_not_pass_is_not_registered(tmp_path: Path, made: dict[str, Any]) -> None:
    made["report"]["verdict"]["outcome"] = "not enough items"
    with pytest.raises(CheckFailed, match="not registered"):
        publish("m", made["parent"], made["candidate"], made["report"], by="ada", store=str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_a_file_that_changed_since_the_gate_is_found(tmp_path: Path, made: dict[str, Any]) -> None:
    (made["candidate"] / "config.json").write_text((made["candidate"] / "config.json").read_text() + "\n")
    with pytest.raises(CheckFailed, match=r"a file changed since the gate.*run the gate again") as caught:
        publish("m", made["parent"], made["candidate"], made["report"], by="ada", store=str(tmp_path / "store"))
    assert caught.value.value == "config.json"


def test_a_name_that_cannot_be_registered_is_found_before_the_work(tmp_path: Path) -> None:
    check_register("fovea-qwen", str(tmp_path))
    with pytest.raises(UsageError, match="register: is not a name"):
        check_register("a b", str(tmp_path))
