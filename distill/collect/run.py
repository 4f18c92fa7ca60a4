"""The collect step: from rows to labelled rows."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

from distill.collect.buy import STOPPED_SIGNAL, Buyer, Question, dollars, question
from distill.collect.journal import Journal
from distill.collect.probes import PROBES, Labels
from distill.collect.report import Shop, collect_report
from distill.collect.rounds import Curve
from distill.collect.spend import LedgerLimit
from distill.collect.teacher import OpenTeacher, open_teacher
from distill.labels import Labelled, choose, given, write_labels
from distill.rows import Row
from distill.work import Work
from models.support.errors import CheckFailed, UsageError
from models.support.files import write_json
from models.support.progress import Progress

Pause = Callable[[float], Any]


@contextlib.asynccontextmanager
async def open_shop(
    work: Work, *, total: int = 0, label: str = "collect", pause: Pause = asyncio.sleep, with_teachers: bool = True
) -> AsyncIterator[Shop]:
    """Yield a `Shop`, without the recipe's teachers (and their keys) where they are not asked.

    SIGINT and SIGTERM stop the buying; what is in flight is waited for.
    """
    recipe = work.recipe
    with Journal(work.journal_path) as journal, Progress(total or None, label, "answers") as progress:
        spend = LedgerLimit(recipe.budget.max_usd, journal)

        def said(buyer: Buyer) -> None:
            progress.update(buyer.known + buyer.bought, f"{dollars(spend.spent)} of {dollars(spend.limit_usd)}")

        buyer = Buyer(
            journal,
            spend,
            reply=recipe.prompts.reply,
            answer_schema=recipe.task.answer_schema,
            give_up_after=recipe.budget.give_up_after,
            said=said,
        )
        teachers: list[OpenTeacher] = []
        loop = asyncio.get_running_loop()
        handled = []
        try:
            for settings in recipe.teachers if with_teachers else []:
                teachers.append(open_teacher(settings, work.book, spend, pause=pause))
            for number in (signal.SIGINT, signal.SIGTERM):
                with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread
                    loop.add_signal_handler(number, buyer.stop)
                    handled.append(number)
            yield Shop(journal, spend, tuple(teachers), buyer)
        finally:
            for number in handled:
                loop.remove_signal_handler(number)
            for teacher in teachers:
                await teacher.provider.close()


def rows_to_ask(work: Work) -> list[Row]:
    """Return the rows that the teachers answer, in order: those for training and validation without a human label.

    `data.audit_human_rows` of those with one come first, so that the teachers' noise is known however soon it ends.
    """
    asked = [r for r in work.usable if r.split != "test" and r.id not in work.human]
    audited = [r for r in work.usable if r.split != "test" and r.id in work.human]
    return audited[: work.recipe.data.audit_human_rows] + asked


def questions_of(work: Work, teachers: Sequence[OpenTeacher], rows: Sequence[Row]) -> Iterator[Question]:
    """Yield every sample of every teacher for one row, then for the next: a budget that ends leaves whole rows."""
    for row in rows:
        words = work.prompts.label(row)
        for teacher in teachers:
            for sample in range(teacher.settings.samples):
                yield question(row.id, teacher, words, work.pictures[row.id], sample, "label")


def labelled(work: Work, journal: Journal, teachers: Sequence[OpenTeacher], rows: Sequence[Row]) -> list[Labelled]:
    """Return the rows that somebody said something about, with all that was said."""
    recipe = work.recipe
    wanted = {row.id for row in rows}
    found = []
    for row in work.usable:
        if row.split == "test":
            continue
        keys = [q.key for q in questions_of(work, teachers, [row])] if row.id in wanted else []
        said = [
            given(journal.answers[key], recipe.prompts.reply, recipe.task.answer_schema)
            for key in keys
            if key in journal.answers
        ]
        failed = [journal.failures[key] for key in keys if key in journal.failures]
        human = [label.model_dump() for label in work.human.get(row.id, [])]
        if said or failed or human:
            picture = work.pictures[row.id]
            found.append(
                Labelled(**row.model_dump(), image_sha256=picture.digest, answers=said, human=human, failed=failed)
            )
    return found


async def collect(work: Work, *, pause: Pause = asyncio.sleep) -> dict[str, Any]:
    """Buy what is missing, write `collect/labels.jsonl` and `collect/report.json`, and return the report.

    Raises:
        CheckFailed: nothing could be bought with the budget, or a teacher gives unusable answers only.
        UsageError: key, model, price or disk.  In every case the answers that came are in the journal.
        KeyboardInterrupt: stopped by a signal, after the answers in flight were kept and the files written.
    """
    rows = rows_to_ask(work)
    if not rows and not work.human:
        raise UsageError("there is no row to label: all are test rows", field="data.rows", value=str(work.rows.file))
    total = len(rows) * sum(t.samples for t in work.recipe.teachers)
    curve: Curve | None = None
    async with open_shop(work, total=total, pause=pause) as shop:
        shop.buyer.known = sum(q.key in shop.journal.answers for q in questions_of(work, shop.teachers, rows))
        try:
            if work.recipe.budget.rounds is None:
                await shop.buyer.buy(questions_of(work, shop.teachers, rows))
            else:
                curve = await _in_rounds(work, shop, rows)
        finally:
            found = labelled(work, shop.journal, shop.teachers, rows)
            write_labels(work.labels_path, found)
            keys = {q.key for q in questions_of(work, shop.teachers, rows)}
            report = collect_report(work, shop, keys, found, curve)
            report["rows"] = len(rows)
            write_json(work.out / "collect" / "report.json", report)
        if shop.buyer.stopped == STOPPED_SIGNAL:
            raise KeyboardInterrupt
        if not any(row.answers or row.human for row in found):
            raise CheckFailed(
                "not one answer could be bought",
                field="budget.max_usd",
                value=f"{shop.spend.limit_usd:f}",
                fix=f"one answer can cost {_dearest(shop, work, rows)}: raise it, or lower max_tokens or the picture",
            )
    return report


def _dearest(shop: Shop, work: Work, rows: Sequence[Row]) -> str:
    first = next(questions_of(work, shop.teachers, rows), None)
    return "?" if first is None else dollars(first.teacher.provider.estimate(first.ask()))


async def _in_rounds(work: Work, shop: Shop, rows: Sequence[Row]) -> Curve:
    rounds = work.recipe.budget.rounds
    assert rounds is not None
    truth = [
        (row, labels[0].answer)
        for row in work.usable
        if row.split == "validation" and (labels := work.human.get(row.id)) and len(labels) == 1
    ]
    if not truth:
        raise UsageError(
            "rounds need a truth to be measured against: no row of split validation has a human label",
            field="budget.rounds",
            fix="add human labels for validation rows, or leave rounds out",
        )
    curve = Curve(rounds)
    for start in range(0, len(rows), rounds.size):
        await shop.buyer.buy(questions_of(work, shop.teachers, rows[start : start + rounds.size]))
        so_far = rows[: start + rounds.size]
        pairs = [(row, answer) for row, answer in _answers(work, shop, so_far) if row.split == "train"]
        keys = {q.key for q in questions_of(work, shop.teachers, so_far)}
        ends = [e[k] for e in (shop.journal.answers, shop.journal.failures) for k in keys if k in e]
        usd = sum((Decimal(e["usd"]) for e in ends), Decimal(0))
        measured = Labels(pairs, truth, work)
        right = await asyncio.to_thread(PROBES[rounds.probe.kind], measured, rounds.probe)
        worth = curve.add(len(pairs), usd, right)
        if shop.buyer.stopped or not worth:
            shop.buyer.stopped = shop.buyer.stopped or "marginal"
            break
    return curve


def _answers(work: Work, shop: Shop, rows: Sequence[Row]) -> Iterator[tuple[Row, Any]]:
    by_id = {row.id: row for row in work.usable}
    humans = [row for row in work.usable if row.id in work.human and row.split == "train"]
    for one in labelled(work, shop.journal, shop.teachers, [*rows, *humans]):
        if one.human and len({str(h["answer"]) for h in one.human}) == 1:
            yield by_id[one.id], one.human[0]["answer"]
        elif (choice := choose(one.answers, work.recipe.task.accept)) is not None:
            yield by_id[one.id], choice.answer
