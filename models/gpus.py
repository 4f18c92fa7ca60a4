"""The GPUs of gpus.yaml: what memory one has, and what it can compute in."""

from __future__ import annotations

import difflib
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from models.catalog.schema import Confidence
from models.prices import read_rows
from models.support.errors import UsageError


class Gpu(BaseModel):
    """One row of gpus.yaml: `memory_gib` is what CUDA reports."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    memory_gib: float = Field(gt=0, le=10_000)
    capability: str = Field(pattern=r"^\d+\.\d$")
    aliases: list[str] = Field(default_factory=list)
    source: str = Field(min_length=1)
    confidence: Confidence
    note: str | None = None


@lru_cache(maxsize=1)
def load_gpus() -> tuple[Gpu, ...]:
    """Return the rows of gpus.yaml, smallest memory first."""
    return tuple(sorted(read_rows(Path(__file__).with_name("gpus.yaml"), Gpu), key=lambda g: g.memory_gib))


def find_gpu(name: str) -> Gpu:
    """Return the GPU of that name or alias.  Raises UsageError with the closest names."""
    plain = name.strip().casefold().replace(" ", "-").replace("_", "-").removeprefix("nvidia-")
    names = {alias.casefold(): gpu for gpu in load_gpus() for alias in (gpu.name, *gpu.aliases)}
    if plain in names:
        return names[plain]
    close = [names[n].name for n in difflib.get_close_matches(plain, names, n=3, cutoff=0.4)]
    known = ", ".join(dict.fromkeys(close)) or ", ".join(g.name for g in load_gpus())
    raise UsageError("unknown GPU", field="gpu", value=name, fix=f"known: {known}; or give --memory GIB")
