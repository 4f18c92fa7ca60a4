"""Quantities in answers: read a number with its unit, bring it to one unit, check its range."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from distill.recipe.filters import Unit

# 1,234.50 | 1234.5 | .5 with an optional sign; a comma is a thousands separator only before groups of three digits
_NUMBER = r"[-+−]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3})?"
_QUANTITY = re.compile(rf"(?P<before>[^\d\s.+−-]*)\s*(?P<number>{_NUMBER})\s*(?P<after>\D*)")
WHOLE = "."


class UnitProblem(ValueError):
    """What is wrong with a quantity; the text names the field and the value."""


def apply_units(answer: Any, units: Mapping[str, Unit]) -> Any:
    """Return the answer with every quantity of `units` as a number in its unit (text such as "500 g" becomes one).

    Raises:
        UnitProblem: a quantity is missing, is no number, has another unit, or is out of range.
    """
    for path, unit in units.items():
        answer = _at(answer, [] if path == WHOLE else path.split("."), unit, path)
    return answer


def _at(value: Any, path: list[str], unit: Unit, name: str) -> Any:
    if isinstance(value, list):
        return [_at(one, path, unit, name) for one in value]
    if not path:
        return _quantity(value, unit, name)
    if not isinstance(value, dict):
        raise UnitProblem(f"{name}: there is no object to look in")
    return {**value, path[0]: _at(value.get(path[0]), path[1:], unit, name)}


def _quantity(value: Any, unit: Unit, name: str) -> int | float | None:
    if value is None:
        if unit.required:
            raise UnitProblem(f"{name}: is missing")
        return None
    number, factor = _number(value, unit, name)
    amount = number * factor
    if unit.decimals is not None and amount != round(amount, unit.decimals):
        raise UnitProblem(f"{name}: {value!r} has more than {unit.decimals} decimal places")
    if unit.minimum is not None and amount < Decimal(str(unit.minimum)):
        raise UnitProblem(f"{name}: {value!r} is below {unit.minimum:g}")
    if unit.maximum is not None and amount > Decimal(str(unit.maximum)):
        raise UnitProblem(f"{name}: {value!r} is above {unit.maximum:g}")
    return int(amount) if amount == amount.to_integral_value() and not isinstance(value, float) else float(amount)


def _number(value: Any, unit: Unit, name: str) -> tuple[Decimal, Decimal]:
    """Return (number, factor to `unit.unit`)."""
    one = Decimal(1)
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = Decimal(str(value))
        if not number.is_finite():
            raise UnitProblem(f"{name}: {value!r} is not a finite number")
        return number, one
    found = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) and len(value) < 100 else None
    if found is None:
        raise UnitProblem(f"{name}: {value!r} is not one number")
    number = Decimal(found["number"].replace(",", "").replace("−", "-"))
    written = [w for w in (found["before"].strip(), found["after"].strip()) if w]
    if not written:
        return number, one
    known = {unit.unit: one} if unit.unit is not None else {}
    known |= {other: Decimal(str(factor)) for other, factor in unit.others.items()}
    if len(written) == 1 and written[0] in known:
        return number, known[written[0]]
    wanted = ", ".join(str(k) for k in known) or "none"
    raise UnitProblem(f"{name}: {value!r} has the unit {' '.join(written)!r}, not one of: {wanted}")
