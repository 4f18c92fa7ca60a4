"""`fovea bill`: what a period cost, by tenant and model, from the journal that the servers wrote."""

from __future__ import annotations

import argparse
import datetime as dt
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.support.errors import UsageError

EXAMPLES = """
examples:
  fovea bill runs/journal
  fovea bill runs/journal --from 2026-11-01 --to 2026-11-30 --against gpt-4o --tenant red --out november

JOURNAL is the folder of the stack's `money.journal`, or files of it.  Days are UTC days.
"""


def day(text: str) -> dt.date:
    """argparse type: an ISO date."""
    return dt.date.fromisoformat(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("journal", nargs="+", type=Path, metavar="JOURNAL", help="folder or file of a journal")
    parser.add_argument("--from", dest="first", type=day, metavar="YYYY-MM-DD", help="first day of the period")
    parser.add_argument("--to", dest="last", type=day, metavar="YYYY-MM-DD", help="last day, included")
    parser.add_argument("--tenant", help="this tenant's requests only")
    parser.add_argument(
        "--against", action="append", default=[], metavar="MODEL", help="what this vendor's model would have charged"
    )
    parser.add_argument("--prices", type=Path, metavar="FILE", help="your own price rows, which replace the shipped")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for bill.json and bill.html")
    parser.add_argument("--json", action="store_true", help="print bill.json instead of tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the bill, print and write it."""
    from models.cli import print_json
    from models.support.files import atomic_write, write_json

    if args.out is not None and args.out.exists() and not args.out.is_dir():
        raise UsageError("is a file", field="out", value=str(args.out), fix="name a folder")
    data = build(args)
    if args.out is not None:
        write_json(args.out / "bill.json", data)
        with atomic_write(args.out / "bill.html") as file:
            file.write(page(data))
    if args.json:
        print_json(data)
    else:
        print(text(data))
    return 0


def build(args: argparse.Namespace) -> dict[str, Any]:
    """Return bill.json's content.  Raises UsageError as `bill` and `Reader`."""
    from models.cost.bill import bill
    from models.cost.journal import Reader
    from models.evaluation.context import versions
    from models.prices import load_prices

    book = load_prices(args.prices)
    against = list(dict.fromkeys(book.find(model).model for model in args.against))
    reader = Reader(args.journal)
    result = bill(reader.lines(), against, book, first=args.first, last=args.last, tenant=args.tenant)
    warnings = []
    if reader.torn:
        warnings.append(
            f"{reader.torn} lines were cut off when a process was killed: their answers are not in the bill"
        )
    if result["unpriced"]:
        warnings.append(f"{result['unpriced']:,} answers told no usage: they are in no sum")
    if result["images_unknown"]:
        warnings.append(f"{result['images_unknown']:,} answers have images of unknown tokens: in no vendor's sum")
    stale = [row["model"] for row in result["vendors"] if row["stale"]]
    if stale:
        warnings.append(f"prices read over 90 days ago: {', '.join(stale)}")
    return {
        "schema_version": "1.0",
        "kind": "bill",
        "command": shlex.join(["fovea", *sys.argv[1:]]),
        "written": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "journal": [str(path) for path in args.journal],
        "tenant": args.tenant,
        "torn": reader.torn,
        "warnings": warnings,
        **result,
        "versions": versions(),
    }


def sentence(data: Mapping[str, Any]) -> str:
    """Return the bill in one sentence."""
    whole = data["total"]
    period = data["first"] if data["first"] == data["last"] else f"{data['first']} to {data['last']}"
    who = f" of {data['tenant']}" if data["tenant"] else ""
    words = f"{period}: {whole['requests']:,} answers{who} cost ${whole['own_usd']}"
    if whole["cache_saved_usd"] != "0.00":
        words += f", answers from a cache saved ${whole['cache_saved_usd']}"
    there = [f"${usd} at {model}" for model, usd in whole["avoided_usd"].items()]
    if there:
        words += f"; they would have cost {', '.join(there)} (priced, not measured)"
    return words + "."


def _table(
    data: Mapping[str, Any], rows: list[tuple[list[str], Mapping[str, Any]]], head: list[str]
) -> list[list[str]]:
    models = [row["model"] for row in data["vendors"]]
    columns = [*head, "answers", "tokens in", "tokens out", "$ here", "$ saved by cache", *(f"$ {m}" for m in models)]
    cells = [
        [
            *names,
            f"{row['requests']:,}",
            f"{row['prompt_tokens']:,}",
            f"{row['completion_tokens']:,}",
            row["own_usd"],
            row["cache_saved_usd"],
            *(row["avoided_usd"].get(m, "0.00") for m in models),
        ]
        for names, row in rows
    ]
    return [columns, *cells]


def tables(data: Mapping[str, Any]) -> tuple[list[list[str]], list[list[str]], list[list[str]]]:
    """Return (by tenant and model, by day, the vendors' price rows), each with its head first."""
    whole = data["total"]
    lines = [([row["tenant"], row["model"]], row) for row in data["lines"]]
    days = [([row["day"]], row) for row in data["days"]]
    vendors = [["vendor", "model", "price since", "source read", "source"]]
    vendors += [
        [
            row["vendor"],
            row["model"],
            row["effective_from"],
            row["read"] + (" *" if row["stale"] else ""),
            row["source"],
        ]
        for row in data["vendors"]
    ]
    return (
        _table(data, [*lines, (["all", ""], whole)], ["tenant", "model"]),
        _table(data, [*days, (["all"], whole)], ["day"]),
        vendors,
    )


def text(data: Mapping[str, Any]) -> str:
    """Return the bill for a terminal."""
    parts = [f"warning: {warning}" for warning in data["warnings"]] + [sentence(data)]
    by_tenant, by_day, vendors = tables(data)
    for rows in (by_tenant, by_day if len(data["days"]) > 1 else [], vendors if len(vendors) > 1 else []):
        if rows:
            widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
            parts += ["", *("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)]
    return "\n".join(parts)


def page(data: Mapping[str, Any]) -> str:
    """Return the bill as a self-contained page that prints."""
    from models.support.html import Page, table

    out = Page("Bill" + (f" of {data['tenant']}" if data["tenant"] else ""), ", ".join(data["journal"]))
    out.verdict("ok", sentence(data), "US dollars; every total is rounded once, from its exact sum.")
    for warning in data["warnings"]:
        out.verdict("warn", warning)
    by_tenant, by_day, vendors = tables(data)
    out.section("By tenant and model")
    out.add(table(by_tenant[0], by_tenant[1:], (0, 1)))
    out.section("By day", "UTC days.")
    out.add(table(by_day[0], by_day[1:], (0,)))
    if data["vendors"]:
        out.section("Prices", "What stands behind the vendors' columns, as of the last day.")
        out.add(table(vendors[0], vendors[1:], (0, 1, 2, 3, 4)))
    out.code(data["command"])
    return out.render()
