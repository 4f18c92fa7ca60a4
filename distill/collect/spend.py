"""A spend limit that survives the process: reservations go into the journal before a request leaves."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from types import TracebackType

from distill.collect.journal import Journal
from models.providers import ProviderError, SpendLimit


@dataclass
class Purchase:
    """One answer that is being bought: its key, the dollars of all attempts so far, and the most one can cost."""

    key: str
    usd: Decimal = Decimal(0)
    at_most: Decimal = Decimal(0)


buying: ContextVar[Purchase] = ContextVar("buying")
"""The purchase of the running task; set before a provider is asked."""


class LedgerLimit(SpendLimit):
    """`SpendLimit` that begins with what the journal says was spent and writes each reservation into it."""

    def __init__(self, limit_usd: Decimal, journal: Journal):
        super().__init__(limit_usd)
        self.journal = journal
        self.in_flight = 0  # requests of this process that hold a reservation
        self.spent = journal.spent
        self.reserved = journal.pending  # of batches that an earlier process handed over

    def room_for(self, at_most: Decimal) -> bool:
        """Return whether a request that can cost `at_most` fits into what is left."""
        return self.spent + self.reserved + at_most <= self.limit_usd

    def reserve(self, at_most: Decimal) -> SpendLimit.Ticket:
        """Return a ticket for the running purchase.  Raises SpendLimitReached, or UsageError when the disk is full."""
        self._check(at_most)
        purchase = buying.get()
        self.journal.reserve(purchase.key, at_most)
        purchase.at_most = at_most
        self.reserved += at_most
        self.in_flight += 1
        return _Ticket(self, at_most, purchase)


class _Ticket(SpendLimit.Ticket):
    """Tells the purchase what each attempt cost."""

    def __init__(self, ledger: LedgerLimit, amount: Decimal, purchase: Purchase):
        super().__init__(ledger, amount)
        self._ledger, self._at_most, self._purchase = ledger, amount, purchase

    def lost(self, error: ProviderError) -> None:
        before = self._ledger.spent
        try:
            super().lost(error)
        finally:
            self._purchase.usd += self._ledger.spent - before
        if error.may_be_billed:
            self._ledger.journal.reserve(self._purchase.key, self._at_most)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before = self._ledger.spent
        self._ledger.in_flight -= 1
        super().__exit__(kind, error, trace)
        self._purchase.usd += self._ledger.spent - before
