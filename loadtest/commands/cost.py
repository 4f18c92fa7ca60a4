"""`fovea loadtest cost`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtest.commands import common
from models.support.errors import UsageError

EXAMPLES = """
examples:
  fovea loadtest cost out/report.json --forecast forecast.yaml --out bill
  fovea loadtest cost out gpt-4o-eval --forecast forecast.yaml --against gpt-4o --out bill

The first load test of own machines is priced; every further report is a measured baseline.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("reports", nargs="+", metavar="REPORT", help="report.json of a load test or an evaluation")
    parser.add_argument("--forecast", metavar="FILE", help="YAML: volume, stages, review...; what is measured may miss")
    parser.add_argument("--prices", metavar="FILE", help="your own price rows, which replace the shipped ones")
    parser.add_argument("--set", default="list", help="row set of the price book: list (default), article-playbook")
    parser.add_argument("--machines", metavar="FILE", help="your own machine prices, for serving.machine")
    parser.add_argument(
        "--against", action="append", default=[], metavar="MODEL", help="draw this vendor model's curve"
    )
    parser.add_argument("--out", metavar="DIR", help="folder for cost.json and cost.html")
    parser.add_argument("--json", action="store_true", help="print cost.json instead of tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Price the reports, print and write the result."""
    from loadtest.money_page import terminal
    from models.support.files import atomic_write, write_json

    common.check_out(args.out)
    data = build(args.reports, args.forecast, args.prices, args.against, args.machines, args.set)
    if args.out:
        write_json(Path(args.out) / "cost.json", data)
        with atomic_write(Path(args.out) / "cost.html") as file:
            file.write(page(data))
    print(json.dumps(data, indent=2, ensure_ascii=False) if args.json else text(data, terminal(data)))
    return 0


def text(data: Mapping[str, Any], summary: str) -> str:
    """Return the summary with warnings and, where the forecast has months, their table."""
    from loadtest.text_report import columns

    parts = [f"warning: {warning}" for warning in data["warnings"]] + [summary]
    if data["months"]:
        parts += ["", columns(*month_table(data["months"]))]
    return "\n".join(parts)


def build(
    paths: list[str],
    forecast: str | None,
    prices: str | None,
    against: list[str],
    machines: str | None = None,
    price_set: str = "list",
) -> dict[str, Any]:
    """Return cost.json's content.

    Raises:
        UsageError: a file or a key is wrong, or no report is of machines of one's own.
    """
    from loadtest.baselines import is_own, measured_baseline, read_report
    from loadtest.forecast_file import read_forecast
    from loadtest.money import cost_part
    from models.evaluation.context import versions
    from models.machines import load_machines
    from models.prices import load_prices

    book, hourly = load_prices(prices).only(price_set), load_machines(machines)
    for model in against:
        book.find(model)
    reports = [(path, read_report(path)) for path in paths]
    own = next(((path, data) for path, data in reports if is_own(data, book)), None)
    if own is None:
        fix = "name the report of a load test of your own server first"
        raise UsageError("no report is of own machines", field="REPORT", value=", ".join(paths), fix=fix)
    others = [measured_baseline(data, path, book) for path, data in reports if path is not own[0]]
    stated, months = read_forecast(forecast) if forecast else ({}, {})
    where = forecast or "forecast"
    names = tuple(book.find(model).model for model in against)
    part = cost_part(own[1], stated, where=where, measured=others, against=names, book=book, machines=hourly)
    return {
        "schema_version": "1.0",
        "kind": "cost",
        "command": common.command_line(),
        "reports": [{"path": path, "kind": data["kind"], "started": data.get("started")} for path, data in reports],
        "warnings": _warnings(own[0], own[1], part),
        **part,
        "months": _months(own[1], stated, months, where, book, hourly),
        "hardware": own[1]["hardware"]["server"],
        "seed": own[1]["seed"],
        "versions": versions(),
    }


def _warnings(path: str, data: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    found = []
    if not data["valid"]:
        found.append(f"{path} is invalid: {'; '.join(data['invalid_because'])}")
    if data["partial"]:
        found.append(f"{path} was ended before its time")
    if data["usage"]["sampled"]:
        found.append("the images have too many sizes: prices are those of an even sample of the requests")
    stale = [row["model"] for row in part["baselines"] if row["stale"]]
    if stale:
        found.append(f"prices read over 90 days ago: {', '.join(stale)}")
    return found


def _months(
    data: Mapping[str, Any], stated: Mapping[str, Any], months: Mapping[str, int], where: str, book: Any, machines: Any
) -> list[dict[str, Any]]:
    """Return the bill of every month of the forecast."""
    from loadtest.money_inputs import from_report
    from models.cost.path import path_cost

    rows = []
    for month, queries in months.items():
        bill = path_cost(from_report(data, {**stated, "queries_per_month": queries}, where, machines)[0], book)
        rows.append(
            {
                "month": month,
                "queries": queries,
                "usd": f"{bill.usd_per_month:f}",
                "usd_per_right_answer": f"{bill.usd_per_success:f}",
            }
        )
    return rows


def month_table(months: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table of months, the sum last."""
    from decimal import Decimal

    from models.cost.ledger import usd

    rows = [[m["month"], f"{m['queries']:,}", usd(m["usd"]), usd(m["usd_per_right_answer"])] for m in months]
    whole = sum((Decimal(m["usd"]) for m in months), Decimal(0))
    rows.append(["all", f"{sum(m['queries'] for m in months):,}", usd(whole), ""])
    return ["month", "queries", "$", "$/right answer"], rows


def page(data: Mapping[str, Any]) -> str:
    """Return the HTML report."""
    from loadtest.money_page import add_cost
    from models.support.html import Page, table

    out = Page(f"What a right answer costs: {data['model']}", " · ".join(r["path"] for r in data["reports"]))
    for warning in data["warnings"]:
        out.verdict("warn", warning)
    add_cost(out, data)
    if data["months"]:
        out.section("Month by month")
        out.add(table(*month_table(data["months"])))
    out.code(data["command"])
    return out.render()
