"""Dollars of the requests that this replica answered, as Prometheus series: the ledger of `models.cost`, live.

    fovea_usd_total{model, tenant}                        what the answers cost here
    fovea_cache_saved_usd_total{model, tenant}            what answers from a cache would have cost
    fovea_vendor_usd_avoided_total{model, tenant, vendor_model}   what a vendor would have charged
    fovea_priced_answers_total{model, tenant}             answers that were priced, those from a cache too
    fovea_money_tokens_total{model, tenant, kind}         tokens in and out that were priced
    fovea_unpriced_answers_total{model}                   answers without usage (in no sum), or with images whose tokens
                                                          are not known (in no vendor's sum)
    fovea_journal_lost_total{model}                       answers that the journal could not take (disk full or gone)

The sums are exact decimals; only the exposition turns them into floats.  A tenant is what the layer `identify` found,
never what a client wrote.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily

from models.cost.journal import Journal
from models.cost.ledger import Finished, Ledger, Tariff
from models.support.errors import UsageError

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from serving.exchange import Exchange


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def usage_in(body: Any) -> tuple[int, int] | None:
    """Return (prompt tokens, completion tokens) of an answer or of a stream's event, None where it has none.

    Knows the forms of chat completions, completions and embeddings (`usage.prompt_tokens`), of responses
    (`response.usage.input_tokens` in streams) and of messages (`message.usage` at the start, `usage` at the end).
    """
    if not isinstance(body, dict):
        return None
    for holder in (body, body.get("response"), body.get("message")):
        usage = holder.get("usage") if isinstance(holder, dict) else None
        if isinstance(usage, dict):
            prompt = usage.get("prompt_tokens", usage.get("input_tokens"))
            completion = usage.get("completion_tokens", usage.get("output_tokens"))
            if isinstance(prompt, int) or isinstance(completion, int):
                return (prompt or 0, completion or 0)
    return None


class Money:
    """Counts the answers of one model and shows the sums to Prometheus; writes the journal when the stack has one.

    Args:
        tariff: the stack's `money` section.
        model: the model's name in the stack.
        registry: where the series appear; None: nowhere.
        clock: what time it is, in UTC.
    """

    def __init__(
        self,
        tariff: Tariff,
        model: str,
        registry: CollectorRegistry | None = REGISTRY,
        clock: Callable[[], dt.datetime] = _now,
    ):
        self.model, self.each, self.clock = model, tariff.usd_per_request, clock
        self.ledger, self.unpriced = Ledger(tariff.against, tariff.book()), 0
        self.journal = Journal(Path(tariff.journal)) if tariff.journal is not None else None
        if registry is not None:
            registry.register(self)

    def finished(self, exchange: Exchange, usage: tuple[int, int] | None, image_tokens: int | None = None) -> None:
        """Count one answered request.

        Args:
            exchange: the request, its pictures screened.
            usage: the engine's own count of prompt and completion tokens; None: it told none.
            image_tokens: prompt tokens that the images took; None: nobody knows.
        """
        at = self.clock()
        one = Finished(
            tenant=exchange.tenant,
            model=exchange.adapter or self.model,
            prompt_tokens=usage[0] if usage else 0,
            completion_tokens=usage[1] if usage else 0,
            image_tokens=image_tokens,
            images=tuple((p.width, p.height) for p in exchange.pictures),
            recalled=bool(exchange.notes.get("recalled")),
        )
        if usage is not None:
            try:
                self.ledger.add(one, self.each, at.date())
            except UsageError:  # a vendor's rule refuses such an image: no vendor's price, but our own
                one = replace(one, image_tokens=None)
                self.ledger.add(one, self.each, at.date())
        self.unpriced += usage is None or one.image_tokens is None
        if self.journal is not None:
            self.journal.add(one, self.each, at, exchange.request_id, counted=usage is not None)

    def collect(self) -> Iterable[Metric]:
        """Return the series (Prometheus calls this)."""
        who = ["model", "tenant"]
        own = CounterMetricFamily("fovea_usd", "Dollars that answers cost here.", labels=who)
        saved = CounterMetricFamily("fovea_cache_saved_usd", "Dollars that answers from a cache saved.", labels=who)
        vendor = CounterMetricFamily(
            "fovea_vendor_usd_avoided",
            "Dollars that a vendor would have charged (priced, not measured).",
            labels=[*who, "vendor_model"],
        )
        answers = CounterMetricFamily("fovea_priced_answers", "Answers that were priced.", labels=who)
        tokens = CounterMetricFamily("fovea_money_tokens", "Tokens of priced answers.", labels=[*who, "kind"])
        for (tenant, model), one in self.ledger.accounts.items():
            own.add_metric([model, tenant], float(one.own_usd))
            saved.add_metric([model, tenant], float(one.cache_saved_usd))
            answers.add_metric([model, tenant], one.requests)
            tokens.add_metric([model, tenant, "prompt"], one.prompt_tokens)
            tokens.add_metric([model, tenant, "completion"], one.completion_tokens)
            for name, usd in one.avoided_usd.items():
                vendor.add_metric([model, tenant, name], float(usd))
        unpriced = CounterMetricFamily("fovea_unpriced_answers", "Answers that lack a price.", labels=["model"])
        unpriced.add_metric([self.model], self.unpriced)
        lost = CounterMetricFamily("fovea_journal_lost", "Answers that the journal could not take.", labels=["model"])
        lost.add_metric([self.model], self.journal.lost if self.journal is not None else 0)
        return [own, saved, vendor, answers, tokens, unpriced, lost]

    @property
    def usd(self) -> Decimal:
        """Dollars that all answers cost here, exact."""
        return sum((one.own_usd for one in self.ledger.accounts.values()), Decimal(0))
