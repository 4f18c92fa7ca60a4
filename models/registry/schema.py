"""What the registry keeps: immutable versions, and events that move them from stage to stage."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Kind = Literal["model", "prompts", "golden"]
Stage = Literal["candidate", "canary", "live", "retired"]
STAGES: tuple[Stage, ...] = ("candidate", "canary", "live", "retired")
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
Name = Annotated[str, Field(pattern=NAME)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Closed(BaseModel):
    """No unknown keys, no changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class File(Closed):
    """One file of a version."""

    sha256: Digest
    bytes: int = Field(ge=0)


class Version(Closed):
    """One version; never changed once it is written.

    Attributes:
        files: path inside the version -> its digest and size.
        digest: sha256 over paths and digests of all files: what the weights digest of a model is.
        parent: the version it was made from, `name@3`, or whatever it came from (a hub id with its commit).
        recipe: how it was made (a recipe file's content, a training manifest).
        data: names of the data sets it was made with -> their digests.
    """

    kind: Kind
    name: Name
    number: int = Field(ge=1)
    digest: Digest
    files: dict[str, File] = Field(min_length=1)
    family: str | None = None
    parent: str | None = None
    recipe: dict[str, Any] | None = None
    data: dict[str, str] = Field(default_factory=dict)
    licence: str | None = None
    note: str | None = None
    by: str = Field(min_length=1)
    at: str

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, File]) -> dict[str, File]:
        """A record of a foreign store must not write outside the folder that it is checked out to."""
        for path in files:
            parts = path.split("/")
            if not all(parts) or ".." in parts or "." in parts or "\\" in path or "\0" in path:
                raise ValueError(f"{path!r} is no path inside a version")
        return files

    @property
    def ref(self) -> str:
        """`name@3`."""
        return f"{self.name}@{self.number}"


class Event(Closed):
    """One thing that happened to a version, numbered without gaps per name: the audit trail and the state in one.

    `attach` carries a report (its sha256 and summary), `approve` and `attest` a person's word, `stage` a move.
    `rollback` marks a stage move that put an earlier version back.
    """

    seq: int = Field(ge=1)
    what: Literal["attach", "approve", "attest", "stage"]
    version: int = Field(ge=1)
    by: str = Field(min_length=1)
    at: str
    to: Stage | None = None
    replaces: int | None = None
    rollback: bool = False
    item: str | None = None
    report: dict[str, Any] | None = None
    note: str | None = None


class Requirement(Closed):
    """What a report on one golden set must show before a version is promoted.  Bounds hold for the interval's low end.

    `max_drop`: against the live version, where it was evaluated on the same set; 0.01 is one point of accuracy.
    """

    golden: str
    min_accuracy: float = Field(ge=0, le=1)
    min_items: int = Field(default=100, ge=1)
    max_drop: float | None = Field(default=None, ge=0, lt=1)


class Policy(Closed):
    """The rules of one name.  Without `require` any complete evaluation report will do, which must still be there."""

    require: list[Requirement] = Field(default_factory=list)
    two_person: bool = Field(default=False, description="live needs an approval by someone who did not register it")
    governance: bool = Field(default=False, description="live needs every item of the governance checklist")


def version_digest(files: dict[str, File]) -> str:
    """Return the sha256 over `path\\0sha256\\n` of all files in order of path."""
    text = "".join(f"{path}\0{files[path].sha256}\n" for path in sorted(files))
    return hashlib.sha256(text.encode()).hexdigest()


def report_summary(report: dict[str, Any]) -> dict[str, Any]:
    """Return what gates and people need of an evaluation report; small, because it is kept in the event."""
    kept = ("accuracy", "by_category", "by_tag", "latency_ms", "cost", "target", "versions", "finished")
    calibration = report.get("calibration")
    return {
        "golden": {k: report["golden"][k] for k in ("name", "digest", "items", "asked")},
        **{k: report[k] for k in kept if k in report},
        "ece": calibration["ece"] if calibration else None,
        "sha256": hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest(),
    }
