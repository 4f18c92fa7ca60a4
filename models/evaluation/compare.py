"""Two evaluations of one golden set, item by item: is the second better, worse, or not to be told apart?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import orjson

from models.evaluation.answers import ANSWERS_FILE, Answer
from models.evaluation.page import card_grid, percent
from models.evaluation.score import is_right
from models.golden import GoldenItem, load_golden
from models.stats import mcnemar, paired_difference, quantile, wilson
from models.support.errors import UsageError
from models.support.files import atomic_write
from models.support.html import Page, bars, table

SHOWN_FLIPS = 24


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation read back from its folder."""

    folder: Path
    report: dict[str, Any]
    answers: dict[str, Answer]

    @property
    def name(self) -> str:
        return str(self.report["model"])


def read_evaluation(folder: Path) -> Evaluated:
    """Read `report.json` and `answers.jsonl`.

    Raises:
        UsageError: the folder holds no finished evaluation.
    """
    try:
        report = orjson.loads((folder / "report.json").read_bytes())
        lines = (folder / ANSWERS_FILE).read_bytes().splitlines()
        # the last answer of an item counts: a failed one may have been asked again
        answers = {answer.id: answer for answer in (Answer(**orjson.loads(line)) for line in lines)}
        if report["kind"] != "evaluation":
            raise ValueError("another kind of report")
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "name a folder that `fovea models evaluate` wrote"
        raise UsageError("holds no finished evaluation", field="evaluation", value=str(folder), fix=fix) from error
    return Evaluated(folder, report, answers)


def compare(first: Evaluated, second: Evaluated, *, seed: int = 0) -> dict[str, Any]:
    """Return the paired comparison over the items that both were asked.

    `difference` is second minus first in accuracy, with a paired bootstrap interval; `mcnemar` the exact test on the
    items where only one is right; an error counts as wrong.  The same per category, without the test.

    Raises:
        UsageError: the golden sets differ, or there is no common item.
    """
    items = _common_items(first, second)
    a = [is_right(i, first.answers.get(i.id)) for i in items]
    b = [is_right(i, second.answers.get(i.id)) for i in items]
    test = mcnemar(a, b)
    groups: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(item.category, []).append(index)
    # one model under one name twice (before and after a change) is told apart by its folder
    names = [e.name if first.name != second.name else f"{e.name} ({e.folder.name})" for e in (first, second)]
    return {
        "kind": "comparison",
        "golden": first.report["golden"],
        "items": len(items),
        "first": _side(first, names[0], items, a),
        "second": _side(second, names[1], items, b),
        "difference": paired_difference(a, b, seed=seed).as_dict(),
        "mcnemar": {"only_first": test.only_first, "only_second": test.only_second, "p_value": test.p_value},
        "by_category": {
            name: {
                "first": wilson(sum(a[i] for i in chosen), len(chosen)).as_dict(),
                "second": wilson(sum(b[i] for i in chosen), len(chosen)).as_dict(),
                "difference": paired_difference([a[i] for i in chosen], [b[i] for i in chosen], seed=seed).as_dict(),
            }
            for name, chosen in sorted(groups.items())
        },
        "flips": {
            "lost": [i.id for i, x, y in zip(items, a, b, strict=True) if x and not y],
            "won": [i.id for i, x, y in zip(items, a, b, strict=True) if y and not x],
            "changed_answer": _changed(first, second, items),
        },
        "seed": seed,
    }


def _common_items(first: Evaluated, second: Evaluated) -> list[GoldenItem]:
    digests = [e.report["golden"]["digest"] for e in (first, second)]
    if digests[0] != digests[1]:
        fix = "evaluate both on the same set"
        raise UsageError("the golden sets differ", field="evaluation", value=str(second.folder), fix=fix)
    golden = load_golden(first.report["golden"]["spec"])
    if golden.digest != digests[0]:
        fix = "restore the set, or evaluate both again"
        raise UsageError("the golden set has changed since", field="golden", value=golden.name, fix=fix)
    items = [i for i in golden.items if i.id in first.answers and i.id in second.answers]
    if not items:
        raise UsageError("no item was asked of both", field="evaluation", value=str(second.folder), fix="use one seed")
    return items


