"""The ladder as one HTML page: every scheme that was tried, side by side with the 16-bit parent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.evaluation.page import percent
from models.support.files import atomic_write
from models.support.html import Page, bars, table
from quantize.gate_rows import speed_rows
from quantize.recovery import shown

COLORS = {"pass": 0, "fail": 3, "not enough items": 2}


def write_ladder_page(path: Path, result: Mapping[str, Any], reports: Sequence[Mapping[str, Any]]) -> None:
    """Write the page of a ladder: `reports` are the gate's, one per step of `result`, in the same order."""
    steps, passed = result["steps"], result["passed"]
    golden = reports[0]["golden"]
    told = f"{golden['name']}, {golden['asked']} paired items, {reports[-1]['finished']}"
    page = Page(f"{result['model']}: quantized, smallest first", told)
    if passed is None:
        failed = ", ".join(s["rung"] for s in steps)
        page.verdict("bad", "None passed", f"tried: {failed}; keep the 16-bit parent")
    else:
        page.verdict("ok", f"{passed} passed", steps[-1]["sentence"])
    _verdicts(page, steps)
    _categories(page, steps, reports)
    _figures(page, steps, reports)
    page.section("How it was made")
    where = ", ".join(_beside(path, s["report"]) for s in steps)
    page.add(table(["", ""], [["reports", where], *_machine(reports[-1])], text_columns=(0, 1)))
    page.code(" ".join(reports[-1]["command"]))
    with atomic_write(path) as file:
        file.write(page.render())


def _beside(path: Path, report: str) -> str:
    """Return a report's path as it is seen from the page's folder."""
    place = Path(report)
    return str(place.relative_to(path.parent)) if place.is_relative_to(path.parent) else report


def _machine(report: Mapping[str, Any]) -> list[list[str]]:
    rows = [[f"hardware: {k}", str(v)] for k, v in report["hardware"].items()]
    return rows + [[f"version of {k}", str(v)] for k, v in report["versions"].items()]


def _verdicts(page: Page, steps: Sequence[Mapping[str, Any]]) -> None:
    text = "Recovery is accuracy over the parent's on the same items; its lower end must reach the limit."
    page.section("Verdicts", text)
    rows = [[s["rung"], s["outcome"], shown(s["recovery"]), f"{s['size_ratio']:.2f}", s["sentence"]] for s in steps]
    page.add(table(["rung", "verdict", "recovery", "size", "why"], rows, text_columns=(0, 1, 2, 4)))
    known = [s for s in steps if s["recovery"]["value"] is not None]
    if known:
        page.add(
            bars(
                [s["rung"] for s in known],
                [100 * s["recovery"]["value"] for s in known],
                low=[100 * s["recovery"]["low"] for s in known],
                high=[100 * s["recovery"]["high"] for s in known],
                colors=[COLORS[s["outcome"]] for s in known],
                title="Recovery",
                unit="%",
            ),
            bars(
                ["parent", *(s["rung"] for s in steps)],
                [1.0, *(s["size_ratio"] for s in steps)],
                title="Bytes of the checkpoint over the parent's",
            ),
        )


def _categories(page: Page, steps: Sequence[Mapping[str, Any]], reports: Sequence[Mapping[str, Any]]) -> None:
    page.section("Right, by category")
    rows = []
    for name, group in reports[0]["by_category"].items():
        found = [r["by_category"].get(name) for r in reports]
        cells = ["" if f is None else percent(f["candidate"]) for f in found]
        marks = [" (failed)" if name in s["failed_categories"] else "" for s in steps]
        told = [c + m for c, m in zip(cells, marks, strict=True)]
        rows.append([name, group["recovery"]["n"], percent(group["parent"]), *told])
    page.add(table(["items", "n", "parent", *(s["rung"] for s in steps)], rows))


def _figures(page: Page, steps: Sequence[Mapping[str, Any]], reports: Sequence[Mapping[str, Any]]) -> None:
    load = f"{reports[0]['sides']['parent']['concurrency']} requests in flight, closed loop."
    page.section("Speed, memory, money", load)
    columns = [{row.name: row.texts for row in speed_rows(r)} for r in reports]
    rows = [
        [name, texts[0], *(column[name][1] if name in column else "" for column in columns)]
        for name, texts in columns[0].items()
    ]
    page.add(table(["", "parent", *(s["rung"] for s in steps)], rows))
    page.text(
        "The vision tower is not quantized: its part of the first token's time and of the bytes stands apart. The "
        "parent was asked once: compare latencies that were measured close together.",
        note=True,
    )
