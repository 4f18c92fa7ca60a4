"""The report as one HTML page: scores, reliability, risk-coverage, latency, and the wrong answers with their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from models.cost.ledger import usd
from models.evaluation.answers import Answer
from models.evaluation.client import data_uri
from models.evaluation.score import is_right
from models.golden import GoldenItem
from models.support.files import atomic_write
from models.support.html import Axis, Page, Series, cdf, line, table

SHOWN_WRONG = 24
# An image larger than this is named, not embedded: the page must stay mailable.
LARGEST_EMBEDDED = 200_000


def write_page(
    path: Path, report: Mapping[str, Any], items: Sequence[GoldenItem], answers: Mapping[str, Answer]
) -> None:
    """Write the page of `report` to `path`."""
    golden = report["golden"]
    page = Page(f"Evaluation of {report['model']}", f"{golden['name']}, {golden['asked']} items, {report['finished']}")
    _headline(page, report)
    _scores(page, report)
    _calibration(page, report)
    _latency(page, report, answers)
    _wrong(page, items, answers)
    _context(page, report)
    with atomic_write(path) as file:
        file.write(page.render())


def percent(figure: Mapping[str, Any]) -> str:
    """Return `97.1 %` or `n too small`."""
    return "n too small" if figure["value"] is None else f"{100 * figure['value']:.1f} %"


def interval(figure: Mapping[str, Any]) -> str:
    """Return `96.7 to 97.4 %`, empty where there is no value."""
    return "" if figure["value"] is None else f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f} %"


def _headline(page: Page, report: Mapping[str, Any]) -> None:
    accuracy, failed = report["accuracy"], sum(report["errors"].values())
    text = f"95 % interval {interval(accuracy)}, {accuracy['n']} items. "
    text += f"{failed} items have no answer and count as wrong." if failed else "Every item was answered."
    page.verdict("warn" if failed else "ok", f"{percent(accuracy)} right", text)
    tiles = [("accuracy", percent(accuracy), interval(accuracy))]
    if report["calibration"]:
        ece = report["calibration"]["ece"]
        value = "n too small" if ece["value"] is None else f"{ece['value']:.3f}"
        tiles.append(
            ("calibration error", value, "" if ece["value"] is None else f"{ece['low']:.3f} to {ece['high']:.3f}")
        )
    for name, figure in report["latency_ms"].items():
        value = "n too small" if figure["value"] is None else f"{figure['value']:.0f} ms"
        small = "" if figure["value"] is None else f"{figure['low']:.0f} to {figure['high']:.0f} ms"
        tiles.append((f"latency {name}", value, small))
    if report["cost"]:
        per_right = report["cost"]["usd_per_right_answer"]
        value = "none right" if per_right is None else usd(per_right)
        tiles.append(("per right answer", value, f"{usd(report['cost']['usd_total'])} in all"))
    page.tiles(tiles)
    if report["run"]["stopped"]:
        page.verdict("warn", "Stopped early", report["run"]["stopped"])


def _scores(page: Page, report: Mapping[str, Any]) -> None:
    page.section("Accuracy", "Share of right answers with its Wilson 95 % interval.")
    rows = [["all", percent(report["accuracy"]), interval(report["accuracy"]), report["accuracy"]["n"]]]
    fields = {f"field {name}": figure for name, figure in report["by_field"].items()}
    for group in (report["by_category"], report["by_tag"], fields):
        rows += [[name, percent(figure), interval(figure), figure["n"]] for name, figure in group.items()]
    page.add(table(["items", "right", "95 % interval", "n"], rows))
    _beyond(page, report)
    if report["errors"]:
        page.add(table(["error", "items"], [[kind, n] for kind, n in report["errors"].items()]))
    if report["truncated"]:
        page.text(f"{report['truncated']} answers were cut at max_tokens.", note=True)


def _beyond(page: Page, report: Mapping[str, Any]) -> None:
    """Text, boxes and explanations, where the set has them."""
    rows = [[NAMES[name], _share(figure), figure["n"]] for name, figure in (report["text"] or {}).items()]
    rows += [[NAMES[name], _share(figure), figure["n"]] for name, figure in (report["explanation"] or {}).items()]
    if boxes := report["boxes"]:
        rows.append(["boxes: mean IoU", _share(boxes["mean_iou"]), boxes["boxes"]])
        rows += [[f"boxes: {name}", _share(boxes[key]), boxes[key]["n"]] for key, name in AVERAGE_PRECISION.items()]
        rows += [[f"boxes: F1 {name.replace('_', ' IoU ')}", f"{boxes[name]['f1']:.3f}", ""] for name in BOX_LEVELS]
    if rows:
        page.section("Text, boxes and explanations", "How near the answers are, where right or wrong says too little.")
        page.add(table(["score", "value and 95 % interval", "n"], rows))


AVERAGE_PRECISION = {"map": "mAP, IoU 0.50 to 0.95", "map_50": "mAP, IoU 0.50", "map_75": "mAP, IoU 0.75"}
BOX_LEVELS = ("at_0.50", "at_0.75")
NAMES = {
    "token_f1": "token F1",
    "anls": "ANLS",
    "wer": "word error rate",
    "cer": "character error rate",
    "present": "explanation given",
    "correct": "explanation names the evidence",
    "right_for_the_right_reason": "right, and for the right reason",
}


def _share(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "n too small"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _calibration(page: Page, report: Mapping[str, Any]) -> None:
    page.section("Confidence")
    calibration, curve = report["calibration"], report["risk_coverage"]
    if calibration is None or curve is None:
        page.text("The endpoint sent no logprobs, so nothing can be said about confidence.")
        return
    page.text(f"Calibration error over {calibration['method']}.")
    bins = calibration["bins"]
    titles = [
        f"{b['n']} answers, confidence {b['low']:.3f} to {b['high']:.3f}: {100 * b['accuracy']:.1f} % right"
        for b in bins
    ]
    found = Series("answers", [b["confidence"] for b in bins], [b["accuracy"] for b in bins], titles=titles)
    ideal = Series("perfectly calibrated", [0.0, 1.0], [0.0, 1.0], color=5, dash=True)
    reliability = line(
        [found, ideal],
        title="Reliability",
        x=Axis("confidence", lowest=0, highest=1),
        y=Axis("share right", lowest=0, highest=1),
    )
    risk = line(
        [Series("wrong answers", [100 * c for c in curve["coverage"]], [100 * r for r in curve["risk"]])],
        title="Risk against coverage",
        x=Axis("most confident answers kept, %", lowest=0, highest=100),
        y=Axis("wrong among them, %", lowest=0),
        note=f"area under the curve {curve['area']:.4f}",
    )
    page.add(reliability, risk)


def _latency(page: Page, report: Mapping[str, Any], answers: Mapping[str, Answer]) -> None:
    page.section("Latency", f"At {report['run']['concurrency']} requests in flight; {report['run']['load']}.")
    samples = [a.latency_ms for a in answers.values() if a.latency_ms is not None]
    if not samples:
        page.text("No answers.")
        return
    page.add(cdf({"latency": samples}, title="Latency of all answers", x=Axis("ms"), tail=True))


def _wrong(page: Page, items: Sequence[GoldenItem], answers: Mapping[str, Answer]) -> None:
    wrong = [i for i in items if i.id in answers and answers[i.id].error is None and not is_right(i, answers[i.id])]
    page.section("Wrong answers", f"{len(wrong)} in all; the most confident first, at most {SHOWN_WRONG} shown.")
    wrong.sort(key=lambda i: -(answers[i.id].confidence or 0.0))
    grid = card_grid([(item, answers[item.id]) for item in wrong[:SHOWN_WRONG]])
    if grid:
        page.add(grid)


def card_grid(wrong: Sequence[tuple[GoldenItem, Answer]]) -> str:
    """Return items with their wrong answers as cards side by side, as HTML; empty when there are none."""
    cards = "".join(_card(item, answer) for item, answer in wrong)
    grid = "display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:12px"
    return f'<div style="{grid}">{cards}</div>' if cards else ""


def _card(item: GoldenItem, answer: Answer) -> str:
    """One wrong answer as a picture with what was asked, said and right."""
    confidence = "" if answer.confidence is None else f", confidence {answer.confidence:.3f}"
    picture = f"<p>{escape(item.image.path.name)}</p>"
    source = data_uri(item.image).decode()
    if len(source) <= LARGEST_EMBEDDED:
        style = "width:100%;max-height:190px;object-fit:contain;image-rendering:pixelated"
        picture = f'<img alt="{escape(item.question, quote=True)}" style="{style}" src="{source}">'
    said = escape(f"said {answer.text!r}{confidence}, right is {item.expected!r}")
    text = f'<p class="note"><b>{escape(item.question)}</b> ({escape(item.id)}): {said}</p>'
    return f'<figure style="margin:0">{picture}{text}</figure>'


def _context(page: Page, report: Mapping[str, Any]) -> None:
    page.section("How it was made")
    run, golden = report["run"], report["golden"]
    rows = [
        ["endpoint", report["url"]],
        ["golden set", f"{golden['name']}, digest {golden['digest']}"],
        ["asked now / continued from", f"{run['asked_now']} / {run['continued_from']}"],
        ["answers a second", run["requests_per_s"] or ""],
        ["seed, limit", f"{report['seed']}, {report['limit'] or 'all'}"],
        *[[f"version of {name}", value] for name, value in report["versions"].items()],
        *[[f"hardware: {name}", value] for name, value in report["hardware"].items()],
    ]
    page.add(table(["", ""], rows, text_columns=(0, 1)))
    page.code(" ".join(report["command"]))
