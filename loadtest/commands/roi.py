"""`fovea loadtest roi`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from loadtest.commands import common

EXAMPLES = """
example:
  fovea loadtest roi --config roi.yaml --out roi

docs/money.md has a whole roi.yaml.  A KPI that misses its target does not fail the command.
"""
MONTHS_SHOWN = 36


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML: data, volume, benefits, costs, KPIs")
    parser.add_argument("--out", metavar="DIR", help="folder for roi.json and roi.html")
    parser.add_argument("--json", action="store_true", help="print roi.json instead of tables")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compute, print and write the result."""
    import datetime as dt

    from loadtest.forecast_file import read_yaml
    from loadtest.roi import compute, parse_roi
    from models.evaluation.context import versions
    from models.support.files import atomic_write, write_json

    common.check_out(args.out)
    config = parse_roi(read_yaml(args.config, "--config"), args.config)
    data = {
        "schema_version": "1.0",
        "kind": "roi",
        "command": common.command_line(),
        "written": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        **compute(config, args.config),
        "versions": versions(),
    }
    if args.out:
        write_json(Path(args.out) / "roi.json", data)
        with atomic_write(Path(args.out) / "roi.html") as file:
            file.write(page(data))
    print(json.dumps(data, indent=2, ensure_ascii=False) if args.json else terminal(data))
    return 0


def sentence(data: Mapping[str, Any]) -> str:
    """Return the result in one sentence."""
    from models.cost.ledger import usd

    even = data["break_even_months"]
    back = f"; it has paid for itself after {Decimal(even):.1f} months" if even else "; it never pays for itself"
    return (
        f"In its first year it returns {Decimal(data['roi_first_year']):.0%}: {usd(data['benefit_usd_per_year'])} of "
        f"benefits for {usd(data['first_year_cost_usd'])}{back}."
    )


def _lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    from models.cost.ledger import usd

    return [[r["group"], r["name"], usd(r["usd"]), r["how"], r["source"]] for r in rows]


def kpi_rows(data: Mapping[str, Any]) -> list[list[str]]:
    """Return the KPI table: name, value, target, whether it is kept, source."""
    words = {None: "–", True: "kept", False: "missed"}
    rows = []
    for kpi in data["kpis"]:
        target = (
            "watch the trend" if kpi["sense"] == "watch" else f"{kpi['sense']} {_value(kpi['target'], kpi['unit'])}"
        )
        rows.append([kpi["label"], _value(kpi["value"], kpi["unit"]), target, words[kpi["kept"]], kpi["source"]])
    return rows


def _value(text: str | None, unit: str) -> str:
    from models.cost.ledger import usd

    if text is None:
        return "–"
    value = Decimal(text)
    return {"share": f"{100 * value:.4g} %", "s": f"{value:.3g} s", "usd": usd(value), "number": f"{value:.3g}"}[unit]


def returns(data: Mapping[str, Any]) -> list[list[str]]:
    """Return the table of returns."""
    later, cash, even = data["roi_later_years"], data["payback_months"], data["break_even_months"]
    return [
        ["ROI of the first year", f"{Decimal(data['roi_first_year']):.1%}", "(benefits - costs) / costs"],
        ["ROI of later years", f"{Decimal(later):.1%}" if later else "–", "without the one-time costs"],
        ["break-even, months", f"{Decimal(even):.1f}" if even else "never", "first-year costs / monthly benefits"],
        [
            "payback, months",
            f"{Decimal(cash):.1f}" if cash else "never",
            "one-time costs / monthly net benefit",
        ],
    ]


def terminal(data: Mapping[str, Any]) -> str:
    """Return the result for a terminal."""
    from loadtest.text_report import columns

    head = ["group", "line", "$", "how", "source"]
    costs = [{**c, "group": f"{c['group']}{', once' if c['once'] else ''}"} for c in data["costs"]]
    parts = [sentence(data), "", "benefits, $ a year", columns(head, _lines(data["benefits"]))]
    parts += ["", "costs, $ a year or once", columns(head, _lines(costs))]
    parts += ["", columns(["", "", "defined as"], returns(data))]
    parts += ["", columns(["KPI", "value", "target", "", "source"], kpi_rows(data))]
    return "\n".join(parts)


def page(data: Mapping[str, Any]) -> str:
    """Return the HTML report."""
    from models.cost.ledger import usd
    from models.cost.plots import waterfall
    from models.support.html import Axis, Page, Series, line, table

    def show(value: float) -> str:
        return usd(f"{value:.12g}")

    out = Page(data["title"], f"{Decimal(data['volume']['per_month']):,.6g} items a month ({data['volume']['source']})")
    good = Decimal(data["roi_first_year"]) >= 0
    out.verdict("ok" if good else "bad", sentence(data), "Each figure's source stands beside it in the tables.")
    out.tiles([(a, b, c) for a, b, c in returns(data)])
    out.add(
        waterfall(
            [(r["name"], float(r["usd"])) for r in data["benefits"]],
            title="Benefits of a year",
            show=show,
            total="benefits",
        ),
        waterfall(
            [(r["name"], float(r["usd"])) for r in data["costs"]],
            title="Costs of the first year",
            show=show,
            total="costs",
        ),
    )
    once = sum((Decimal(c["usd"]) for c in data["costs"] if c["once"]), Decimal(0))
    yearly = Decimal(data["benefit_usd_per_year"]) - Decimal(data["yearly_cost_usd"])
    months = range(MONTHS_SHOWN + 1)
    marks = [(float(data["payback_months"]), "paid back")] if data["payback_months"] else []
    marks = [mark for mark in marks if mark[0] <= MONTHS_SHOWN]
    net = Series("net", [float(m) for m in months], [float(yearly * m / 12 - once) for m in months])
    out.add(
        line(
            [net],
            title="Benefits less costs, summed over the months",
            x=Axis("months", lowest=0.0),
            y=Axis("$"),
            vertical=marks,
            horizontal=[(0.0, "")],
            note="One-time costs at the start; yearly costs and benefits in equal months.",
        )
    )
    out.section("Benefits", "Dollars a year.")
    out.add(table(["group", "line", "$", "how", "source"], _lines(data["benefits"]), (0, 1, 3, 4)))
    out.section("Costs", "Dollars a year, or once.")
    costs = [{**c, "group": f"{c['group']}{', once' if c['once'] else ''}"} for c in data["costs"]]
    out.add(table(["group", "line", "$", "how", "source"], _lines(costs), (0, 1, 3, 4)))
    out.section("KPIs")
    out.add(table(["KPI", "value", "target", "", "source"], kpi_rows(data), (0, 2, 3, 4)))
    out.code(data["command"])
    return out.render()
