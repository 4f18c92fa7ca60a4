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
from distill.collect.buy_batches import buy_in_batches
from distill.collect.journal import Journal
from distill.collect.spend import LedgerLimit, Purchase, buying
from distill.collect.teacher import OpenTeacher
from distill.collect.volume import buy_in_volume
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

    def about(self) -> dict[str, Any]:
        """Return what the journal says of the question."""
        return {
            "row": self.row,
            "purpose": self.purpose,
            "teacher": self.teacher.settings.name,
            "vendor": self.teacher.vendor,
            "prompt_sha256": self.prompt_sha256,
            "sample": self.sample,
        }

    def ask(self) -> Ask:
        """Return the request, with the picture read from disk."""
        settings, image = self.teacher.settings, self.image
        images = () if image is None else (ImagePart(image.read(), image.media_type, image.width, image.height),)
        return Ask(self.words.text, images, self.words.system, settings.max_tokens, settings.temperature)


def now() -> str:
    """Return the time in UTC, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


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
        error: what ended the buying, raised when nothing is in flight any more.
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
        self.error: FoveaError | None = None
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
        wanted = list(questions)
        # batches first: those that an earlier process handed over hold dollars until they are settled
        for teacher in {q.teacher.settings.name: q.teacher for q in wanted if q.teacher.settings.batch}.values():
            await buy_in_batches(self, teacher, self._missing([q for q in wanted if q.teacher is teacher]))
        for teacher in {q.teacher.settings.name: q.teacher for q in wanted if q.teacher.settings.volume}.values():
            if not self.stopped and not self.error:
                await buy_in_volume(self, teacher, self._missing([q for q in wanted if q.teacher is teacher]))
        direct = [q for q in wanted if not q.teacher.settings.batch and not q.teacher.settings.volume]
        await self._buy_directly(self._missing(direct))
        if self.error is not None:
            raise self.error

    def _missing(self, questions: Iterable[Question]) -> list[Question]:
        """Return the questions without an answer in the journal, each key once."""
        return list({q.key: q for q in questions if q.key not in self.journal.answers}.values())

    async def _buy_directly(self, questions: Iterable[Question]) -> None:
        tasks: set[asyncio.Task[None]] = set()
        try:
            for one in questions:
                await one.teacher.slots.acquire()
                if self.stopped or self.error:
                    break
                task = asyncio.create_task(self._one(one))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if tasks:
                await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # only after an error of our own: answers in flight cannot be kept then
                task.cancel()

    async def _one(self, one: Question) -> None:
        try:
            await self._purchase(one)
        except FoveaError as error:
            self.error = self.error or error
        finally:
            one.teacher.slots.release()
            self._settled.set()

    async def _purchase(self, one: Question) -> None:
        ask = one.ask()
        while not self.stopped and not self.error:
            await one.teacher.keep_pace(ask)
            if self.stopped or self.error:
                return
            purchase = Purchase(one.key)
            buying.set(purchase)
            self._settled.clear()
            try:
                reply = await one.teacher.provider.ask(ask)
            except SpendLimitReached:
                if purchase.usd:  # an attempt may have been billed, and another could pass the limit
                    self.failed(one.about(), one.teacher, purchase, "no dollars left for another attempt")
                elif self.spend.in_flight:
                    await self._settled.wait()  # what is in flight may cost less than it reserved
                    continue
                self.stopped = self.stopped or STOPPED_BUDGET
                return
            except ProviderError as error:
                self.failed(one.about(), one.teacher, purchase, error)
                if isinstance(error, UsageError):
                    raise
                return
            self.keep(one.about(), one.teacher, purchase, reply)
            return

    def keep(self, about: dict[str, Any], teacher: OpenTeacher, purchase: Purchase, reply: Reply) -> None:
        """Write an answer into the journal, and look whether it can be used.  `about`: of `Question.about`."""
        record = about | {
            "at": now(),
            "model": reply.model,
            "text": reply.text,
            "finish_reason": reply.finish_reason,
            "usage": None if reply.usage is None else [reply.usage.input_tokens, reply.usage.output_tokens,
                                                       reply.usage.cached_tokens],
            "price": teacher.price,
            "licence": teacher.settings.licence.model_dump(),
            "latency_ms": round(reply.latency_ms, 1),
            "attempts": reply.attempts,
        }  # fmt: skip
        self.journal.answer(purchase.key, purchase.usd, record)
        self.bought += 1
        if reply.cost is not None and reply.cost.total > purchase.at_most:
            self.dearer += 1
        self._judge(teacher, about, parse_reply(reply.text, reply.finish_reason, self.reply, self.answer_schema))

    def failed(self, about: dict[str, Any], teacher: OpenTeacher, purchase: Purchase, error: FoveaError | str) -> None:
        """Write into the journal that no answer came, and what it cost all the same."""
        told = {
            "type": type(error).__name__,
            "message": error if isinstance(error, str) else error.message,
            "status": getattr(error, "status", None),
        }
        self.journal.failed(purchase.key, purchase.usd, about | {"at": now(), "error": told})
        self._judge(teacher, about, Said(problem="failed", detail=str(error)))

    def _judge(self, teacher: OpenTeacher, about: dict[str, Any], said: Said) -> None:
        """Count unusable answers; stop before more is paid for answers that nobody can use."""
        # without the picture "I cannot see it" is a fine answer; anywhere else it is money for nothing
        fine = said.problem is None or (about["purpose"] == "blind" and said.problem != "failed")
        teacher.poor = 0 if fine else teacher.poor + 1
        self._said(self)
        if teacher.poor >= self._give_up and self.error is None:
            self.error = CheckFailed(
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
