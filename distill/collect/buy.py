"""Buy answers: each once, in order, within the rate limits and the dollars, and each on disk before the next step."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from distill.answers import Said, parse_reply
from distill.collect.journal import Journal
from distill.collect.spend import LedgerLimit, Purchase, buying
from distill.collect.teacher import OpenTeacher
from distill.prompts import Words
from models.golden import ImageRef
from models.providers import Ask, ImagePart, ProviderError, Reply, SpendLimitReached
from models.support.errors import CheckFailed, FoveaError, UsageError

STOPPED_BUDGET, STOPPED_SIGNAL = "budget", "interrupted"


@dataclass(frozen=True)
class Question:
    """One answer to buy: for which row, from whom, in which words; `purpose` is `label`, `judge` or `blind`."""

    key: str
    row: str
    teacher: OpenTeacher
    words: Words
    image: ImageRef | None
    sample: int
    purpose: str

    @property
    def prompt_sha256(self) -> str:
        return prompt_digest(self.words)

    def ask(self) -> Ask:
        """Return the request, with the picture read from disk."""
        settings, image = self.teacher.settings, self.image
        images = () if image is None else (ImagePart(image.read(), image.media_type, image.width, image.height),)
        return Ask(self.words.text, images, self.words.system, settings.max_tokens, settings.temperature)


def prompt_digest(words: Words) -> str:
    """Return the sha256 of what is said, system prompt included."""
    return hashlib.sha256(json.dumps([words.system, words.text]).encode()).hexdigest()


def question(
    row: str, teacher: OpenTeacher, words: Words, image: ImageRef | None, sample: int, purpose: str
) -> Question:
    """Return the question with its key: the digest of all that can change the answer, and of nothing else.

    Two rows with the same words and the same picture share one answer; a change of address, price or rate limit buys
    nothing anew.
    """
    s = teacher.settings
    parts = [
        teacher.vendor, s.model, words.system, words.text, None if image is None else image.digest,
        s.max_tokens, s.temperature, sample,
    ]  # fmt: skip
    return Question(hashlib.sha256(json.dumps(parts).encode()).hexdigest(), row, teacher, words, image, sample, purpose)


class Buyer:
    """Buys questions that the journal does not answer yet.

    Attributes:
        stopped: why it stopped before the end (`budget`, `interrupted`), or None.
        reply, answer_schema: how replies are read (`parse_reply`); set anew for other questions.
        known: answers wanted that were there before (set by the caller, for progress).
        bought: answers that came in this process.
        dearer: answers that cost more than their estimate.
    """

    def __init__(
        self,
        journal: Journal,
        spend: LedgerLimit,
        *,
        reply: str,
        answer_schema: dict[str, Any],
        give_up_after: int,
        said: Callable[[Buyer], None] = lambda buyer: None,
    ):
        self.journal, self.spend = journal, spend
        self.reply, self.answer_schema, self._give_up = reply, answer_schema, give_up_after
        self._said = said
        self.stopped: str | None = None
        self.known = self.bought = self.dearer = 0
        self._error: FoveaError | None = None
        self._settled = asyncio.Event()

    def stop(self) -> None:
        """Ask no more; what is in flight is waited for and kept."""
        self.stopped = self.stopped or STOPPED_SIGNAL

    async def buy(self, questions: Iterable[Question]) -> None:
        """Buy what is missing, in order; return when all is there or something stopped it (see `stopped`).

        Raises:
            CheckFailed: a teacher gave only unusable answers for `give_up_after` in a row.
            UsageError: key refused, unknown model, full disk.  In every case what was answered is in the journal.
        """
        asked: set[str] = set()
        tasks: set[asyncio.Task[None]] = set()
        try:
            for one in questions:
                if self.stopped or self._error:
                    break
                if one.key in self.journal.answers or one.key in asked:
                    continue
                asked.add(one.key)
                await one.teacher.slots.acquire()
                task = asyncio.create_task(self._one(one))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if tasks:
                await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # only after an error of our own: answers in flight cannot be kept then
                task.cancel()
        if self._error is not None:
            raise self._error

    async def _one(self, one: Question) -> None:
        try:
            await self._purchase(one)
        except FoveaError as error:
            self._error = self._error or error
        finally:
            one.teacher.slots.release()
            self._settled.set()

    async def _purchase(self, one: Question) -> None:
        ask = one.ask()
        while not self.stopped and not self._error:
            await one.teacher.keep_pace(ask)
            if self.stopped or self._error:
                return
            purchase = Purchase(one.key)
            buying.set(purchase)
            self._settled.clear()
            try:
                reply = await one.teacher.provider.ask(ask)
            except SpendLimitReached:
                if purchase.usd:  # an attempt may have been billed, and another could pass the limit
                    self._failed(one, purchase, "SpendLimitReached", "no dollars left for another attempt", None)
                elif self.spend.reserved:
                    await self._settled.wait()  # what is in flight may cost less than it reserved
                    continue
                self.stopped = self.stopped or STOPPED_BUDGET
                return
            except ProviderError as error:
                self._failed(one, purchase, type(error).__name__, error.message, error.status)
                if isinstance(error, UsageError):
                    raise
                self._judge(one, Said(problem="failed", detail=str(error)))
                return
            self._keep(one, purchase, reply)
            return

    def _keep(self, one: Question, purchase: Purchase, reply: Reply) -> None:
        settings = one.teacher.settings
        record = self._about(one) | {
            "model": reply.model,
            "text": reply.text,
            "finish_reason": reply.finish_reason,
            "usage": None if reply.usage is None else [reply.usage.input_tokens, reply.usage.output_tokens,
                                                       reply.usage.cached_tokens],
            "price": one.teacher.price,
            "licence": settings.licence.model_dump(),
            "latency_ms": round(reply.latency_ms, 1),
            "attempts": reply.attempts,
        }  # fmt: skip
        self.journal.answer(one.key, purchase.usd, record)
        self.bought += 1
        if reply.cost is not None and reply.cost.total > purchase.at_most:
            self.dearer += 1
        self._judge(one, parse_reply(reply.text, reply.finish_reason, self.reply, self.answer_schema))

    def _failed(self, one: Question, purchase: Purchase, kind: str, message: str, status: int | None) -> None:
        error = {"type": kind, "message": message, "status": status}
        self.journal.failed(one.key, purchase.usd, self._about(one) | {"error": error})

    def _about(self, one: Question) -> dict[str, Any]:
        return {
            "row": one.row,
            "purpose": one.purpose,
            "teacher": one.teacher.settings.name,
            "vendor": one.teacher.vendor,
            "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            "prompt_sha256": one.prompt_sha256,
            "sample": one.sample,
        }

    def _judge(self, one: Question, said: Said) -> None:
        """Count unusable answers; stop before more is paid for answers that nobody can use."""
        teacher = one.teacher
        # without the picture "I cannot see it" is a fine answer; anywhere else it is money for nothing
        fine = said.problem is None or (one.purpose == "blind" and said.problem != "failed")
        teacher.poor = 0 if fine else teacher.poor + 1
        self._said(self)
        if teacher.poor >= self._give_up and self._error is None:
            self._error = CheckFailed(
                f"{teacher.poor} answers in a row are unusable; the last: {said.problem}: {said.detail or ''}"[:400],
                field=f"teacher {teacher.settings.name}",
                fix=f"{_FIXES.get(said.problem or '', 'look at its answers in the journal')}; "
                f"${self.spend.spent:f} are spent, and every answer is kept",
            )


_FIXES = {
    "prose": "tell it in prompts.system to reply with JSON only, or set prompts.reply to text",
    "no_answer": "tell it in prompts.system to put the answer under the key answer",
    "truncated": "raise its max_tokens",
    "refused": "name another teacher, or reword prompts.user",
    "failed": "check its address and the account",
}


def dollars(amount: Decimal) -> str:
    """Return an amount as people read it: cents, or more digits where it is less than ten cents."""
    return f"${amount:,.2f}" if amount >= Decimal("0.1") or amount == 0 else f"${amount:.6f}".rstrip("0")
