"""The bill: what answered requests cost, by tenant and model; the live metrics' own ledger, fed from the journal."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from typing import Any

from models.cost.journal import Line
from models.cost.ledger import Ledger, total
from models.prices import PriceBook
from models.support.errors import UsageError


def bill(
    lines: Iterable[Line],
    against: Sequence[str],
    book: PriceBook,
    *,
    first: dt.date | None = None,
    last: dt.date | None = None,
    tenant: str | None = None,
) -> dict[str, Any]:
    """Return the bill of a journal's lines, JSON-ready.

    Own dollars are those that stand in the lines; a vendor's are by its image-token rule and the price in force on the
    day of each request.  Every total is rounded to cents once, from its exact sum: it may differ by a cent or two from
    the sum of the rounded lines.

    Args:
        against: vendor models whose bill was avoided.
        first, last: UTC days, both included; None: no limit.
        tenant: this one's requests only.

    Returns:
        `currency`, `first` and `last` (days that are in it), `lines` per tenant and model and `days` per UTC day, each
        with `requests`, tokens and dollars in whole cents, `total`, `unpriced` (answers without usage, in no sum),
        `images_unknown` (in no vendor's sum).

    Raises:
        UsageError: a vendor model has no price on a day, a period that ends before it begins, or no line is in it.
    """
    if first is not None and last is not None and last < first:
        raise UsageError("ends before it begins", field="to", value=str(last), fix=f"give a day from {first} on")
    ledger = Ledger(against, book)
    days: dict[dt.date, Ledger] = {}
    seen: list[dt.date] = []
    unpriced = unknown = 0
    for line in lines:
        day = line.day
        wanted = (first is None or day >= first) and (last is None or day <= last)
        if not wanted or (tenant is not None and line.tenant != tenant):
            continue
        seen = [min(seen[0], day), max(seen[1], day)] if seen else [day, day]
        one = line.finished
        if one is None:
            unpriced += 1
            continue
        unknown += one.image_tokens is None
        ledger.add(one, line.usd, day)
        if day not in days:
            days[day] = Ledger(against, book)
        days[day].add(one, line.usd, day)
    if not seen:
        fix = "name another period, tenant or journal"
        raise UsageError("no answered request in it", field="JOURNAL", value=tenant, fix=fix)
    return {
        "currency": "USD",
        "first": seen[0].isoformat(),
        "last": seen[1].isoformat(),
        "lines": [
            {"tenant": who, "model": model, **account.as_dict()}
            for (who, model), account in sorted(ledger.accounts.items())
        ],
        "days": [{"day": day.isoformat(), **total(days[day].accounts).as_dict()} for day in sorted(days)],
        "total": total(ledger.accounts).as_dict(),
        "unpriced": unpriced,
        "images_unknown": unknown,
        "vendors": [_price_of(model, book, seen[1]) for model in against],
    }


def _price_of(model: str, book: PriceBook, day: dt.date) -> dict[str, Any]:
    """The price row that stands behind a column of the bill, as of its last day."""
    row = book.find(model, on=day)
    return {
        "model": model,
        "vendor": row.vendor,
        "effective_from": row.effective_from.isoformat(),
        "read": row.read.isoformat(),
        "source": row.source,
        "stale": row.is_stale(),
        "note": "priced, not measured",
    }
