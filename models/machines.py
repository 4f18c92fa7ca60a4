"""What a GPU or a machine costs per hour (`machines.yaml`), read and overridden like the price book."""

from __future__ import annotations

import datetime as dt
import difflib
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from models.prices import STALE_AFTER_DAYS, parse_money, read_rows
from models.support.errors import UsageError

BOOK = Path(__file__).with_name("machines.yaml")
ABSURD_PER_HOUR = Decimal(1_000)

Kind = Literal["on_demand", "reserved", "spot", "serverless_flex", "serverless_active"]


def _parse_rate(value: object) -> Decimal:
    amount = parse_money(value)
    if amount > ABSURD_PER_HOUR:
        raise ValueError(f"is above ${ABSURD_PER_HOUR:,} an hour for one machine")
    return amount


Rate = Annotated[Decimal, BeforeValidator(_parse_rate)]


class MachineRow(BaseModel):
    """Dollars per hour of one GPU, or of the whole machine when it has none; `high` is the upper end of a range."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: str = Field(min_length=1)
    machine: str = Field(min_length=1)
    kind: Kind
    usd_per_hour: Rate
    high: Rate | None = None
    currency: Literal["USD"] = Field(default="USD", description="convert what is quoted in another one")
    read: dt.date
    source: str = Field(min_length=1)
    confidence: str = "unknown"
    note: str | None = None

    @model_validator(mode="after")
    def _ordered(self) -> MachineRow:
        if self.high is not None and self.high < self.usd_per_hour:
            raise ValueError("high is below usd_per_hour")
        return self

    def is_stale(self, today: dt.date | None = None) -> bool:
        """Whether the source was last read more than 90 days ago."""
        return ((today or dt.date.today()) - self.read).days > STALE_AFTER_DAYS


@dataclass(frozen=True)
class MachineBook:
    """All rows, the user's in the place of the shipped ones of the same provider, machine and kind."""

    rows: tuple[MachineRow, ...]

    def find(self, machine: str, *, provider: str | None = None, kind: Kind | None = None) -> list[MachineRow]:
        """Return the rows of `machine`, cheapest first.

        Raises:
            UsageError: no such row; the closest machine names are offered.
        """
        rows = [
            r
            for r in self.rows
            if r.machine.casefold() == machine.casefold()
            and (provider is None or r.provider == provider)
            and (kind is None or r.kind == kind)
        ]
        if not rows:
            names = list(dict.fromkeys(r.machine for r in self.rows))
            close = difflib.get_close_matches(machine, names, n=3, cutoff=0.4) or names
            raise UsageError(
                "no price for this machine", field="machine", value=machine, fix=f"known: {', '.join(close)}"
            )
        return sorted(rows, key=lambda r: r.usd_per_hour)


def load_machines(override: Path | str | None = None, *, book: Path = BOOK) -> MachineBook:
    """Return the shipped rows with those of `override` in their place.  Raises UsageError as `load_prices` does."""
    shipped = read_rows(book, MachineRow)
    own = read_rows(Path(override), MachineRow) if override is not None else []
    replaced = {(r.provider, r.machine, r.kind) for r in own}
    return MachineBook(tuple([r for r in shipped if (r.provider, r.machine, r.kind) not in replaced] + own))
