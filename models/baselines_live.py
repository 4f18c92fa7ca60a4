"""`fovea models baselines`: the vendors' models on a golden set, measured where a key is there, else priced.

Every measured model gets the same items and the same scoring as an own one (`fovea models evaluate` does both).  All
of them share one spend limit; when it is reached nothing more is sent, and what was answered is kept and reported.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from models.support.errors import CheckFailed, UsageError

# One large and one small model of each vendor, as they are sold today
DEFAULT = (
    "openai/gpt-4o", "openai/gpt-4o-mini", "google/gemini-2.5-pro", "google/gemini-2.5-flash",
    "anthropic/claude-sonnet-5-5", "anthropic/claude-haiku-4-5",
)  # fmt: skip
CHARS_PER_TOKEN = 4
EXAMPLES = """
examples:
  fovea models baselines --golden easy-vqa --limit 200 --max-usd 2 --out runs/baselines
  fovea models baselines --golden receipts --model gpt-4o --model claude-opus-5-5 --max-usd 5 --out runs/baselines
  fovea loadtest cost runs/loadtest runs/baselines/*/ --out runs/bill

A vendor is asked when its key is set: OPENAI_API_KEY, ANTHROPIC_API_KEY, GEMINI_API_KEY.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("--golden", required=True, help="golden set: easy-vqa, receipts, modems, a folder or a file")
    parser.add_argument("--model", action="append", metavar="MODEL", help="vendor's model (repeatable; six without)")
    parser.add_argument("--limit", type=int, help="ask that many items, drawn at random by --seed")
    parser.add_argument("--seed", type=int, default=0, help="of the draw and of the bootstrap (0)")
    parser.add_argument("--concurrency", type=int, default=8, help="requests in flight (8)")
    parser.add_argument("--max-usd", metavar="DOLLARS", help="what all of it may cost; without it nothing is asked")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="your own price rows")
    parser.add_argument(
        "--vendor-url", action="append", default=[], metavar="VENDOR=URL", help="another address of a vendor's API"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder: baselines.json, and one per measured model")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure or price every model, print the table; exit code 1 when the spend limit ended it."""
    from models.cli import print_json, print_table
    from models.support.files import write_json

    data = build(args)
    write_json(args.out / "baselines.json", data)
    if args.json:
        print_json(data)
    else:
        print(f"{data['golden']}, {data['items']:,} items; ${data['spent_usd']} spent")
        print_table(HEAD, [_cells(row) for row in data["rows"]])
    stopped = [row["model"] for row in data["rows"] if row["stopped"]]
    if stopped:
        raise CheckFailed(
            f"the spend limit was reached at {', '.join(stopped)}",
            field="max-usd",
            value=args.max_usd,
            fix=f"what was answered is kept in {args.out}; raise the limit and run again to go on",
        )
    return 0


def build(args: argparse.Namespace) -> dict[str, Any]:
    """Return baselines.json's content.

    Raises:
        UsageError: golden set or model unknown, a key is refused, or a number is out of range.
    """
    from models.baselines import vendor_baselines
    from models.cost.usage import group_usage
    from models.evaluation.context import versions
    from models.golden import load_golden
    from models.prices import load_prices
    from models.providers.registry import VENDORS, vendor_of

    book, urls = load_prices(args.prices), _urls(args.vendor_url, tuple(VENDORS))
    names = [vendor_of(model, book) for model in args.model or DEFAULT]
    for vendor, name in names:
        book.find(name, vendor=vendor)  # a model without a price is refused before anything is asked
    golden = load_golden(args.golden)
    items = golden.sample(args.limit, args.seed)
    shapes = [(((i.width, i.height),), _tokens(i.question), _tokens(str(i.expected))) for i in items]
    priced = {row["model"]: row for row in vendor_baselines(group_usage(shapes), book=book)}
    limit = _limit(args.max_usd)
    spent, rows = Decimal(0), []
    for vendor, name in dict.fromkeys(names):
        key = next((v for v in VENDORS[vendor].key_variables if os.environ.get(v)), None)
        row = _priced(priced[book.find(name, vendor=vendor).model])
        if key is None:
            row["why"] = f"no {VENDORS[vendor].key_variables[0]}"
        elif limit is None:
            row["why"] = "no --max-usd"
        elif spent >= limit:
            row["why"] = "the spend limit was reached before"
        else:
            report, cost = _measure(args, f"{vendor}/{name}", limit - spent, urls.get(vendor))
            spent += cost
            row |= _measured(report)
        rows.append(row)
    return {
        "schema_version": "1.0",
        "kind": "baselines",
        "command": shlex.join(["fovea", *sys.argv[1:]]),
        "golden": golden.name,
        "digest": golden.digest,
        "items": len(items),
        "seed": args.seed,
        "max_usd": None if limit is None else f"{limit:f}",
        "spent_usd": f"{spent:f}",
        "rows": rows,
        "versions": versions(),
    }


def _tokens(text: str) -> int:
    """A guess, for what nobody was asked."""
    return max(1, len(text) // CHARS_PER_TOKEN)


def _limit(text: str | None) -> Decimal | None:
    from models.prices import parse_money

    try:
        return None if text is None else parse_money(text)
    except ValueError as error:
        raise UsageError(str(error), field="max-usd", value=text, fix="write it like 1.50") from error


def _urls(given: Sequence[str], vendors: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in given:
        vendor, equals, url = text.partition("=")
        if not equals or vendor not in vendors or not url:
            raise UsageError("is not VENDOR=URL", field="vendor-url", value=text, fix=f"one of {', '.join(vendors)}")
        found[vendor] = url
    return found


def _measure(
    args: argparse.Namespace, target: str, max_usd: Decimal, url: str | None
) -> tuple[dict[str, Any], Decimal]:
    """Return the evaluation of one model, and what it may have cost now."""
    from models.evaluation.run import evaluate
    from models.evaluation.settings import EvaluationSettings

    settings = EvaluationSettings(
        url=target,
        model="",
        golden=args.golden,
        out=args.out / target.replace("/", "-"),
        limit=args.limit,
        seed=args.seed,
        concurrency=args.concurrency,
        max_usd=max_usd,
        prices=args.prices,
        vendor_url=url,
    )
    try:
        report = evaluate(settings)
    except CheckFailed as error:  # every request failed: the other models are measured all the same
        print(f"{target}: {error}", file=sys.stderr)
        report = json.loads((settings.out / "report.json").read_bytes())
    return report, Decimal(report["run"]["spent_usd"])


def _priced(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vendor": row["vendor"],
        "model": row["model"],
        "label": row["note"],
        "why": "",
        "usd_per_query": f"{row['usd_per_query']:f}",
        "usd_per_right_answer": None,
        "accuracy": None,
        "image_tokens_by_rule": row["image_tokens"],
        "image_tokens_reported_minus_rule": None,
        "latency_ms": None,
        "stopped": None,
        **{key: row[key] for key in ("effective_from", "read", "source", "stale")},
    }


def _measured(report: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation puts in the place of the priced figures."""
    stopped, cost = report["run"]["stopped"], report["cost"]
    if cost is None:
        return {"why": "asked, but there was no answer with its usage", "stopped": stopped}
    return {
        "label": "measured",
        "usd_per_query": cost["usd_per_query"],
        "usd_per_right_answer": cost["usd_per_right_answer"],
        # items that were never sent say nothing about the model
        "accuracy": report["accuracy_answered" if stopped else "accuracy"],
        "image_tokens_reported_minus_rule": cost["image_tokens_reported_minus_rule"],
        "latency_ms": report["latency_ms"],
        "stopped": stopped,
    }


HEAD = ("model", "how", "right", "n", "$/query", "$/right answer", "image tokens by rule", "reported less rule",
        "price since, read", "source")  # fmt: skip


def _cells(row: Mapping[str, Any]) -> list[object]:
    right = row["accuracy"]
    shown = f"{right['value']:.3f} ({right['low']:.3f} to {right['high']:.3f})" if right and right["n"] else ""
    return [
        f"{row['vendor']} {row['model']}",
        row["label"] + (f" ({row['why']})" if row["why"] else "") + (", stopped early" if row["stopped"] else ""),
        shown,
        right["n"] if right else "",
        f"{Decimal(row['usd_per_query']):.6f}",
        f"{Decimal(row['usd_per_right_answer']):.6f}" if row["usd_per_right_answer"] else "",
        row["image_tokens_by_rule"],
        row["image_tokens_reported_minus_rule"],
        f"{row['effective_from']}, {row['read']}{' *' if row['stale'] else ''}",
        row["source"],
    ]
