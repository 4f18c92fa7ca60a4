"""Sections about what is dropped before training."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from distill.recipe.ask import Teacher
from distill.recipe.parts import Section, Share


class Unit(Section):
    """A quantity in the answer: its unit, other spellings of it, and its range."""

    unit: str | None = Field(None, min_length=1, description="Unit in which the field is trained; none: a bare number.")
    others: dict[str, float] = Field(
        default_factory=dict,
        description="Other units that a teacher may write, with the factor to `unit` ({g: 0.001}).",
    )
    minimum: float | None = Field(None, description="Smallest value, in `unit`.")
    maximum: float | None = Field(None, description="Largest value, in `unit`.")
    decimals: int | None = Field(None, ge=0, le=12, description="Most decimal places that make sense (2 for money).")
    required: bool = Field(True, description="Whether the field may be null or missing.")

    @model_validator(mode="after")
    def _coherent(self) -> Unit:
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError("minimum is above maximum")
        if self.others and self.unit is None:
            raise ValueError("others needs unit")
        if any(not math.isfinite(f) or f <= 0 for f in self.others.values()):
            raise ValueError("the factors of others must be above 0")
        return self


class Agreement(Section):
    """How far answers to one row must agree."""

    min_share: Share = Field(0.5, description="Share of the usable answers that must agree with the chosen one.")
    min_teachers: int = Field(1, ge=1, description="Different teachers that must give the chosen answer.")


def _running(model: Teacher) -> Teacher:
    if model.checkpoint is not None:
        raise ValueError("a filter asks a server that runs: give base_url instead of checkpoint")
    return model


class Judge(Section):
    """A model that looks at the picture, the question and the answer, and says whether it is right."""

    model: Annotated[Teacher, AfterValidator(_running)] = Field(description="Whom to ask.")
    min_confidence: Share = Field(0.0, description="A rejection below this confidence is ignored.")


class Duplicates(Section):
    """When two pictures count as one."""

    max_bits: int = Field(4, ge=0, le=16, description="Bits of the 64-bit difference hash in which they may differ.")
    max_difference: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Largest difference of colour (0 to 1) in any cell of both at 16x16 pixels: tells apart what the "
        "hash takes for equal (other colours, a small thing elsewhere).",
    )


class ImageBlind(Section):
    """Rows whose answer comes without the picture teach a student not to look."""

    model: Annotated[Teacher, AfterValidator(_running)] = Field(
        description="Who is asked without the picture: the student, or a teacher."
    )
    min_confidence: Share = Field(0.0, description="A right guess below this confidence is ignored.")


class Balance(Section):
    """No class may fill the training set."""

    by: Literal["answer", "category"] = Field("answer", description="What the classes are.")
    max_share: float = Field(0.5, gt=0, le=1, description="Largest share of one class among the training rows.")


class Filters(Section):
    """Filters in the order in which they run; one that is left out does not run.

    Answers that failed or do not fit `task.answer_schema` and `task.units` are always dropped, and so are training
    pictures that are also in a held-out split.
    """

    min_confidence: Share = Field(0.0, description="Drop answers of which the teacher itself is less sure.")
    agreement: Agreement = Field(default_factory=Agreement, description="Agreement of samples and teachers.")
    duplicates: Duplicates = Field(
        default_factory=Duplicates, description="How alike two pictures must be to count as one."
    )
    contamination: list[str] = Field(
        default_factory=list, description="Golden sets (names, or paths relative to the recipe) not to train on."
    )
    image_blind: ImageBlind | None = Field(None, description="Drop rows that are answered without their picture.")
    judge: Judge | None = Field(None, description="Ask a judge about each chosen answer.")
    balance: Balance | None = Field(None, description="Limit the share of a class.")
    min_kept: int = Field(1, ge=1, description="Fewer training rows than this after filtering is an error.")
