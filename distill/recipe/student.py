"""The section about the student: who learns, and in which form the rows reach it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from distill.recipe.parts import Section


class Student(Section):
    """The model that learns."""

    model: str = Field(
        min_length=1, description="A model of the catalog (`fovea models list`): its image rule is used."
    )
    max_tokens: int = Field(
        2048, ge=16, description="Longest row in tokens: image, question and answer. A longer row stops the job."
    )
    target: Literal["answer", "json", "rationale"] = Field(
        "answer",
        description="What is learned: `answer` as it is; `json`, an object with answer and confidence; `rationale`, "
        "the same object with the rationale before the answer.",
    )
    max_dropped_rows: int = Field(
        0, ge=0, description="Rows that may be left out for a missing, unreadable or too large picture; 0: stop."
    )

    @field_validator("model")
    @classmethod
    def _in_the_catalog(cls, name: str) -> str:
        from models.catalog.load import load_catalog
        from models.support.errors import UsageError

        try:
            variant = load_catalog().variant(name)
        except UsageError as error:
            raise ValueError(f"{error.message}; {error.fix}") from None
        if variant.image is None:
            raise ValueError("the catalog has no image rule for it: it takes no pictures")
        return name
