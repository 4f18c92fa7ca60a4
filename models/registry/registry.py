"""The registry's operations.  Every change is one object created exclusively, so that writers cannot lose each other's.

State is a fold over events: a writer reads all of them, decides, and creates the next number; if that number was taken
meanwhile it reads again and decides anew.  Files lie once per content under their digest; a version's record is written
last, so that what breaks off before it leaves orphan files (`gc` removes them) and no version.
"""

from __future__ import annotations

import datetime as dt
import difflib
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from models.registry.content import check_content, files_of
from models.registry.files import MARK, blob, check_out, damage, orphans, sha256
from models.registry.gates import problems
from models.registry.schema import (
    NAME,
    Closed,
    Event,
    File,
    Kind,
    Policy,
    Stage,
    Version,
    report_summary,
    version_digest,
)
from models.registry.state import State, fold
from models.registry.store import Store, open_store
from models.support.errors import CheckFailed, UsageError

DEFAULT_STORE = "runs/registry"
STORE_VARIABLE = "FOVEA_REGISTRY"
ATTEMPTS = 100
T = TypeVar("T", bound=Closed)


@dataclass(frozen=True)
class Resolved:
    """A version ready to be served: its folder holds its files, and `fovea-version.json` names it."""

    version: Version
    stage: Stage
    folder: Path


