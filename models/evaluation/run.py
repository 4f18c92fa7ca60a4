"""Run an evaluation from start to report."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import uvloop

from models.cost.ledger import usd
from models.evaluation.answers import Answer, AnswerLog
from models.evaluation.client import EvaluationClient, request_parameters
from models.evaluation.context import command, hardware, versions
from models.evaluation.page import write_page
from models.evaluation.score import machine_cost, score
from models.evaluation.settings import EvaluationSettings
from models.evaluation.target import is_version, served_version, version_of
from models.evaluation.vendor import LEAST_MAX_TOKENS, VendorClient
from models.golden import GoldenItem, GoldenSet, builtin_names, load_golden
from models.prices import parse_money
from models.providers import VENDORS, SpendLimitReached
from models.support.errors import CheckFailed, UsageError
from models.support.files import write_json
from models.support.progress import Progress


def run_command(args: argparse.Namespace) -> int:
    """`fovea models evaluate`: run it, print the result, return the exit code (1 when no item was answered)."""
    if is_version(args.url):
        with served_version(args.url, args.store) as (url, name):
            return _finish(args, settings_of(args, url=url, model=name))
    return _finish(args, settings_of(args))


def settings_of(args: argparse.Namespace, *, url: str | None = None, model: str | None = None) -> EvaluationSettings:
    """Return the settings that the command line asks for; `url` and `model` replace its own."""
    return EvaluationSettings(
        url=url or args.url,
        model=model or args.model or "",
        golden=args.golden,
        out=args.out,
        limit=args.limit,
        seed=args.seed,
        concurrency=args.concurrency,
        max_tokens=args.max_tokens,
        timeout_s=args.timeout,
        api_key=args.api_key or (None if args.url.startswith(tuple(VENDORS)) else os.environ.get("OPENAI_API_KEY")),
        fresh=args.fresh,
        max_usd=_dollars(args.max_usd, "max-usd"),
        usd_per_hour=_dollars(args.usd_per_hour, "usd-per-hour"),
        prices=args.prices,
        vendor_url=args.vendor_url,
    )


def _finish(args: argparse.Namespace, settings: EvaluationSettings) -> int:
    report = evaluate(settings)
    if args.json:
        import json

        print(json.dumps({k: v for k, v in report.items() if k != "answers"}, indent=2))
    else:
        print_summary(report, settings.out)
    if report["run"]["stopped"] is not None:
        raise CheckFailed(f"stopped early: {report['run']['stopped']}")
    return 0


def _dollars(text: str | None, field: str) -> Decimal | None:
    if text is None:
        return None
    try:
        return parse_money(text)
    except ValueError as error:
        raise UsageError(str(error), field=field, value=text, fix="write it like 1.50") from error


def evaluate(settings: EvaluationSettings) -> dict[str, Any]:
    """Ask every item that has no answer yet, write `report.json` and `report.html`, and return the report.

    An interruption keeps the answers: the same call continues.  Items that failed are asked again.

    Raises:
        UsageError: golden set not found, no server, key refused, unknown model, or `out` holds another evaluation.
        CheckFailed: the server stopped answering, or no item was answered.

    A spend limit that is reached ends the run early: what was answered is reported, `run.stopped` says why.
    """
    golden = load_golden(settings.golden)
    items = golden.sample(settings.limit, settings.seed)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        result = runner.run(_ask_all(settings, golden, items))
    answers = result.answers
    report = build_report(settings, golden, items, result)
    write_json(settings.out / "report.json", report)
    write_page(settings.out / "report.html", report, items, answers)
    if report["answered"] == 0:
        errors = ", ".join(f"{n} x {kind}" for kind, n in report["errors"].items())
        raise CheckFailed(f"no item was answered: {errors}", field="url", value=settings.url, fix="see report.json")
    return report


@dataclass
class _Result:
    """Answers by item id, how many of them are from before, items asked now, seconds, why it ended early (if so).

    `spent_usd` is what a vendor may charge for this run: its answers, and requests that broke off, at their most.
    """

    answers: dict[str, Answer]
    before: int
    asked: int = 0
    wall_s: float = 0.0
    stopped: str | None = None
    spent_usd: Decimal | None = None
    served: dict[str, Any] = field(default_factory=dict)


async def _ask_all(settings: EvaluationSettings, golden: GoldenSet, items: list[GoldenItem]) -> _Result:
    async with VendorClient(settings) if settings.is_vendor else EvaluationClient(settings) as client:
        served = await client.check()
        # after the check: a wrong URL must not leave a folder behind
        with AnswerLog(settings.out, _identity(settings, golden, served), fresh=settings.fresh) as log:
            todo = [item for item in items if item.id not in log.done]
            before = {item.id: log.done[item.id] for item in items if item.id in log.done}
            result = _Result(before, len(before), served=served)
            right = 0
            started = time.perf_counter()
            try:
                with Progress(len(todo), "evaluating", "answers") as progress:

                    async def worker(queue: Iterator[GoldenItem]) -> None:
                        nonlocal right
                        for item in queue:
                            if result.stopped is not None:
                                return
                            try:
                                answer = await client.ask(item)
                            except SpendLimitReached as error:
                                # requests in flight are paid for: their answers are still taken
                                result.stopped = str(error)
                                return
                            log.add(answer)
                            result.answers[item.id] = answer
                            result.asked += 1
                            right += answer.text is not None and item.check(answer.text)
                            progress.advance(note=f"{right / (progress.done + 1):.1%} right")

                    await _run_workers(worker, iter(todo), min(settings.concurrency, max(1, len(todo))))
            except BaseException:
                kept = f"{len(log.done)} of {len(items)} answers kept in {settings.out}: run again to continue"
                print(kept, file=sys.stderr)
                raise
            result.wall_s = time.perf_counter() - started
            if isinstance(client, VendorClient):
                result.spent_usd = client.spend.spent
            return result


async def _run_workers(worker: Any, queue: Iterator[GoldenItem], n: int) -> None:
    """Run `n` workers on one queue; the first error stops all of them and is raised as itself."""
    tasks = [asyncio.create_task(worker(queue)) for _ in range(n)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _identity(settings: EvaluationSettings, golden: GoldenSet, served: dict[str, Any]) -> dict[str, Any]:
    """What must be the same for an evaluation to continue: not the address, which may change, nor limit and seed.

    `root` is the checkpoint that vLLM says it serves under the name: another one is another evaluation.
    """
    return {
        "kind": "fovea-evaluation",
        "golden": {"name": golden.name, "digest": golden.digest},
        "root": served.get("root"),
        "request": _asked_how(settings),
    }


def _asked_how(settings: EvaluationSettings) -> dict[str, Any]:
    if settings.is_vendor:
        return {"vendor_model": settings.url, "max_tokens": max(settings.max_tokens, LEAST_MAX_TOKENS)}
    # only where it differs: folders of earlier evaluations stay valid
    return request_parameters(settings) | ({} if settings.prompt == "{question}" else {"prompt": settings.prompt})


def build_report(
    settings: EvaluationSettings,
    golden: GoldenSet,
    items: list[GoldenItem],
    result: _Result,
) -> dict[str, Any]:
    """Return the report: what was asked, every score, and where it was made."""
    asked, wall_s = result.asked, result.wall_s
    scores = score(items, result.answers, seed=settings.seed)
    if settings.usd_per_hour is not None:
        scores["cost"] = machine_cost(settings.usd_per_hour, wall_s, asked, scores["accuracy"]["value"])
    return {
        "kind": "evaluation",
        "model": settings.target,
        "target": version_of(result.served),
        "url": settings.base_url,
        "golden": {
            "name": golden.name,
            "spec": settings.golden if settings.golden in builtin_names() else str(Path(settings.golden).resolve()),
            "digest": golden.digest,
            "items": len(golden.items),
            "asked": len(items),
            "categories": golden.categories,
        },
        **scores,
        "run": {
            "asked_now": asked,
            "continued_from": result.before,
            "wall_s": round(wall_s, 3),
            "requests_per_s": round(asked / wall_s, 2) if asked and wall_s > 0 else None,
            "concurrency": settings.concurrency,
            "stopped": result.stopped,
            "spent_usd": None if result.spent_usd is None else f"{result.spent_usd:f}",
            "load": "closed loop: latencies are those at this concurrency, not at a given arrival rate",
        },
        "request": _asked_how(settings),
        "seed": settings.seed,
        "limit": settings.limit,
        "finished": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": hardware(),
        "command": command(),
    }


def print_summary(report: dict[str, Any], out: Path) -> None:
    """Print the figures that matter, one line each."""

    def shown(figure: dict[str, Any]) -> str:
        if figure["value"] is None:
            return f"n too small (n = {figure['n']})"
        return f"{figure['value']:.4f}  [{figure['low']:.4f}, {figure['high']:.4f}]  n = {figure['n']}"

    print(f"{report['model']} on {report['golden']['name']} ({report['golden']['asked']} items)")
    print(f"accuracy    {shown(report['accuracy'])}")
    for name, figure in report["by_category"].items():
        print(f"  {name:<10}{shown(figure)}")
    if report["calibration"]:
        print(f"ECE         {shown(report['calibration']['ece'])}")
    for name, figure in report["latency_ms"].items():
        value = "n too small" if figure["value"] is None else f"{figure['value']:.1f} ms"
        print(f"{name:<12}{value}")
    if report["cost"]:
        each = report["cost"]["usd_per_right_answer"]
        print(f"cost        {usd(report['cost']['usd_total'])}, {usd(each) if each else 'none'} per right answer")
    if report["errors"]:
        print("errors      " + ", ".join(f"{n} x {kind}" for kind, n in report["errors"].items()))
    rate = report["run"]["requests_per_s"]
    if rate is not None:
        print(f"{report['run']['asked_now']} answers in {report['run']['wall_s']:.1f} s, {rate} a second")
    if report["run"]["continued_from"]:
        print(f"continued   {report['run']['continued_from']} answers are from an earlier run in this folder")
    print(f"report      {out / 'report.html'}")
