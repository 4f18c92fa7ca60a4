"""The gate's report as one HTML page: verdict, categories, confidence, speed, size, what was quantized, the flips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.evaluation.page import card_grid, interval, percent
from models.golden import GoldenItem
from models.support.files import atomic_write
from models.support.html import Axis, Page, Series, bars, cdf, details, line, table
from quantize.gate_rows import SIDES, speed_rows

if TYPE_CHECKING:
    from quantize.gate import Side

SHOWN_FLIPS = 12
KINDS = {"pass": "ok", "fail": "bad", "not enough items": "warn"}


def write_page(
    path: Path,
    report: Mapping[str, Any],
    items: Sequence[GoldenItem],
    sides: Mapping[str, Side],
    manifest: Mapping[str, Any],
) -> None:
    """Write the page of a gate's report."""
    group = f", groups of {report['group']}" if report["group"] else ""
    title = f"{manifest['family']}: {report['scheme']} ({report['method']}{group}) against its 16-bit parent"
    golden = report["golden"]
    page = Page(title, f"{golden['name']}, {golden['asked']} paired items, {report['finished']}")
    verdict = report["verdict"]
    page.verdict(KINDS[verdict["outcome"]], verdict["outcome"].capitalize(), verdict["sentence"])
    _tiles(page, report)
    _checks(page, report)
    _categories(page, report)
    _confidence(page, report)
    _speed(page, report, sides)
    _modules(page, manifest)
    _flips(page, report, items, sides)
    _context(page, report, manifest)
    with atomic_write(path) as file:
        file.write(page.render())


def _ratio(figure: Mapping[str, Any]) -> str:
    return "no value" if figure["value"] is None else f"{100 * figure['value']:.2f} %"


def _range(figure: Mapping[str, Any]) -> str:
    return "" if figure["value"] is None else f"{100 * figure['low']:.2f} to {100 * figure['high']:.2f} %"


def _tiles(page: Page, report: Mapping[str, Any]) -> None:
    parent, candidate = (report["sides"][s] for s in SIDES)
    flips, kl = report["flips"], report["divergence_nats"]
    tiles = [
        ("recovery", _ratio(report["recovery"]), _range(report["recovery"])),
        ("parent", percent(parent["accuracy"]), interval(parent["accuracy"])),
        ("candidate", percent(candidate["accuracy"]), interval(candidate["accuracy"])),
        (
            "answers lost / won",
            f"{len(flips['lost'])} / {len(flips['won'])}",
            f"p = {report['mcnemar']['p_value']:.2g}",
        ),
        ("divergence", "not measured" if kl["value"] is None else f"{kl['value']:.2g} nats", f"n = {kl['n']}"),
        ("checkpoint", f"{candidate['bytes'] / 1e6:.2f} MB", f"{report['figures']['size_ratio']:.2f} of the parent's"),
    ]
    page.tiles(tiles)


def _checks(page: Page, report: Mapping[str, Any]) -> None:
    page.section("Checks", "Recovery is accuracy over the parent's on the same items; its lower end is what counts.")
    words = {True: "holds", False: "fails", None: "cannot tell"}
    rows = [[c["name"], words[c["held"]], c["text"]] for c in report["verdict"]["checks"]]
    page.add(table(["check", "", "found"], rows, text_columns=(0, 1, 2)))
    for warning in report["warnings"]:
        page.text(f"Warning: {warning}.")


def _categories(page: Page, report: Mapping[str, Any]) -> None:
    page.section("Categories")
    rows = [["all", percent(report["sides"]["parent"]["accuracy"]), percent(report["sides"]["candidate"]["accuracy"]),
             _ratio(report["recovery"]), _range(report["recovery"]), report["recovery"]["n"]]]  # fmt: skip
    shown = []
    for name, group in report["by_category"].items():
        found = group["recovery"]
        rows.append(
            [name, percent(group["parent"]), percent(group["candidate"]), _ratio(found), _range(found), found["n"]]
        )
        if found["value"] is not None:
            shown.append((name, found))
    page.add(table(["items", "parent", "candidate", "recovery", "95 % interval", "n"], rows))
    if shown:
        page.add(
            bars(
                [name for name, _ in shown],
                [100 * f["value"] for _, f in shown],
                low=[100 * f["low"] for _, f in shown],
                high=[100 * f["high"] for _, f in shown],
                colors=[3 if name in report["verdict"]["failed_categories"] else 0 for name, _ in shown],
                title="Recovery by category",
                unit="%",
                note=f"limit {100 * (report['thresholds']['category_recovery'] or 0):g} %",
            )
        )


