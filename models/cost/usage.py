"""What requests really used (tokens, image sizes), kept so small that it goes into a report, and priced at a vendor.

Requests with the same images are one group with summed tokens.  A price is linear in tokens as long as the tier is the
same, so the price of a group is exact to the last digit; requests that are long enough to reach a long-context tier
are kept apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field

from models.image_tokens import image_tokens
from models.prices import PriceRow, Usage

# Below this, no request can reach a long-context tier (the lowest starts at 100k), image tokens included.
LONG_TEXT = 50_000
MANY_IMAGES = 8

Size = tuple[int, int]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class UsageGroup(_Strict):
    """Requests with the same images; tokens are sums over them.  Text tokens do not include image tokens."""

    images: tuple[Size, ...] = Field(default=(), description="(width, height) of each image of one request, px")
    requests: int = Field(ge=1)
    text_tokens: int = Field(ge=0)
    output_tokens: int = Field(ge=0)


class MeasuredUsage(_Strict):
    """What a number of requests used."""

    groups: tuple[UsageGroup, ...] = Field(min_length=1)

    @property
    def requests(self) -> int:
        """How many requests."""
        return sum(g.requests for g in self.groups)

    @property
    def text_tokens(self) -> int:
        """Text tokens of all."""
        return sum(g.text_tokens for g in self.groups)

    @property
    def output_tokens(self) -> int:
        """Output tokens of all."""
        return sum(g.output_tokens for g in self.groups)

    def with_output(self, factor: Decimal) -> MeasuredUsage:
        """Return the same with outputs longer (or shorter) by `factor`, in whole tokens per group."""
        groups = (g.model_copy(update={"output_tokens": int(g.output_tokens * factor)}) for g in self.groups)
        return MeasuredUsage(groups=tuple(groups))


def group_usage(rows: Iterable[tuple[tuple[Size, ...], int, int]]) -> MeasuredUsage:
    """Return (images, text tokens, output tokens) of single requests as groups, largest group first."""
    sums: dict[tuple[tuple[Size, ...], int], list[int]] = {}
    for images, text, output in rows:
        apart = text if text > LONG_TEXT or len(images) > MANY_IMAGES else -1
        one = sums.setdefault((images, apart), [0, 0, 0])
        one[0] += 1
        one[1] += text
        one[2] += output
    groups = [
        UsageGroup(images=images, requests=n, text_tokens=text, output_tokens=output)
        for (images, _), (n, text, output) in sums.items()
    ]
    return MeasuredUsage(groups=tuple(sorted(groups, key=lambda g: -g.requests)))


@lru_cache(maxsize=65536)
def image_tokens_of(model: str, images: tuple[Size, ...]) -> int:
    """Return the tokens that the images of one request take at `model` (its documented rule, detail high)."""
    return sum(image_tokens(model, width, height).tokens for width, height in images)


def image_tokens_per_query(model: str, usage: MeasuredUsage) -> Decimal:
    """Return the mean image tokens of a request at `model`.  Raises UsageError: no rule for it, or for a size."""
    tokens = sum(g.requests * image_tokens_of(model, g.images) for g in usage.groups)
    return Decimal(tokens) / usage.requests


def vendor_usd(
    row: PriceRow,
    images: tuple[Size, ...],
    text_tokens: int,
    output_tokens: int,
    *,
    requests: int = 1,
    cached: Decimal = Decimal(0),
    batch: Decimal = Decimal(0),
) -> Decimal:
    """Return what `requests` requests with these images, and these tokens in all, cost at a vendor.

    Args:
        cached: share of the input that is read from the vendor's cache.
        batch: share of the requests that go through its batch API.

    Raises:
        UsageError: no image-token rule for the model, or the price row lacks a tier that is needed.
    """
    tokens = requests * image_tokens_of(row.model, images) + text_tokens
    usage = Usage(tokens, output_tokens, int(tokens * cached))
    price = row.cost(usage, requests=requests).total
    if not batch:
        return price
    return price * (1 - batch) + row.cost(usage, batch=True, requests=requests).total * batch


def vendor_usd_of(
    row: PriceRow, usage: MeasuredUsage, *, cached: Decimal = Decimal(0), batch: Decimal = Decimal(0)
) -> Decimal:
    """Return what all these requests cost at a vendor, in dollars; errors as `vendor_usd`."""
    return sum(
        (
            vendor_usd(row, g.images, g.text_tokens, g.output_tokens, requests=g.requests, cached=cached, batch=batch)
            for g in usage.groups
        ),
        Decimal(0),
    )
