"""What the vendors would have charged for the same queries, by their image-token rules and the price book."""

from __future__ import annotations

import datetime as dt
from typing import Any

from models.cost.usage import MeasuredUsage, UsageGroup, image_tokens_per_query, vendor_usd_of
from models.image_tokens import find_model, image_tokens
from models.prices import PriceBook, load_prices
from models.support.errors import UsageError

NOTE = "priced, not measured"


def one_query(width: int, height: int, images: int, text_tokens: int, output_tokens: int) -> MeasuredUsage:
    """Return the usage of a single query with `images` pictures of width x height px.

    Text tokens are those of the tokenizer that counted them; another vendor's may differ by a third either way.

    Raises:
        UsageError: a number is negative, or an image has no size.
    """
    given = {"width": width, "height": height, "images": images, "text": text_tokens, "output": output_tokens}
    for name, value in given.items():
        lowest = 1 if name in ("width", "height") and images else 0
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise UsageError(f"must be a whole number, {lowest} or more", field=name, value=value)
    group = UsageGroup(
        images=((width, height),) * images, requests=1, text_tokens=text_tokens, output_tokens=output_tokens
    )
    return MeasuredUsage(groups=(group,))


def uncounted(usage: MeasuredUsage, book: PriceBook, *, set: str = "list") -> list[str]:
    """Return the book's models that cannot be priced: queries have images, and no rule says what they take there.

    `fovea models image-tokens --list` shows the models that have a rule.
    """
    if not any(group.images for group in usage.groups):
        return []
    return [row.model for row in book.current(set=set) if rule_of(row.model) is None]


def rule_of(model: str) -> str | None:
    """Return the name of a model's image-token rule, None when it has none."""
    try:
        return image_tokens(find_model(model), 64, 64).rule
    except UsageError:
        return None


def vendor_baselines(
    usage: MeasuredUsage, on: dt.date | None = None, book: PriceBook | None = None, *, set: str = "list"
) -> list[dict[str, Any]]:
    """Return one row per vendor model that can be priced (`uncounted`): the mean price of a query, cheapest first.

    Args:
        usage: the queries as they were sent, or the typical one (`one_query`).
        on: day whose prices count; today when None.
        book: the price book; the shipped one when None.
        set: row set of the book.

    Returns:
        dicts with `vendor`, `model`, `usd_per_query` (Decimal), `image_tokens` (mean per query, decimal text),
        `image_rule` (None for a model without one), `effective_from` and `read` (ISO dates), `source`, `stale` (source
        read over 90 days ago) and `note`.

    Raises:
        UsageError: a vendor's rule refuses the size of an image.
    """
    prices = book or load_prices()
    left_out = uncounted(usage, prices, set=set)
    rows = [
        {
            "vendor": row.vendor,
            "model": row.model,
            "usd_per_query": vendor_usd_of(row, usage) / usage.requests,
            "image_tokens": f"{image_tokens_per_query(row.model, usage):.6g}",
            "image_rule": rule_of(row.model),
            "effective_from": row.effective_from.isoformat(),
            "read": row.read.isoformat(),
            "source": row.source,
            "stale": row.is_stale(),
            "note": NOTE,
        }
        for row in prices.current(on=on, set=set)
        if row.model not in left_out
    ]
    return sorted(rows, key=lambda r: (r["usd_per_query"], r["model"]))
