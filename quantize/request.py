"""What goes to the quantization job in the other environment, and what comes back: two closed models.

The job is a process (`python -m quantize.job REQUEST RESULT`): it reads the request as JSON, writes the result as JSON,
and says on stdout, one JSON object a line, what it is doing (`Event`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

FEWEST_TOKENS = 16  # of a calibration prompt: fewer hold no picture


class Closed(BaseModel):
    """Unknown keys are refused, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class JobRequest(Closed):
    """One quantization.

    `staging` is an empty folder that the job writes to; `expected` and `kept` are the scope (short module names;
    `forced` those of the vision tower), which the job must meet exactly; `calibration` is a folder with golden.jsonl
    and images, None for methods without.
    """

    model: Path
    staging: Path
    architecture: str
    scheme: str
    tool: Literal["llmcompressor", "bitsandbytes"]
    method: str
    group: int | None = None
    expected: list[str] = Field(min_length=1)
    kept: dict[str, str]
    ignore: list[str]
    forced: list[str] = Field(default_factory=list)
    calibration: Path | None = None
    max_tokens: int = Field(2048, ge=FEWEST_TOKENS)
    seed: int = 0
    threads: int | None = Field(None, ge=1)


class ModuleLine(Closed):
    """One linear module of the result.

    `stored`: how its weight lies in the file (`I32 [512, 24]`); `error`: relative Frobenius error of the weight that it
    stands for, None where it cannot be compared (rescaled by smoothing).
    """

    name: str
    part: str
    quantized: bool
    shape: tuple[int, int]
    stored: str
    error: float | None = None


class CalibrationFacts(Closed):
    """What the model saw: figures of the processor's own output, and of one item for the engine to be compared with."""

    items: int
    tokens: int
    longest: int
    image_tokens: dict[int, int]
    first_item: str
    first_prompt_tokens: int


class JobResult(Closed):
    """What the job did.  `changed`: tensors that are not the parent's although nothing quantized them (smoothing)."""

    modules: list[ModuleLine]
    changed: list[str]
    calibration: CalibrationFacts | None
    recipe: dict[str, Any]
    quantization_config: dict[str, Any]
    seconds: dict[str, float]
    versions: dict[str, str]
    bytes_before: int
    bytes_after: int
    quantized_bytes_before: int
    quantized_bytes_after: int


class JobError(Closed):
    """Why the job ended without a result; fields as in `models.support.errors`."""

    kind: Literal["UsageError", "CheckFailed"]
    message: str
    field: str | None = None
    value: str | None = None
    fix: str | None = None


class Reply(Closed):
    """The file that the job leaves: a result or an error."""

    result: JobResult | None = None
    error: JobError | None = None


class Event(Closed):
    """One line on the job's stdout."""

    stage: str
    done: int | None = None
    total: int | None = None
