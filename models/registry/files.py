"""The files of versions: stored once per content, hashed again, checked out."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from models.registry.schema import Version, version_digest
from models.registry.store import Store
from models.support.errors import CheckFailed

MARK = "fovea-version.json"


def read_mark(folder: Path) -> dict[str, Any] | None:
    """Return `name`, `version` and `digest` of a checked-out version's folder; None where it is not one."""
    try:
        mark = json.loads((folder / MARK).read_text("utf-8"))
        return {key: mark[key] for key in ("name", "version", "digest")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def blob(digest: str) -> str:
    """Return where the content with that sha256 lies in a store."""
    return f"blobs/{digest[:2]}/{digest}"


def sha256(path: Path) -> str:
    """Return a file's sha256, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(store: Store, version: Version) -> Iterator[str]:
    """Hash every file of a version again; yield one sentence for each that is wrong, naming it."""
    if version_digest(version.files) != version.digest:
        yield f"{version.ref}: the record's own digest does not match its files"
    for relative, file in version.files.items():
        try:
            with store.open(blob(file.sha256)) as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]
        except FileNotFoundError:
            yield f"{version.ref}: {relative} is gone"
            continue
        if found != file.sha256:
            yield f"{version.ref}: {relative} is corrupted (sha256 {found[:12]}, recorded {file.sha256[:12]})"


def orphans(store: Store, versions: Iterable[Version]) -> list[str]:
    """Return the digests of stored files that none of `versions` has."""
    used = {file.sha256 for version in versions for file in version.files.values()}
    return [digest for part in store.names("blobs") for digest in store.names(f"blobs/{part}") if digest not in used]


def check_out(store: Store, version: Version, target: Path) -> None:
    """Copy a version's files to `target`, whole or not at all, with a file `fovea-version.json` that names it.

    Raises:
        CheckFailed: a file is gone or does not have its recorded digest.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".writing-", dir=target.parent))
    try:
        for relative, file in version.files.items():
            path = beside / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with store.open(blob(file.sha256)) as source, path.open("wb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 22)
            except FileNotFoundError:
                raise CheckFailed(f"{relative} is gone", field="version", value=version.ref) from None
            if sha256(path) != file.sha256:
                raise CheckFailed(f"{relative} is corrupted", field="version", value=version.ref, fix="roll back")
        mark = {"name": version.name, "version": version.number, "digest": version.digest}
        (beside / MARK).write_text(json.dumps(mark), "utf-8")
        beside.chmod(0o755)
        if target.exists() and not (target / MARK).exists():  # left by someone's deletion
            shutil.rmtree(target)
        beside.rename(target)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        if (target / MARK).exists():  # another process was first
            return
        raise CheckFailed(f"cannot check out: {error.strerror}", field="version", value=version.ref) from error
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
