"""Put a checkpoint that passed the gate into the registry of versions, with its parent and both evaluations.

The parent becomes a version first, unless its very files are one already, so that `fovea models rollback` has
something to go back to once both were live.  Promotion stays with the registry's own policy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.registry import Registry, Version, open_registry
from models.registry.schema import NAME
from models.support.errors import CheckFailed, UsageError
from quantize import artifact

NOT_SERVED = ("manifest.json", "README.md")  # about the checkpoint: no engine reads them


def publish(
    name: str, parent: Path, candidate: Path, report: Mapping[str, Any], *, by: str, store: str | None = None
) -> dict[str, str]:
    """Register parent and candidate under `name`, attach the gate's evaluations; return their references.

    Args:
        report: the gate's report, which names the folders of the evaluations; its verdict must be `pass`.

    Raises:
        CheckFailed: the verdict is another one, or a file is not the one that was asked in the gate.
        UsageError: as `Registry.register`.
    """
    outcome = report["verdict"]["outcome"]
    if outcome != "pass":
        fix = "raise the number of items, or take another scheme"
        raise CheckFailed("the gate did not pass: not registered", field="register", value=outcome, fix=fix)
    registry = open_registry(store)
    manifest = artifact.read_manifest(candidate)
    old = _known(registry, name, parent) or registry.register(
        parent, name, by=by, family=manifest["family"], note="16-bit parent of a quantized version"
    )
    _attach(registry, old, artifact.files_of(parent), report["sides"]["parent"], by)
    calibration = manifest["calibration"]
    new = _known(registry, name, candidate) or registry.register(
        candidate,
        name,
        by=by,
        family=manifest["family"],
        parent=old.ref,
        recipe={k: manifest[k] for k in ("scheme", "method", "group", "recipe", "seed", "versions")},
        data={calibration["set"]: calibration["digest"]} if calibration else {},
        licence=old.licence,
        note=report["verdict"]["sentence"],
    )
    _attach(registry, new, artifact.files_of(candidate), report["sides"]["candidate"], by)
    return {"parent": old.ref, "version": new.ref, "store": registry.store.where}


def check_register(name: str, store: str | None) -> None:
    """Find out before the work that nothing can be registered there.  Raises UsageError."""
    if not re.fullmatch(NAME, name):
        fix = "letters, digits, `.`, `_` and `-`, at most 63, a letter or digit first"
        raise UsageError("is not a name", field="register", value=name, fix=fix)
    open_registry(store).names()


def _known(registry: Registry, name: str, folder: Path) -> Version | None:
    """Return the version of `name` that has the files of `folder`, if there is one."""
    from models.registry.content import files_of

    if name not in registry.names():
        return None
    ours = {relative: artifact.sha256(path) for relative, path in files_of(folder).items()}
    for version in reversed(registry.versions(name)):
        if {relative: file.sha256 for relative, file in version.files.items()} == ours:
            return version
    return None


def _attach(registry: Registry, version: Version, asked: Mapping[str, str], side: Mapping[str, Any], by: str) -> None:
    """Attach the evaluation of one side, after checking that what was asked is what the version holds.

    Raises:
        CheckFailed: a file differs.
    """
    from models.evaluation.compare import read_evaluation

    held = {relative: file.sha256 for relative, file in version.files.items() if relative not in NOT_SERVED}
    if side["files"] != held or dict(asked) != held:
        names = sorted(n for n in held.keys() | side["files"].keys() if held.get(n) != side["files"].get(n))
        value = names[0] if names else version.ref
        raise CheckFailed("a file changed since the gate", field="register", value=value, fix="run the gate again")
    found = read_evaluation(Path(side["evaluation"])).report
    target = {"name": version.name, "version": version.number, "digest": version.digest}
    registry.attach(version.ref, {**found, "target": target}, by=by)