class Registry:
    """All versions of one store."""

    def __init__(self, store: Store, cache: Path | None = None):
        self.store = store
        self.cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fovea" / "versions"

    # -- reading

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return self.store.names("versions")

    def versions(self, name: str) -> list[Version]:
        """Return the versions of `name`, oldest first.

        Raises:
            UsageError: there is no such name; the closest are offered.
        """
        found = [self._parse(f"versions/{name}/{entry}", Version) for entry in self.store.names(f"versions/{name}")]
        if not found:
            close = difflib.get_close_matches(name, self.names(), n=3)
            fix = f"did you mean {', '.join(close)}?" if close else "`fovea models registry list` shows what is there"
            raise UsageError("is not in the registry", field="name", value=name, fix=fix)
        return found

    def events(self, name: str) -> list[Event]:
        """Return what happened to `name`, oldest first: the audit trail."""
        return [self._parse(f"events/{name}/{entry}", Event) for entry in self.store.names(f"events/{name}")]

    def state(self, name: str) -> State:
        """Return the stages, reports, approvals and attestations of all versions of `name`."""
        return fold([v.number for v in self.versions(name)], self.events(name))

    def policy(self, name: str) -> Policy | None:
        """Return the policy in force for `name`: the last one written."""
        entries = self.store.names(f"policies/{name}")
        return self._parse(f"policies/{name}/{entries[-1]}", Policy) if entries else None

    def find(self, ref: str) -> Version:
        """Return the version that `name@3`, `name@live`, `name@canary` or `name` (the newest) means.

        Raises:
            UsageError: there is no such name or version, or none (or several, for canary) is at that stage.
        """
        name, _, which = ref.partition("@")
        _check_name(name)
        versions = self.versions(name)
        if not which:
            return versions[-1]
        if which in ("live", "canary"):
            at = [n for n, stage in self.state(name).stages.items() if stage == which]
            if len(at) != 1:
                what = f"no version is {which}" if not at else f"versions {', '.join(map(str, at))} are {which}"
                raise UsageError(what, field="version", value=ref, fix="name one: NAME@NUMBER")
            which = str(at[0])
        found = next((v for v in versions if str(v.number) == which), None)
        if found is None:
            raise UsageError("no such version", field="version", value=ref, fix=f"1 to {versions[-1].number}, or live")
        return found

    # -- writing

    def register(
        self,
        folder: Path,
        name: str,
        *,
        by: str,
        kind: Kind = "model",
        family: str | None = None,
        parent: str | None = None,
        recipe: dict[str, Any] | None = None,
        data: dict[str, str] | None = None,
        licence: str | None = None,
        note: str | None = None,
    ) -> Version:
        """Copy `folder` into the store as the next version of `name`, a candidate; return it.

        Raises:
            UsageError: the folder is no sound checkpoint (golden set, prompt bundle), or does not match its family.
            CheckFailed: the store failed; no version exists then.
        """
        _check_name(name)
        if not by.strip():
            raise UsageError("who registers it?", field="by", fix="give a name or an address")
        family = check_content(folder, kind, family)
        paths = files_of(folder)
        files = {relative: File(sha256=sha256(path), bytes=path.stat().st_size) for relative, path in paths.items()}
        if parent is not None and parent.partition("@")[0] in self.names():
            parent = self.find(parent).ref
        new = {blob(files[relative].sha256): path for relative, path in paths.items()}
        there = {folder: self.store.names(folder) for folder in {at.rpartition("/")[0] for at in new}}
        self.store.put_files(
            {at: path for at, path in new.items() if at.rpartition("/")[2] not in there[at.rpartition("/")[0]]}
        )
        changed = next((r for r, path in paths.items() if sha256(path) != files[r].sha256), None)
        if changed is not None:
            raise CheckFailed("the file changed while it was copied", field=changed, fix="register it when it is done")
        for _ in range(ATTEMPTS):
            taken = self.store.names(f"versions/{name}")
            number = int(taken[-1].partition(".")[0]) + 1 if taken else 1
            version = Version(
                kind=kind,
                name=name,
                number=number,
                digest=version_digest(files),
                files=files,
                family=family,
                parent=parent,
                recipe=recipe,
                data=data or {},
                licence=licence,
                note=note,
                by=by,
                at=_now(),
            )
            if self.store.create(f"versions/{name}/{number:06d}.json", _bytes(version)):
                return version
        raise CheckFailed("others kept taking the next number", field="store", value=self.store.where)

    def attach(self, ref: str, report: dict[str, Any], *, by: str) -> Event:
        """Tie an evaluation report to the version it was made of.

        Raises:
            UsageError: it is no finished evaluation, or of another version (its `target` has another digest).
        """
        version = self.find(ref)
        target = report.get("target")
        if report.get("kind") != "evaluation" or report.get("run", {}).get("stopped") is not None:
            raise UsageError("is not a finished evaluation", field="report", fix="`fovea models evaluate` writes one")
        if not isinstance(target, dict) or target.get("digest") != version.digest:
            fix = f"evaluate the version itself: fovea models evaluate {version.ref} --golden ... --out ..."
            raise UsageError(f"is not a report on {version.ref}", field="report", value=str(target), fix=fix)
        summary = report_summary(report)
        self.store.create(f"reports/{summary['sha256']}.json", json.dumps(report).encode())
        return self._event(version.name, lambda _: Event(what="attach", report=summary, **self._who(version, by)))

    def approve(self, ref: str, *, by: str, note: str | None = None) -> Event:
        """Record a person's approval (the second person of the two-person rule)."""
        version = self.find(ref)
        return self._event(version.name, lambda _: Event(what="approve", note=note, **self._who(version, by)))

    def attest(self, ref: str, item: str, *, by: str, note: str | None = None) -> Event:
        """Record a person's word on an item of the governance checklist that no machine can check.

        Raises:
            UsageError: the checklist has no such item, or a machine checks it.
        """
        from models.registry.governance import BY_PERSON

        if item not in BY_PERSON:
            raise UsageError("no such item", field="item", value=item, fix=f"one of {', '.join(BY_PERSON)}")
        version = self.find(ref)
        return self._event(version.name, lambda _: Event(what="attest", item=item, note=note, **self._who(version, by)))

    def set_policy(self, name: str, policy: Policy) -> None:
        """Put a policy in force; earlier ones stay on record."""
        for _ in range(ATTEMPTS):
            number = len(self.store.names(f"policies/{name}")) + 1
            if self.store.create(f"policies/{name}/{number:06d}.json", _bytes(policy)):
                return
        raise CheckFailed("others kept taking the next number", field="store", value=self.store.where)

    def promote(self, ref: str, to: Stage, *, by: str, note: str | None = None) -> Event:
        """Move a version one stage on: candidate, canary, live; or out of use: retired.

        Raises:
            UsageError: the stage does not follow.
            CheckFailed: the policy is not met; every reason is named, nothing is changed.
        """
        version = self.find(ref)

        def decide(state: State) -> Event:
            stage = state.stages[version.number]
            if to != "retired" and {"canary": "candidate", "live": "canary"}.get(to) != stage:
                fix = "candidate -> canary -> live; `rollback` puts an earlier live version back"
                raise UsageError(f"{version.ref} is {stage}", field="to", value=to, fix=fix)
            wrong = [] if to == "retired" else problems(self, version, state, to)
            if wrong:
                raise CheckFailed(f"{version.ref} may not become {to}: {'; '.join(wrong)}", field="version", value=ref)
            replaces = state.current() if to == "live" else None
            return Event(what="stage", to=to, replaces=replaces, note=note, **self._who(version, by, state))

        return self._event(version.name, decide)

    def rollback(self, name: str, *, by: str, note: str | None = None) -> Event:
        """Put the version back that was live before the present one; its files are hashed first.

        Raises:
            UsageError: there is none.
            CheckFailed: a file of it is damaged or gone.
        """
        _check_name(name)
        versions = {v.number: v for v in self.versions(name)}

        def decide(state: State) -> Event:
            now = state.current()
            earlier = [n for n in state.live if n != now]
            if not earlier:
                raise UsageError("no version was live before", field="name", value=name, fix="promote one")
            before = versions[earlier[-1]]
            damaged = list(damage(self.store, before))
            if damaged:
                raise CheckFailed(f"{before.ref} is damaged: {damaged[0]}", field="version", value=before.ref)
            who = self._who(before, by, state)
            return Event(what="stage", to="live", replaces=now, rollback=True, note=note, **who)

        return self._event(name, decide)

    # -- files

    def verify(self, names: Iterable[str] | None = None) -> list[str]:
        """Hash everything again; return what is wrong, empty when all is well."""
        chosen = self.names() if names is None else list(names)
        return [problem for name in chosen for v in self.versions(name) for problem in damage(self.store, v)]

    def gc(self, *, dry: bool = False) -> list[str]:
        """Remove files that no version has (an interrupted registration leaves them); return their digests.

        Not while a registration runs: its files have no version yet.
        """
        found = orphans(self.store, (v for name in self.names() for v in self.versions(name)))
        for digest in [] if dry else found:
            self.store.delete(blob(digest))
        return found

    def resolve(self, ref: str) -> Resolved:
        """Return the version with its files in a local folder, checked out once per digest.

        Raises:
            UsageError: as `find`.
            CheckFailed: a file does not have its recorded digest.
        """
        version = self.find(ref)
        target = self.cache / version.digest
        if not (target / MARK).exists():
            check_out(self.store, version, target)
        return Resolved(version, self.state(version.name).stages[version.number], target)

    # -- inside

    def _who(self, version: Version, by: str, state: State | None = None) -> dict[str, Any]:
        seq = (state or self.state(version.name)).seq + 1
        return {"seq": seq, "version": version.number, "by": by, "at": _now()}

    def _event(self, name: str, decide: Callable[[State], Event]) -> Event:
        """Decide on the present state and write the event; decide anew when somebody else was first."""
        for _ in range(ATTEMPTS):
            event = decide(self.state(name))
            if self.store.create(f"events/{name}/{event.seq:06d}.json", _bytes(event)):
                return event
        raise CheckFailed("others kept changing it", field="name", value=name, fix="try again")

    def _parse(self, path: str, kind: type[T]) -> T:
        try:
            return kind.model_validate_json(self.store.read(path))
        except (ValidationError, ValueError) as error:
            raise CheckFailed(
                "the store holds a damaged record", field="store", value=f"{self.store.where}/{path}"
            ) from error


def open_registry(where: str | Path | None = None, cache: Path | None = None) -> Registry:
    """Return the registry at a folder or fsspec URL; by default that of FOVEA_REGISTRY, or `runs/registry`."""
    return Registry(open_store(where or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE), cache)


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME, name):
        fix = "letters, digits, `.`, `_` and `-`, at most 63, a letter or digit first"
        raise UsageError("is not a name", field="name", value=name, fix=fix)


def _bytes(record: Closed) -> bytes:
    return record.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
