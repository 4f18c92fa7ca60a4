"""Recovery: the candidate's accuracy over the parent's on the same items, with an interval that small samples respect.

With a = both right, b = only the parent, c = only the candidate, d = neither, recovery is (a + c) / (a + b).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from models.stats import Z95


@dataclass(frozen=True)
class Recovery:
    """A ratio of paired accuracies with its 95 % interval; all None but the counts when the parent is never right."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    lost: int
    won: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, with a note when there is no value."""
        return asdict(self) | ({"note": "the parent has no right answer"} if self.value is None else {})

    def items_for(self, threshold: float) -> int | None:
        """Return about how many items it takes to show `threshold`, if the value stays; None when it lies below.

        The interval's width goes with one over the square root of the items.
        """
        if self.value is None or self.low is None or self.value <= threshold:
            return None
        return math.ceil(self.n * ((self.value - self.low) / (self.value - threshold)) ** 2)


def recovery(parent: Sequence[bool], candidate: Sequence[bool], z: float = Z95) -> Recovery:
    """Return the recovery of `candidate` (right or wrong by item) over `parent`, the same items in the same order.

    The interval is that of the log ratio of paired proportions, variance (b + c) / ((a + b) (a + c)) (Nam and
    Blackwelder, Statistics in Medicine 21, 2002), with one half added to each of the four counts (as Agresti and Min,
    Statistics in Medicine 24, 2005, do for paired differences): a sample in which nothing changed is not taken for
    proof that nothing changes.  `value` is the plain ratio.

    Raises:
        ValueError: the lengths differ.
    """
    if len(parent) != len(candidate):
        raise ValueError("parent and candidate must have one length")
    both = sum(1 for x, y in zip(parent, candidate, strict=True) if x and y)
    lost = sum(1 for x, y in zip(parent, candidate, strict=True) if x and not y)
    won = sum(1 for x, y in zip(parent, candidate, strict=True) if y and not x)
    n = len(parent)
    if both + lost == 0:
        return Recovery(None, None, None, n, lost, won)
    a, b, c = both + 0.5, lost + 0.5, won + 0.5
    center = math.log((a + c) / (a + b))
    half = z * math.sqrt((b + c) / ((a + b) * (a + c)))
    value = (both + won) / (both + lost)
    low, high = math.exp(center - half), math.exp(center + half)
    return Recovery(value, min(low, value), max(high, value), n, lost, won)


def shown(found: Mapping[str, Any]) -> str:
    """Return a reported recovery as `0.9993 (0.9975 to 1.0012)`."""
    if found["value"] is None:
        return "no value"
    return f"{found['value']:.4f} ({found['low']:.4f} to {found['high']:.4f})"
