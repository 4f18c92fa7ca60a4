"""Section `batches` of the stack file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from serving.section import Section


class Batches(Section):
    """Files of requests (layer `batches`): `/v1/files` and `/v1/batches`."""

    folder: Annotated[str, AfterValidator(lambda text: str(Path(text).expanduser().resolve()))] = Field(
        "batches", description="Where files, states and results are; one machine's replicas share it."
    )
    file_bytes: int = Field(200 * 2**20, ge=1024, description="Largest file, bytes.")
    tenant_bytes: int = Field(10 * 2**30, ge=1024, description="Most bytes of one tenant's files, results included.")
    file_days: float | None = Field(
        30.0,
        gt=0,
        description="A file is deleted so many days after it was made, results too; null: never. A client "
        "may say `expires_after`, and for results `output_expires_after`.",
    )
    line_bytes: int = Field(32 * 2**20, ge=1024, description="Longest line, bytes; a longer one fails, the rest runs.")
    lines: int = Field(100_000, ge=1, description="Most lines of a batch.")
    inside: int = Field(32, ge=1, description="Lines of a batch that one replica asks at once.")
    lease_s: float = Field(15.0, ge=0.2, description="A dead replica's batch is taken over after so long, seconds.")
