"""A spend limit that holds with many requests in flight: each reserves the most it can cost before it is sent."""

from __future__ import annotations

from decimal import Decimal
from types import TracebackType

from models.prices import TokenCost
from models.providers.errors import ProviderError, SpendLimitReached
from models.support.errors import UsageError


class SpendLimit:
    """Dollars that a run may spend, shared by its providers (one event loop; no locks are needed).

    `spent` is what the replies cost; `reserved` is what the requests in flight can cost at most.  A request is refused
    when spent + reserved + its own maximum passes the limit, so the limit is never passed.
    """

    class Ticket:
        """The reservation of one question; leaving the block turns it into what was spent."""

        def __init__(self, owner: SpendLimit | None, amount: Decimal):
            self._owner, self._amount, self._actual = owner, amount, Decimal(0)

        def settle(self, cost: TokenCost | None) -> None:
            """Say what the answer cost; an unknown cost counts as the whole reservation."""
            self._actual = self._amount if cost is None else cost.total

        def lost(self, error: ProviderError) -> None:
            """Before a retry: count an attempt that may have been billed as fully spent, and reserve anew.

            Raises:
                SpendLimitReached: the retry could pass the limit.
            """
            if self._owner is None or not error.may_be_billed:
                return
            owner, amount = self._owner, self._amount
            owner.reserved -= amount
            owner.spent += amount
            self._amount = Decimal(0)
            owner._check(amount)
            owner.reserved += amount
            self._amount = amount

        def __enter__(self) -> SpendLimit.Ticket:
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            if self._owner is None:
                return
            self._owner.reserved -= self._amount
            if error is None or self._actual:
                self._owner.spent += self._actual
            elif not isinstance(error, ProviderError) or error.may_be_billed:
                # cancelled, abandoned half way or cut off: the vendor may charge all of it
                self._owner.spent += self._amount

    def __init__(self, limit_usd: Decimal):
        if not limit_usd.is_finite() or limit_usd <= 0:
            raise UsageError("must be a positive amount of dollars", field="max-usd", value=str(limit_usd))
        self.limit_usd = limit_usd
        self.spent = Decimal(0)
        self.reserved = Decimal(0)

    def reserve(self, at_most: Decimal) -> SpendLimit.Ticket:
        """Return a ticket for a request that can cost `at_most`.

        Raises:
            SpendLimitReached: it could pass the limit.
        """
        self._check(at_most)
        self.reserved += at_most
        return SpendLimit.Ticket(self, at_most)

    def _check(self, at_most: Decimal) -> None:
        if self.spent + self.reserved + at_most > self.limit_usd:
            raise SpendLimitReached(
                f"the next request could cost ${at_most:f}: ${self.spent:f} are spent and ${self.reserved:f} in flight",
                field="max-usd",
                value=f"{self.limit_usd:f}",
                fix="what was answered is kept; raise the limit to go on",
            )
