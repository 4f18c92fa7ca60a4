"""Return on investment: benefits and costs of a year, with the definitions of the implementation playbook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from models.support.errors import UsageError

MONTHS = 12


def labour_saved(items_per_month: Decimal, minutes_each: Decimal, usd_per_hour: Decimal) -> Decimal:
    """Return dollars a year: items x minutes x wage x 12."""
    return items_per_month * minutes_each / 60 * usd_per_hour * MONTHS


@dataclass(frozen=True)
class Roi:
    """A year of benefits against what it takes.

    Attributes:
        benefits: dollars a year, by name.
        one_time: dollars once, by name.
        yearly: dollars every year, by name.
    """

    benefits: Mapping[str, Decimal]
    one_time: Mapping[str, Decimal]
    yearly: Mapping[str, Decimal]

    def __post_init__(self) -> None:
        if self.first_year_cost <= 0:
            raise UsageError("a return needs some cost", field="costs", value=str(self.first_year_cost))

    @property
    def benefit(self) -> Decimal:
        return sum(self.benefits.values(), Decimal(0))

    @property
    def yearly_cost(self) -> Decimal:
        return sum(self.yearly.values(), Decimal(0))

    @property
    def first_year_cost(self) -> Decimal:
        return sum(self.one_time.values(), Decimal(0)) + self.yearly_cost

    @property
    def first_year(self) -> Decimal:
        """(benefits - costs) / costs of the first year, as a share: 0.79 is 79 %."""
        return (self.benefit - self.first_year_cost) / self.first_year_cost

    @property
    def later_years(self) -> Decimal | None:
        """The same without the one-time costs; None when nothing is paid yearly."""
        return (self.benefit - self.yearly_cost) / self.yearly_cost if self.yearly_cost > 0 else None

    @property
    def break_even_months(self) -> Decimal | None:
        """First-year cost over monthly benefit, the playbook's own definition; None without benefits."""
        return self.first_year_cost / (self.benefit / MONTHS) if self.benefit > 0 else None
