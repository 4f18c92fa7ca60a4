"""Is a folder what it says it is, before it is registered?"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.registry.schema import Kind
from models.support.errors import UsageError

LEFT_OUT = ("training.pt", "fovea-version.json")
PROMPT_SUFFIXES = (".jinja", ".json", ".md", ".txt", ".yaml")


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files that make a version: path inside the folder -> file; hidden ones and training state left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and path.name not in LEFT_OUT and not any(p.startswith(".") for p in relative.parts):
            found[relative.as_posix()] = path
    return found


def check_content(folder: Path, kind: Kind, family: str | None) -> str | None:
    """Return the catalog family of a model (None for the other kinds).

    Raises:
        UsageError: the folder is not there, is empty, is damaged, or does not match `family`.
    """
    if not folder.is_dir() or not files_of(folder):
        raise UsageError("no such folder, or it is empty", field="folder", value=str(folder))
    return CHECKS[kind](folder, family)


def _model(folder: Path, family: str | None) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        architectures = [str(name) for name in config.get("architectures") or []]
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(
            "no checkpoint: config.json is missing or broken", field="folder", value=str(folder)
        ) from error
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UsageError("no weights (*.safetensors)", field="folder", value=str(folder))
    for path in weights:
        check_safetensors(path)
    for index in folder.glob("*.safetensors.index.json"):
        missing = {str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
        missing -= {path.name for path in weights}
        if missing:
            raise UsageError(f"shard {min(missing)} is missing", field="folder", value=str(folder))
    return _family(architectures, family)


def _family(architectures: list[str], family: str | None) -> str | None:
    """Return the family by its name, checked against the checkpoint; by the architecture where no name is given."""
    from models.catalog import load_catalog

    catalog = load_catalog()
    if family is None:
        found = {
            f.family for f, v in catalog.variants() if {f.engine.architecture, v.config.model_class} & {*architectures}
        }
        return found.pop() if len(found) == 1 else None
    known = catalog.find(family)[0]
    fitting = {known.engine.architecture, *(v.config.model_class for v in known.variants)}
    if not fitting & set(architectures):
        told = ", ".join(architectures) or "no architecture"
        fix = f"{known.family} is {' or '.join(sorted(fitting))}; name the right family"
        raise UsageError(f"the checkpoint is {told}", field="family", value=family, fix=fix)
    return known.family


def check_safetensors(path: Path) -> None:
    """Check that a safetensors file is as long as its header says.

    Raises:
        UsageError: it is cut short, too long, or its header is broken; the file is named.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > size - 8:
                raise ValueError("the header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
        end = max(
            (int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"), default=0
        )
    except (OSError, struct.error, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UsageError("corrupted shard: its header cannot be read", field="weights", value=path.name) from error
    if 8 + length + end != size:
        raise UsageError(
            f"corrupted shard: {size} bytes where its header says {8 + length + end}",
            field="weights",
            value=path.name,
            fix="copy it again",
        )


def _golden(folder: Path, family: str | None) -> None:
    from models.golden import load_golden

    load_golden(folder)


def _prompts(folder: Path, family: str | None) -> None:
    wrong = next((name for name in files_of(folder) if not name.endswith(PROMPT_SUFFIXES)), None)
    if wrong is not None:
        raise UsageError(
            "is not a prompt file", field="folder", value=wrong, fix=f"one of {', '.join(PROMPT_SUFFIXES)}"
        )


CHECKS: dict[Kind, Callable[[Path, str | None], str | None]] = {"model": _model, "golden": _golden, "prompts": _prompts}
