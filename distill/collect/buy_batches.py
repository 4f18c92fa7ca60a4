"""Buy through a batch API: what fits into the dollars is handed over, and its id is on disk before anyone waits for it.

A batch belongs to the journal, not to the process: after a kill the next process waits for the same batch, and its
reservations stay reserved.  Only a kill between the vendor's taking a batch and its id reaching the disk leaves
reservations without a batch: they count in full.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from distill.collect.spend import Purchase
from models.providers import Ask, ProviderError, Reply
from models.providers.base import Parsed

if TYPE_CHECKING:
    from distill.collect.batches import Batches
    from distill.collect.buy import Buyer, Question
    from distill.collect.teacher import OpenTeacher

# Below the vendors' limits on one batch (OpenAI 200 MB, Anthropic 256 MB, Gemini in line 20 MB), base64 included
MAX_BYTES = 14 * 2**20


async def buy_in_batches(buyer: Buyer, teacher: OpenTeacher, questions: Sequence[Question]) -> None:
    """Buy what the journal lacks, batch by batch; set `buyer.stopped` when the dollars or a signal end it.

    Raises:
        ProviderError: a batch cannot be handed over or asked about, after the teacher's `attempts`.
    """
    for batch, line in list(buyer.journal.batches.items()):
        if line["teacher"] == teacher.settings.name:
            await _finish(buyer, teacher, batch)
    left = [one for one in questions if one.key not in buyer.journal.answers]
    while left and not buyer.stopped and not buyer.error:
        chosen = _choose(buyer, teacher, left)
        if not chosen:  # nothing is in flight, and the next one could pass the limit
            buyer.stopped = "budget"
            return
        await _finish(buyer, teacher, await _submit(buyer, teacher, chosen))
        left = left[len(chosen) :]  # what failed is asked again by the next command, not in a circle


def _choose(buyer: Buyer, teacher: OpenTeacher, left: Sequence[Question]) -> list[tuple[Question, Ask]]:
    """Return the next batch, reserved: as many questions as fit into it and into the dollars."""
    settings = teacher.settings.batch
    assert settings is not None
    chosen: list[tuple[Question, Ask]] = []
    size = 0
    for one in left[: settings.size]:
        ask = one.ask()
        size += sum(len(i.data) for i in ask.images) * 4 // 3 + 4 * len(ask.text)
        at_most = teacher.provider.estimate(ask)
        if (chosen and size > MAX_BYTES) or not buyer.spend.room_for(at_most):
            break
        buyer.journal.reserve(one.key, at_most)
        buyer.spend.reserved += at_most
        chosen.append((one, ask))
    return chosen


async def _submit(buyer: Buyer, teacher: OpenTeacher, chosen: Sequence[tuple[Question, Ask]]) -> str:
    try:
        batch = await _client(teacher).submit([(one.key, ask) for one, ask in chosen])
    except ProviderError as error:
        for one, _ in chosen:
            at_most = buyer.journal.pending_of(one.key)
            buyer.spend.reserved -= at_most
            # whether the vendor took it is not known when the connection broke: then it counts in full
            usd = at_most if error.may_be_billed else Decimal(0)
            buyer.spend.spent += usd
            buyer.failed(one.about(), teacher, Purchase(one.key, usd), error)
        raise
    buyer.journal.batch(batch, teacher.settings.name, {one.key: one.about() for one, _ in chosen})
    return batch


async def _finish(buyer: Buyer, teacher: OpenTeacher, batch: str) -> None:
    """Wait for a batch and keep its answers; on a signal leave it to the next process."""
    client, settings = _client(teacher), teacher.settings.batch
    assert settings is not None
    faults = 0
    while True:
        try:
            if await client.ended(batch):
                results = await client.results(batch)
                break
            faults = 0
        except ProviderError as error:
            faults += 1
            if not error.retryable or faults >= teacher.settings.attempts:
                raise
        if buyer.stopped:
            return
        left = settings.poll_s
        while left > 0 and not buyer.stopped:  # in short naps, so that Ctrl-C is heard
            await teacher.pause(min(1.0, left))
            left -= 1.0
    for key, about in buyer.journal.batches[batch]["asked"].items():
        if buyer.journal.waits_for(key):  # a kill may have come in the middle of this loop
            _settle(buyer, teacher, key, about, results.get(key))
    buyer.journal.batch_end(batch)


def _settle(
    buyer: Buyer, teacher: OpenTeacher, key: str, about: dict[str, Any], found: Parsed | ProviderError | None
) -> None:
    at_most = buyer.journal.pending_of(key)
    buyer.spend.reserved -= at_most
    if not isinstance(found, Parsed):
        error = "the vendor did not get to it in time" if found is None else found
        buyer.failed(about, teacher, Purchase(key), error)
        return
    price = teacher.provider.price
    cost = price.cost(found.usage, batch=True) if price is not None and found.usage is not None else None
    usd = at_most if cost is None else cost.total
    buyer.spend.spent += usd
    model = found.model or teacher.settings.model
    reply = Reply(teacher.vendor, model, found.text, found.usage, cost, 0.0, found.finish_reason)
    buyer.keep(about, teacher, Purchase(key, usd, at_most), reply)


def _client(teacher: OpenTeacher) -> Batches:
    from distill.collect.batches import BATCHES

    provider: Any = teacher.provider
    assert isinstance(provider, tuple(BATCHES.values())), "opened for batches"
    return cast("Batches", provider)
