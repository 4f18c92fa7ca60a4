"""What the vendors would have charged for the same queries, by their image-token rules and the price book."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from models.image_tokens import image_tokens
from models.prices import PriceBook, PriceRow, Usage, load_prices
from models.support.errors import UsageError

NOTE = "priced, not measured"


@dataclass(frozen=True)
class QueryShape:
    """What decides the price of a query: `images` pictures of width x height px, and its text and output tokens.

    Text tokens are those of the tokenizer that counted them; another vendor's may differ by a third either way.
    """

    width: int
    height: int
    images: int
    text_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        for name in ("width", "height", "images", "text_tokens", "output_tokens"):
            value = getattr(self, name)
            lowest = 1 if name in ("width", "height") and self.images else 0
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise UsageError(f"must be a whole number, {lowest} or more", field=name, value=value)


def query_cost(shape: QueryShape, row: PriceRow, *, batch: bool = False, detail: str = "high") -> Decimal:
    """Return the dollars of one query of this shape.  Raises UsageError as `image_tokens` and `PriceRow.cost` do."""
    tokens = image_token_count(shape, row.model, detail) + shape.text_tokens
    return row.cost(Usage(tokens, shape.output_tokens), batch=batch).total


def image_token_count(shape: QueryShape, model: str, detail: str = "high") -> int:
    """Return the tokens of all images of one query."""
    if not shape.images:
        return 0
    return shape.images * image_tokens(model, shape.width, shape.height, detail).tokens


def vendor_baselines(
    queries: Sequence[QueryShape] | QueryShape,
    on: dt.date | None = None,
    book: PriceBook | None = None,
    *,
    set: str = "list",
) -> list[dict[str, Any]]:
    """Return one row per vendor model: the mean price of these queries there, cheapest first.

    Args:
        queries: the queries as they were sent; equal ones are priced once.
        on: day whose prices count; today when None.
        book: the price book; the shipped one when None.
        set: row set of the book.

    Returns:
        dicts with `vendor`, `model`, `usd_per_query` (Decimal, the mean), `image_tokens` (mean per query, rounded to a
        whole token), `effective_from` (ISO date), `source`, `stale` (source read over 90 days ago) and `note`.

    Raises:
        UsageError: no queries, or a model of the book without an image-token rule.
    """
    shapes = [queries] if isinstance(queries, QueryShape) else list(queries)
    if not shapes:
        raise UsageError("no queries to price", field="queries", fix="give at least one")
    counts: dict[QueryShape, int] = {}
    for shape in shapes:
        counts[shape] = counts.get(shape, 0) + 1
    rows = []
    for row in (book or load_prices()).current(on=on, set=set):
        dollars = sum((query_cost(shape, row) * n for shape, n in counts.items()), Decimal(0))
        tokens = sum(image_token_count(shape, row.model) * n for shape, n in counts.items())
        rows.append(
            {
                "vendor": row.vendor,
                "model": row.model,
                "usd_per_query": dollars / len(shapes),
                "image_tokens": round(Fraction(tokens, len(shapes))),
                "effective_from": row.effective_from.isoformat(),
                "source": row.source,
                "stale": row.is_stale(),
                "note": NOTE,
            }
        )
    return sorted(rows, key=lambda r: r["usd_per_query"])
