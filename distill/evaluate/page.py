"""Sections of the one report on how far the student is to be trusted: seeds, pictures, calibration, the cascade."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.cost.ledger import usd
from models.support.html import Axis, Page, Series, line, table


def seeds(page: Page, evaluate: Mapping[str, Any]) -> None:
    """Add what students of other seeds answer."""
    if not evaluate.get("seeds"):
        return
    page.section("Other seeds", "The same rows and schedule, trained again: how much of the result is chance.")
    rows = []
    for golden, one in evaluate["seeds"].items():
        for name, figure in one["accuracy"].items():
            rows.append([golden, name, share(figure), interval(figure), figure["n"]])
        page.text(
            f"{golden}: accuracy {one['mean']:.4f} in the mean of {one['runs']} seeds, standard deviation "
            f"{one['sd']:.4f}; all give the same answer to {share(one['same_answer'])} of the items."
        )
    page.add(table(["set", "student", "accuracy", "95 % interval", "n"], rows, text_columns=(0, 1)))


def pictures(page: Page, evaluate: Mapping[str, Any]) -> None:
    """Add accuracy without the picture and with a damaged one, and other wordings."""
    if evaluate["consistency"]:
        page.section("Asked again, and in other words", "How often all answers of the student to an item are the same.")
    for golden, one in (evaluate["consistency"] or {}).items():
        page.text(
            f"{golden}: {share(one['same_answer'])} ({interval(one['same_answer'])}) of {one['items']} items in "
            f"{one['runs']} runs; accuracy differs by {one['spread']:.3f} at most."
        )
    if not evaluate["pictures"]:
        return
    page.section("Without the picture, and with a damaged one", "Accuracy of the student on the same items.")
    rows = []
    for golden, kinds in evaluate["pictures"].items():
        for kind, one in kinds.items():
            rows.append([golden, kind, share(one["with_the_true_picture"]), share(one["accuracy"]),
                         interval(one["accuracy"]), share(one["same_answer"]), one["accuracy"]["n"]])  # fmt: skip
            if kind == "damaged":
                rows += [
                    ["", f"- {name}", "", share(f), interval(f), "", f["n"]] for name, f in one["by_damage"].items()
                ]
    head = ["set", "picture", "true picture", "changed picture", "95 % interval", "same answer", "n"]
    page.add(table(head, rows, text_columns=(0, 1)))


def calibration(page: Page, evaluate: Mapping[str, Any]) -> None:
    """Add calibration and risk over coverage."""
    sets = {n: s for n, s in evaluate["arms"]["student"]["sets"].items() if s["calibration"]}
    if not sets:
        return
    page.section("Does it know when it is wrong?", "Confidence: product of the answer's token probabilities.")
    plots = []
    for name, one in sets.items():
        found = one["calibration"]
        page.text(f"{name}: expected calibration error {share(found['ece'], 4)} ({interval(found['ece'], 4)}).")
        curve = one["risk_coverage"]
        series = Series("wrong", curve["coverage"], curve["risk"])
        plots.append(line([series], title=f"{name}: wrong answers among the surest", x=Axis("share answered"),
                          y=Axis("share wrong", lowest=0)))  # fmt: skip
    page.add(*plots)


def cascade(page: Page, evaluate: Mapping[str, Any]) -> None:
    """Add the cascade's thresholds, accuracies and dollars."""
    found = evaluate["cascade"]
    if found is None:
        return
    page.section(
        "Cascade",
        "The student answers where its confidence reaches the threshold, the teacher the rest. Thresholds were chosen "
        f"on {found['n_chosen_on']} items and measured on {found['n_measured_on']} others.",
    )
    rows = []
    kept = f"cheapest that keeps {found['keep']:.0%} of the teacher"
    for title, one in (("fewest dollars per right answer", found["cheapest"]), (kept, found["kept"])):
        rows.append([title, *(["-"] * 5)] if one is None else [
            title, f"{one['threshold']:.4f}", share(one["passed_on"]),
            f"{share(one['accuracy'])} ({interval(one['accuracy'])})", usd(one["usd_per_query"]),
            usd(one["usd_per_right_answer"]) if one["usd_per_right_answer"] else "-",
        ])  # fmt: skip
    page.add(table(["", "threshold", "passed on", "accuracy", "$/query", "$/right answer"], rows))
    curve = sorted(found["curve"], key=lambda r: float(r["usd_per_query"]))
    series = Series("cascade", [float(r["usd_per_query"]) for r in curve], [r["accuracy"]["value"] for r in curve],
                    titles=[f"threshold {r['threshold']:.3f}" for r in curve])  # fmt: skip
    each = [(r["passed_on"]["value"], r["usd_per_right_answer"]) for r in curve if r["usd_per_right_answer"]]
    cost = Series("cascade", [x for x, _ in each], [1000 * float(y) for _, y in each])
    page.add(
        line([series], title="Accuracy over dollars of a query", x=Axis("$ per query"), y=Axis("accuracy")),
        line([cost], title="Dollars per 1,000 right answers", x=Axis("share passed on"), y=Axis("$ per 1,000")),
    )


def share(figure: Mapping[str, Any], digits: int = 3) -> str:
    """Return a share, or "n too small"."""
    return "n too small" if figure["value"] is None else f"{figure['value']:.{digits}f}"


def interval(figure: Mapping[str, Any], digits: int = 3) -> str:
    """Return `low to high`."""
    return "-" if figure["low"] is None else f"{figure['low']:.{digits}f} to {figure['high']:.{digits}f}"
