"""The folder that a quantization leaves: written beside, proven, renamed; never half of one under its name."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.support.errors import CheckFailed, UsageError

MANIFEST = "manifest.json"
KIND = "fovea-quantized"
# The parent's files that are not copied: weights, and what is about the parent itself.
_NOT_COPIED = ("config.json", MANIFEST, "README.md", "training.pt")
_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".gguf", ".pt", ".pth")


def sha256(path: Path) -> str:
    """Return the sha256 of a file, hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def files_of(folder: Path) -> dict[str, str]:
    """Return name -> sha256 of every file of a checkpoint but its manifest and card."""
    names = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    return {p.name: sha256(p) for p in names if p.name not in (MANIFEST, "README.md")}


def disk_error(error: BaseException) -> str | None:
    """Return why the disk refused, also where a library (safetensors) turned the error into text; None otherwise."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return str(error.strerror)
    text = str(error)
    for words in ("No space left on device", "Disk quota exceeded", "File too large", "Read-only file system"):
        if words in text:
            return words
    return None


def check_place(folder: Path, field: str) -> None:
    """Find out before the work that a folder could not be made or written to.  Raises UsageError."""
    place = folder.expanduser().resolve()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = "is no folder" if not place.is_dir() else "may not be written to"
        raise UsageError(f"cannot write: {place} {why}", field=field, value=str(folder), fix="name another folder")


@contextmanager
def staging(out: Path, *, need_bytes: int, replace: bool) -> Iterator[Path]:
    """Yield an empty folder beside `out` that takes its name when the block succeeds, and is removed when it does not.

    What an interrupted job left is removed first.  Only one job writes to one name at a time.

    Raises:
        UsageError: `out` exists and `replace` is not set, is not ours to replace, cannot be written to, or another job
            writes there.
        CheckFailed: `need_bytes` are not free, or the disk is full while the block writes.
    """
    out = out.expanduser().resolve()
    if out.exists():
        if not replace:
            raise UsageError("is there already", field="out", value=str(out), fix="name another folder, or --replace")
        if not is_artifact(out):
            raise UsageError("is not a quantized checkpoint: not replaced", field="out", value=str(out))
    beside = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = out.with_name(f".{out.name}.lock").open("a")
    except OSError as error:
        fix = "name another folder"
        raise UsageError(f"cannot write: {error.strerror}", field="out", value=str(out), fix=fix) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError("another job writes there", field="out", value=str(out), fix="wait for it") from None
        try:
            shutil.rmtree(beside, ignore_errors=True)
            free = shutil.disk_usage(out.parent).free
            if free < need_bytes:
                text = f"{need_bytes / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
                raise CheckFailed(text, field="out", value=str(out.parent), fix="free space or name another disk")
            beside.mkdir()
            yield beside
            _take_name(beside, out)
        except OSError as error:
            reason = disk_error(error)
            if reason is None:
                raise
            fix = "free space, or name a folder on another disk"
            raise CheckFailed(f"cannot save: {reason}", field="out", value=error.filename or out, fix=fix) from error
        finally:
            shutil.rmtree(beside, ignore_errors=True)
            Path(lock.name).unlink(missing_ok=True)


def _take_name(beside: Path, out: Path) -> None:
    """Rename the finished folder; an older one steps aside first and is removed after."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    try:
        beside.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def is_artifact(folder: Path) -> bool:
    """Whether a folder is a checkpoint that this project quantized."""
    try:
        return read_manifest(folder).get("kind") == KIND
    except UsageError:
        return False


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a quantized checkpoint.  Raises UsageError when there is none."""
    try:
        found = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError) as error:
        fix = "name a folder that `fovea quantize run` wrote"
        raise UsageError("has no readable manifest.json", field="model", value=str(folder), fix=fix) from error
    return found if isinstance(found, dict) else {}


def copy_companions(parent: Path, staged: Path) -> dict[str, str]:
    """Copy processor, tokenizer, template and generation config as they are; return name -> `same` or how it differs.

    config.json is the job's (the parent's plus `quantization_config`); its differing keys are named.

    Raises:
        CheckFailed: config.json differs in more than the quantization, or a copy is not the original.
    """
    found: dict[str, str] = {}
    for path in sorted(parent.iterdir()):
        if not path.is_file() or path.name in _NOT_COPIED or path.name.endswith(_WEIGHTS) or path.name.startswith("."):
            continue
        shutil.copyfile(path, staged / path.name)
        if sha256(path) != sha256(staged / path.name):
            raise CheckFailed("the copy differs from the parent's", field=path.name, fix="check the disk")
        found[path.name] = "same"
    old = json.loads((parent / "config.json").read_text("utf-8"))
    new = json.loads((staged / "config.json").read_text("utf-8"))
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if set(changed) - {"quantization_config"}:
        raise CheckFailed(
            "differs from the parent's in more than the quantization", field="config.json", value=changed[0]
        )
    found["config.json"] = f"adds {', '.join(changed)}" if changed else "same"
    return found
