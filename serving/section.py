"""What every section of the stack file shares."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the stack file: closed, so that a typo is an error."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _location(text: str) -> str:
    if is_valkey(text):
        return text
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if scheme:
        raise ValueError(f"unknown kind of store {scheme.group(1)!r}; write a file's path or valkey://HOST:PORT/DB")
    return str(Path(text).expanduser().resolve())  # the processes of a stack may run in other folders


def _location_or_memory(text: str) -> str:
    return text if text == "memory" else _location(text)


def is_valkey(location: str) -> bool:
    """Whether a store's location is a Valkey or Redis server rather than a file."""
    return location.startswith(("valkey://", "valkeys://", "redis://", "rediss://", "unix://"))


Location = Annotated[str, Field(min_length=1), AfterValidator(_location)]
"""A SQLite file (one machine) or the URL of a Valkey or Redis server (any number of machines)."""

LocationOrMemory = Annotated[str, Field(min_length=1), AfterValidator(_location_or_memory)]
"""As `Location`, or `memory`: this process only."""
