"""The sections about proof: on which truth, at what load and price, and what must hold before it is registered."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from distill.recipe.parts import Dollars, Money, Name, Section, Share


class Targets(Section):
    """What the student should reach; the report says which hold."""

    keep: Share = Field(0.97, description="Share of the teacher's accuracy that it keeps.")
    faster: float = Field(5.0, ge=1, description="Teacher's P50 over the student's, under the same load.")
    cheaper: Share = Field(0.8, description="Share of the teacher's dollars per query that it saves.")


class Quantized(Section):
    """The student in fewer bits, made by `fovea quantize run` and calibrated on its training rows."""

    scheme: Literal["w8a8", "w4a16", "fp8", "nf4", "bnb-int8"] = Field(description="As in `fovea quantize schemes`.")
    method: str | None = Field(None, description="gptq, awq, smoothquant or rtn; each scheme has its default.")
    samples: int = Field(256, ge=32, description="Training rows that it is calibrated on.")


class Evaluate(Section):
    """Student, teacher and base on the same items, each served in its turn with the whole stack."""

    golden: list[str] = Field(min_length=1, description="Golden sets: names, or folders relative to the recipe.")
    limit: int | None = Field(None, ge=1, description="Items of each set, drawn by the seed; all when left out.")
    concurrency: int = Field(
        8, ge=1, le=1024, description="Requests in flight: the load that everybody is asked under."
    )
    max_tokens: int = Field(64, ge=1, description="Longest answer.")
    usd_per_hour: Money = Field(description="Price of the machine that serves, quoted.")
    max_usd: Dollars | None = Field(
        None, description="What asking a vendor's teacher may cost for each set, beside `budget.max_usd`; quoted."
    )
    base: bool = Field(True, description="Ask the student's base too: what training brought.")
    also: dict[Name, Quantized | str] = Field(
        default_factory=dict,
        description="The student in fewer bits, in the same report: name -> {scheme: w8a8}, made here; or the folder "
        "of a checkpoint, relative to the recipe.",
    )
    robust_items: int = Field(
        200, ge=0, description="Items of each set asked again with the picture hidden, and with it damaged; 0: none."
    )
    repeats: int = Field(0, ge=0, le=10, description="Times that the student is asked again, word for word.")
    variants: list[str] = Field(
        default_factory=list, description="Other wordings, `{question}` in them: how steady is the student?"
    )
    seeds: list[Annotated[int, Field(ge=0)]] = Field(
        default_factory=list,
        max_length=10,
        description="Train the student again with each of these seeds and ask it: how much of the result is chance?",
    )
    targets: Targets = Field(default_factory=Targets, description="What should hold.")

    @field_validator("also")
    @classmethod
    def _own_names(cls, also: dict[str, Quantized | str]) -> dict[str, Quantized | str]:
        taken = [name for name in also if name in ("teacher", "base", "student") or name.startswith("seed-")]
        if taken:
            raise ValueError(f"{taken[0]!r} is the name of another of the compared: choose one")
        return also


class Export(Section):
    """Registration, and the gate that a version stands behind."""

    name: Name = Field(description="Name in the registry (`fovea models registry list`).")
    by: str = Field(min_length=1, description="Who registers it.")
    store: str | None = Field(
        None, description="Registry, when it is not the default one; a folder relative to the recipe."
    )
    licence: str = Field("", description="Licence of the student.")
    also: list[Name] = Field(
        default_factory=list,
        description="Names of `evaluate.also` to register too (`receipts-int8`), the student as parent, "
        "each behind the same gate.",
    )
    parity_items: int = Field(
        16, ge=1, le=200, description="Held-out items on which transformers and vLLM are compared."
    )
    parity_tolerance: float = Field(
        0.1,
        gt=0,
        description="Largest difference of a token's probability, in any step of any answer, that passes.",
    )
    min_accuracy: Share = Field(
        0.5, description="Promotion is refused below this low end of the interval, on every set of `evaluate.golden`."
    )
    min_items: int = Field(100, ge=1, description="Promotion is refused with fewer items.")
    max_drop: Share | None = Field(
        0.02, lt=1, description="Promotion is refused when it may lose more against what is live."
    )
