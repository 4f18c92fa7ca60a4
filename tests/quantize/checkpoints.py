"""Checkpoints for tests: copies of the embedded ones, and broken ones made of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EMBEDDED = ROOT / "models" / "embedded"


def copy_of(family: str, target: Path) -> Path:
    """Copy an embedded checkpoint; return the folder."""
    shutil.copytree(EMBEDDED / family, target)
    return target


def change_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Load the tensors of a checkpoint, let `change` edit them, and write them back."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    """Set keys of config.json."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | values))
