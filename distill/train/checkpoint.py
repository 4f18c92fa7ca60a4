"""Checkpoints: written beside and renamed, so that a kill, or a full disk, leaves the one before it whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from models.support.errors import UsageError


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint.

    Raises:
        UsageError: it does not fit on the disk; the checkpoint before it is still there.
    """
    import torch

    beside = path.with_suffix(".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer turns an OSError of its file into a RuntimeError
        beside.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0][:120]
        free = shutil.disk_usage(path.parent).free / 2**20
        kept = "the checkpoint before it is kept: run again to go on from there" if path.exists() else "run again"
        raise UsageError(
            f"the checkpoint cannot be written: {reason} ({free:,.0f} MiB free)", field=str(path),
            fix=f"free space, or name another folder with --out; {kept}",
        ) from error  # fmt: skip


def load(path: Path) -> dict[str, Any] | None:
    """Return the checkpoint; None when there is none.

    Raises:
        UsageError: it is damaged.
    """
    import torch

    if not path.exists():
        return None
    try:
        found: dict[str, Any] = torch.load(path, weights_only=False)
        return found
    except Exception as error:  # a damaged pickle can raise anything
        fix = "delete it to start the training again"
        raise UsageError(f"the checkpoint is damaged ({type(error).__name__})", field=str(path), fix=fix) from error
