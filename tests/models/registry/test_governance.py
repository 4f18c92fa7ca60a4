"""The checklist holds only what was checked or attested, and gates promotion where the policy says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.registry import Policy, Registry, Version
from models.registry.governance import BY_MACHINE, BY_PERSON, checklist
from models.registry.schema import Requirement
from models.support.errors import CheckFailed, UsageError
from tests.models.registry.conftest import checkpoint, report, to_live


def _holding(registry: Registry, version: Version) -> set[str]:
    return {row["item"] for row in checklist(registry, version) if row["holds"]}


def test_a_bare_version_has_only_its_digests(registry: Registry, one: Version) -> None:
    assert _holding(registry, one) == {"intact"}
    assert len(checklist(registry, one)) == len(BY_MACHINE) + len(BY_PERSON)


def test_every_item_can_be_met_and_then_the_gate_opens(registry: Registry, one: Version, tmp_path: Path) -> None:
    to_live(registry, one)
    rule = Requirement(golden="set", min_accuracy=0.9)
    registry.set_policy("m", Policy(require=[rule], governance=True))
    folder = checkpoint(tmp_path / "b", b"12345678")
    (folder / "README.md").write_text("card")
    two = registry.register(folder, "m", by="ada", parent="m@1", data={"train": "d1"}, licence="MIT")
    figure = {"value": 0.9, "low": 0.8, "high": 1.0, "n": 50}
    names = ("perturbation=blur", "perturbation=none", "language=en", "language=de")
    registry.attach("m@2", report(two, 970, by_tag=dict.fromkeys(names, figure)), by="ada")
    registry.promote("m@2", "canary", by="ada")
    with pytest.raises(CheckFailed, match="governance: second-person; governance: use"):
        registry.promote("m@2", "live", by="ada")
    registry.approve("m@2", by="bob")
    for item in BY_PERSON:
        registry.attest("m@2", item, by="eve", note="document 12")
    assert _holding(registry, two) == {*BY_MACHINE, *BY_PERSON}
    registry.promote("m@2", "live", by="ada")
    assert registry.find("m@live") == two


def test_an_approval_by_whoever_registered_it_does_not_count(registry: Registry, one: Version) -> None:
    registry.approve("m@1", by="ada")
    assert "second-person" not in _holding(registry, one)


def test_a_machine_item_cannot_be_attested(registry: Registry, one: Version) -> None:
    with pytest.raises(UsageError, match="no such item"):
        registry.attest("m@1", "evaluated", by="ada")