def _confidence(page: Page, report: Mapping[str, Any]) -> None:
    page.section("Confidence")
    series = []
    for side in SIDES:
        found = report["sides"][side]["reliability"]
        if found:
            titles = [f"{side}: {b['n']} answers, {100 * b['accuracy']:.1f} % right" for b in found]
            series.append(Series(side, [b["confidence"] for b in found], [b["accuracy"] for b in found], titles=titles))
    if not series:
        page.text("The engine sent no log probabilities.")
        return
    ideal = Series("perfectly calibrated", [0.0, 1.0], [0.0, 1.0], color=5, dash=True)
    x, y = Axis("confidence", lowest=0, highest=1), Axis("share right", lowest=0, highest=1)
    page.add(line([*series, ideal], title="Reliability", x=x, y=y))
    rows = []
    for side in SIDES:
        error = report["sides"][side]["calibration_error"]
        value = "n too small" if not error or error["value"] is None else f"{error['value']:.4f}"
        rows.append([side, value])
    page.add(table(["", "calibration error"], rows))


def _speed(page: Page, report: Mapping[str, Any], sides: Mapping[str, Side]) -> None:
    load = (
        f"{report['sides']['parent']['concurrency']} requests in flight, closed loop, engine and client on one machine."
    )
    page.section("Speed, memory, money", load)
    page.add(table(["", *SIDES], [[row.name, *row.texts] for row in speed_rows(report)]))
    page.text(
        "The picture's part is the first token's time less that of a text prompt of as many tokens: decoding, "
        "preprocessing and the vision encoder, which quantization leaves alone. A parent is asked once for all its "
        "candidates: compare latencies that were measured close together.",
        note=True,
    )
    samples: dict[str, Sequence[float]] = {
        s: [x.latency_ms for x in sides[s].evaluated.answers.values() if x.latency_ms is not None] for s in SIDES
    }
    if all(samples.values()):
        page.add(cdf(samples, title="Latency of all answers", x=Axis("ms"), tail=True))


def _modules(page: Page, manifest: Mapping[str, Any]) -> None:
    modules = manifest["modules"]
    done = [m for m in modules if m["quantized"]]
    size = manifest["size"]
    text = (
        f"{len(done)} of {len(modules)} linear modules, read back from the file. The quantized part takes "
        f"{100 * size['quantized_ratio']:.1f} % of its 16-bit bytes, the whole checkpoint {100 * size['ratio']:.1f} %."
    )
    page.section("What was quantized", text)
    rows = [
        [m["name"], m["part"], "quantized" if m["quantized"] else "kept", m["stored"],
         "" if m["error"] is None or not m["quantized"] else f"{100 * m['error']:.2f} %"]
        for m in modules
    ]  # fmt: skip
    inner = table(["module", "part", "", "stored", "relative error"], rows, text_columns=(0, 1, 2, 3))
    page.add(details("Module by module", inner))


def _flips(page: Page, report: Mapping[str, Any], items: Sequence[GoldenItem], sides: Mapping[str, Side]) -> None:
    by_id = {i.id: i for i in items}
    for key, heading, side in (("lost", "Lost", "candidate"), ("won", "Won", "parent")):
        ids = report["flips"][key]
        page.section(f"{heading}: {len(ids)}", f"The {side}'s wrong answer of each; at most {SHOWN_FLIPS} shown.")
        answers = sides[side].evaluated.answers
        grid = card_grid([(by_id[i], answers[i]) for i in ids[:SHOWN_FLIPS] if i in answers])
        if grid:
            page.add(grid)


def _context(page: Page, report: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
    page.section("How it was made")
    calibration = manifest["calibration"]
    rows = [["golden set", f"{report['golden']['name']}, digest {report['golden']['digest']}"]]
    rows.append(["left out (pictures of the calibration)", str(report["golden"]["excluded"])])
    if calibration:
        rows.append(["calibration", f"{calibration['items']} items of {calibration['set']}, {calibration['digest']}"])
        tokens = calibration["processor"]["image_tokens"].items()
        rows.append(["image tokens: items", ", ".join(f"{k}: {v}" for k, v in tokens)])
        rows.append(["resolutions", ", ".join(f"{k}: {v}" for k, v in calibration["resolutions"].items())])
    rows += [[f"version of {k}", v] for k, v in report["versions"].items()]
    rows += [[f"job: {k}", v] for k, v in manifest["versions"]["job"].items()]
    rows += [[f"hardware: {k}", v] for k, v in report["hardware"].items()]
    page.add(table(["", ""], rows, text_columns=(0, 1)))
    page.code(" ".join(report["command"]))
