"""What the sections of the recipe share: the closed model, money, names and places of files."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from models.prices import Money, parse_money


class Section(BaseModel):
    """A part of the recipe: closed, so that a typo is an error, and fixed once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _positive(amount: Decimal) -> Decimal:
    if amount <= 0:
        raise ValueError("must be above 0: with nothing to spend, nothing can be bought")
    return amount


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise ValueError("must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter or digit")
    return text


Dollars = Annotated[Decimal, BeforeValidator(parse_money), AfterValidator(_positive)]
"""US dollars above 0, written as quoted decimal text or a whole number."""
Name = Annotated[str, AfterValidator(_name)]
Share = Annotated[float, Field(ge=0, le=1)]
__all__ = ["Dollars", "Money", "Name", "Section", "Share"]
