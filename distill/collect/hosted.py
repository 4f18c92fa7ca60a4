"""Teachers whose checkpoint is here: served with the whole stack, for as long as they are asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

from distill.collect.plan import plan
from distill.collect.run import collect
from distill.recipe.ask import Teacher
from distill.work import Work
from models.evaluation.target import served_folder
from models.support.errors import UsageError

NOBODY = "http://127.0.0.1:9/v1"
"""The address of a teacher that has answered everything already: nothing is sent there."""


def collect_hosted(work: Work) -> dict[str, Any]:
    """Collect, with the teachers whose checkpoint is here served meanwhile; return the report.

    Not a coroutine: Ctrl-C while a stack starts must end it at once, not at the loop's next turn.
    """
    with hosted(work) as ready:
        return asyncio.run(collect(ready))


@contextmanager
def hosted(work: Work) -> Iterator[Work]:
    """Yield the work with an address for every teacher; those that have nothing left to answer are not started.

    Raises:
        UsageError: there is no such checkpoint.
        CheckFailed: a stack did not start.
    """
    if not any(teacher.checkpoint is not None for teacher in work.recipe.teachers):
        yield work
        return
    missing = plan(work)["teachers"]
    with ExitStack() as running:
        teachers = [_address(work, one, missing[one.name]["missing"], running) for one in work.recipe.teachers]
        yield replace(work, recipe=work.recipe.model_copy(update={"teachers": teachers}))


def _address(work: Work, teacher: Teacher, missing: int, running: ExitStack) -> Teacher:
    if teacher.checkpoint is None:
        return teacher
    folder = work.folder / teacher.checkpoint
    if not (folder / "config.json").is_file():
        field, fix = f"teacher {teacher.name}: checkpoint", "name a folder with config.json, relative to the recipe"
        raise UsageError("no checkpoint in this folder", field=field, value=teacher.checkpoint, fix=fix)
    if teacher.volume is not None:  # it runs in a batch job: nothing is served
        return teacher.model_copy(update={"base_url": NOBODY, "checkpoint": str(folder.resolve())})
    url = running.enter_context(served_folder(folder.resolve(), teacher.model)) if missing else NOBODY
    return teacher.model_copy(update={"base_url": url, "checkpoint": None})