def _side(one: Evaluated, name: str, items: Sequence[GoldenItem], right: Sequence[bool]) -> dict[str, Any]:
    latencies = [ms for i in items if (ms := one.answers[i.id].latency_ms) is not None]
    return {
        "model": name,
        "folder": str(one.folder),
        "accuracy": wilson(sum(right), len(right)).as_dict(),
        "latency_ms": {f"p{round(100 * q)}": quantile(latencies, q).as_dict() for q in (0.5, 0.95, 0.99)},
        "usd_per_right_answer": (one.report.get("cost") or {}).get("usd_per_right_answer"),
    }


def _changed(first: Evaluated, second: Evaluated, items: Sequence[GoldenItem]) -> dict[str, Any]:
    """How often the text of the answer changed at all: 0 right-wrong flips can hide many changed wrong answers."""
    changed = sum(first.answers[i.id].text != second.answers[i.id].text for i in items)
    return wilson(changed, len(items)).as_dict()


def verdict(result: dict[str, Any], max_drop: float | None) -> tuple[bool, str]:
    """Return (holds, sentence).  With `max_drop`, the *lower end* of the difference must not lie below -max_drop."""
    d, test = result["difference"], result["mcnemar"]
    points = f"{100 * d['value']:+.2f} points (95 % interval {100 * d['low']:+.2f} to {100 * d['high']:+.2f})"
    told = f"{result['second']['model']} against {result['first']['model']}: {points}, n = {result['items']}, "
    told += f"p = {test['p_value']:.2g}"
    if max_drop is None:
        return True, told
    holds = d["low"] >= -max_drop
    word = "within" if holds else "not shown to be within"
    return holds, f"{told}; {word} a drop of {100 * max_drop:g} points"


def write_comparison_page(
    path: Path, result: dict[str, Any], first: Evaluated, second: Evaluated, text: str, ok: bool
) -> None:
    """Write the comparison as one HTML page, with the flips beside their images."""
    a, b = result["first"], result["second"]
    page = Page(f"{b['model']} against {a['model']}", f"{result['golden']['name']}, {result['items']} common items")
    page.verdict("ok" if ok else "bad", "Paired comparison", text)
    page.section("Accuracy")
    rows = [["all", percent(a["accuracy"]), percent(b["accuracy"]), _points(result["difference"]), result["items"]]]
    for name, group in result["by_category"].items():
        n = group["first"]["n"]
        rows.append([name, percent(group["first"]), percent(group["second"]), _points(group["difference"]), n])
    page.add(table(["items", a["model"], b["model"], "difference, points", "n"], rows))
    shown = [(name, g["difference"]) for name, g in result["by_category"].items()]
    page.add(
        bars(
            [name for name, _ in shown],
            [100 * max(0.0, -g["value"]) for _, g in shown],
            title="Points lost by category",
            unit="points",
        )
    )
    page.section("Latency")
    rows = [[p, *(_ms(side["latency_ms"][p]) for side in (a, b))] for p in ("p50", "p95", "p99")]
    page.add(table(["", a["model"], b["model"]], rows))
    golden = {item.id: item for item in load_golden(result["golden"]["spec"]).items}
    for key, heading, answers in (("lost", "Lost", second.answers), ("won", "Won", first.answers)):
        ids = result["flips"][key]
        page.section(f"{heading}: {len(ids)}", "The wrong answer of each; at most 24 shown.")
        page.add(card_grid([(golden[i], answers[i]) for i in ids[:SHOWN_FLIPS]]) or f"<p>{escape('none')}</p>")
    with atomic_write(path) as file:
        file.write(page.render())


def _points(figure: dict[str, Any]) -> str:
    return f"{100 * figure['value']:+.2f} ({100 * figure['low']:+.2f} to {100 * figure['high']:+.2f})"


def _ms(figure: dict[str, Any]) -> str:
    return "n too small" if figure["value"] is None else f"{figure['value']:.1f} ms"
