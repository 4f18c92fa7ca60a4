"""What collecting would buy, and the most it can cost, without asking anybody."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from typing import Any

from distill.collect.run import open_shop, questions_of, rows_to_ask
from distill.work import Work


def plan(work: Work) -> dict[str, Any]:
    """Return rows, answers wanted and known, and per teacher how many are missing and the most they can cost."""
    return asyncio.run(_plan(work))


async def _plan(work: Work) -> dict[str, Any]:
    rows = rows_to_ask(work)
    async with open_shop(work) as shop:
        missing = {t.settings.name: 0 for t in shop.teachers}
        at_most = {name: Decimal(0) for name in missing}
        wanted = {q.key: q for q in questions_of(work, shop.teachers, rows)}
        known = [key for key in wanted if key in shop.journal.answers]
        for key, one in wanted.items():
            if key not in shop.journal.answers:
                name = one.teacher.settings.name
                missing[name] += 1
                if one.teacher.provider.price is not None:
                    at_most[name] += one.teacher.provider.estimate(one.ask())
        spent, limit = shop.spend.spent, shop.spend.limit_usd
    total = sum(at_most.values(), Decimal(0))
    return {
        "rows": len(rows),
        "answers_wanted": len(wanted),
        "answers_known": len(known),
        "teachers": {n: {"missing": missing[n], "at_most_usd": f"{at_most[n]:f}"} for n in missing},
        "at_most_usd": f"{total:f}",
        "spent_usd": f"{spent:f}",
        "limit_usd": f"{limit:f}",
        "within_limit": spent + total <= limit,
    }
