"""The data card: what is trained on, where it came from, what it cost, and what was dropped and why, with examples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from distill.collect.buy import dollars
from distill.filters.base import Drop
from distill.images import thumbnail_uri
from distill.labels import Labelled
from distill.work import Work
from models.support.html import Axis, Page, Series, bars, details, line, table

EXAMPLES = 6
CLASSES = 20
STOPPED = {
    "budget": "the next answer could have passed the limit",
    "marginal": "a dollar bought too little accuracy",
    "interrupted": "it was interrupted",
}
_GRID = "display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:12px"
_CARD = (
    "break-inside:avoid;border:1px solid var(--rule);border-radius:6px;background:var(--card);padding:8px;"
    "overflow-wrap:anywhere"
)
_IMAGE = "width:100%;max-height:150px;object-fit:contain;image-rendering:auto;display:block"


def data_card(
    work: Work, left: Sequence[Labelled], drops: Sequence[tuple[str, Drop]], report: Mapping[str, Any]
) -> str:
    """Return the card as one HTML page without a script, a font or a link to elsewhere."""
    page = Page(f"Data card: {work.recipe.name}", work.recipe.task.description)
    _verdict(page, work, report)
    collected = _collected(work)
    _tiles(page, left, report, collected)
    _funnel(page, report)
    _balance(page, report)
    if collected is not None:
        _teachers(page, collected)
        _rounds(page, collected)
    _dropped(page, work, drops, report)
    page.section("Kept, for example", f"{min(EXAMPLES, len(left))} of {len(left)} rows, in the order of the file.")
    page.add(_gallery(work, [(row, _kept_text(row)) for row in left[:EXAMPLES]]))
    page.section("Provenance")
    page.add(table(["", ""], _provenance(work, report), text_columns=(0, 1)))
    return page.render()


def _verdict(page: Page, work: Work, report: Mapping[str, Any]) -> None:
    training, wanted = report["splits"].get("train", 0), work.recipe.filters.min_kept
    unclear = report["licences"].get("unclear", 0)
    if training < wanted:
        page.verdict("bad", f"{training} training rows are left", f"The recipe wants {wanted} or more.")
    elif unclear:
        text = f"{unclear} rows rest on answers of a teacher whose terms are not known to allow training on them."
        page.verdict("warn", f"{training} training rows, licence unclear", text)
    else:
        page.verdict("ok", f"{training} training rows", "Every row has an answer that fits schema and units.")


def _collected(work: Work) -> dict[str, Any] | None:
    """Return the report of the collect step; None when the labels came from elsewhere."""
    path = work.out / "collect" / "report.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _tiles(
    page: Page, left: Sequence[Labelled], report: Mapping[str, Any], collected: Mapping[str, Any] | None
) -> None:
    from decimal import Decimal

    spent = Decimal(report["spent_usd"])
    each = f"{dollars(spent / len(left))} per kept row" if left else "no row was kept"
    agreed = [row.agreement for row in left if row.agreement is not None]
    tiles = [
        ("rows labelled", f"{report['rows']:,}", f"{len(report['broken_pictures'])} broken pictures left out"),
        ("rows kept", f"{report['kept']:,}", ", ".join(f"{n} {s}" for s, n in report["splits"].items())),
        ("spent", dollars(spent), f"of {dollars(Decimal(report['limit_usd']))}; {each}"),
        ("synthetic", f"{report['synthetic_share']:.0%}", f"of training rows; {report['synthetic_left_out']} left out"),
        ("human labels", f"{report['sources'].get('human', 0):,}", "of the kept rows"),
        ("agreement", f"{sum(agreed) / len(agreed):.3f}" if agreed else "-", "mean share of votes for the answer"),
    ]
    page.tiles(tiles)


def _funnel(page: Page, report: Mapping[str, Any]) -> None:
    page.section("What each filter left")
    names = ["labelled", *(f["title"] for f in report["filters"])]
    values = [float(report["rows"]), *(float(f["left"]) for f in report["filters"])]
    page.add(bars(names, values, title="Rows left after each filter", unit="rows", show=lambda v: f"{v:,.0f}"))
    rows = [
        [f["title"], f["dropped"], f["left"], ", ".join(f"{n} {r}" for r, n in f["reasons"].items()) or "-"]
        for f in report["filters"]
    ]
    page.add(table(["filter", "dropped", "left", "reasons"], rows, text_columns=(0, 3)))
    for one in report["filters"]:
        if one["notes"]:
            page.text(f"{one['title']}: {_note(one['notes'])}", note=True)


def _note(notes: Mapping[str, Any]) -> str:
    """Return what a filter says about itself as one line: `asked 26, bought 2; answers: usable 136, prose 14`."""
    plain = ", ".join(f"{key} {value}" for key, value in notes.items() if not isinstance(value, dict))
    nested = [f"{key}: {_note(value)}" for key, value in notes.items() if isinstance(value, dict) and value]
    return "; ".join([plain, *nested] if plain else nested)


def _balance(page: Page, report: Mapping[str, Any]) -> None:
    before, after = report["classes_before"], report["classes_after"]
    if not before:
        return
    many = len(before) > CLASSES
    page.section("Classes", f"{len(before)} different answers; the {CLASSES} commonest are shown." if many else "")
    names = list(before)[:CLASSES]
    left = bars(names, [float(before[n]) for n in names], title="Chosen answers before", unit="rows",
                show=lambda v: f"{v:,.0f}")  # fmt: skip
    right = bars(names, [float(after.get(n, 0)) for n in names], title="Kept", unit="rows", colors=[2] * len(names),
                 show=lambda v: f"{v:,.0f}")  # fmt: skip
    page.add(left, right)


def _teachers(page: Page, collected: Mapping[str, Any]) -> None:
    page.section("Teachers", "Agreement with humans is over rows that both answered; in brackets its 95 % interval.")
    rows = []
    for name, one in collected["teachers"].items():
        noise, price = one["noise"], one["price"]
        agreed = "n too small" if noise["value"] is None else (
            f"{noise['value']:.3f} ({noise['low']:.3f} to {noise['high']:.3f}, n {noise['n']})"
        )  # fmt: skip
        each = "$0" if one["usd_per_answer"] is None else f"${one['usd_per_answer']}"
        paid = "not priced" if price is None else f"${price['input']} / ${price['output']} per 1M, {price['since']}"
        who = f"{name} ({', '.join(one['models_reported']) or one['model']})"
        bad, licence = sum(one["unusable"].values()), one["licence"]["training"]
        rows.append([who, one["answers"], bad, f"${one['usd']}", each, paid, licence, agreed])
    head = ["teacher", "answers", "unusable", "spent", "per answer", "price in / out", "licence", "agrees with humans"]
    page.add(table(head, rows, text_columns=(0, 5, 6, 7)))
    lost = collected["lost_usd"]
    if lost != "0":
        page.text(
            f"${lost} of the spent dollars are of requests in flight when a process was killed, in full.", note=True
        )


def _rounds(page: Page, collected: Mapping[str, Any]) -> None:
    rounds = collected["rounds"]
    if not rounds:
        return
    page.section(
        "Learning curve over label spend", "Accuracy of the recipe's probe on held-out rows with a human label."
    )
    series = Series(
        "accuracy",
        [float(r["usd"]) for r in rounds],
        [r["accuracy"]["value"] for r in rounds],
        low=[r["accuracy"]["low"] for r in rounds],
        high=[r["accuracy"]["high"] for r in rounds],
    )
    page.add(
        line(
            [series],
            title="Accuracy over dollars",
            x=Axis("dollars spent on labels"),
            y=Axis("accuracy", lowest=0, highest=1),
        )
    )
    back = collected["payback"]
    text = f"{back['queries']:,} queries" if back["queries"] is not None else f"not known: {back['note']}"
    why = STOPPED.get(collected["stopped"], "all rows are labelled")
    page.text(f"Buying ended because {why}. Paid back after: {text}.")


def _dropped(page: Page, work: Work, drops: Sequence[tuple[str, Drop]], report: Mapping[str, Any]) -> None:
    page.section("Dropped, with examples", "All of them are in dropped.jsonl.")
    titles = {f["name"]: f["title"] for f in report["filters"]}
    for name, title in titles.items():
        mine = [drop for filter_name, drop in drops if filter_name == name]
        if not mine:
            continue
        shown = sorted(mine, key=lambda d: [x.reason for x in mine].index(d.reason))
        spread = _spread(shown)
        inner = _gallery(work, [(drop.row, f"{drop.reason}: {drop.text}") for drop in spread])
        page.add(details(f"{title}: {len(mine)} dropped, {len(spread)} shown", inner))
    if not drops:
        page.text("Nothing was dropped.")


def _spread(drops: Sequence[Drop]) -> list[Drop]:
    """Return at most EXAMPLES drops, taking the reasons in turn."""
    by_reason: dict[str, list[Drop]] = {}
    for drop in drops:
        by_reason.setdefault(drop.reason, []).append(drop)
    turns = [d for turn in range(EXAMPLES) for group in by_reason.values() for d in group[turn : turn + 1]]
    return turns[:EXAMPLES]


def _gallery(work: Work, items: Sequence[tuple[Labelled, str]]) -> str:
    cards = "".join(
        f'<div style="{_CARD}"><img alt="" style="{_IMAGE}" src="{thumbnail_uri(work.pictures[row.id])}">'
        f"<p><b>{escape(row.id)}</b> {escape(row.question)}</p><p class=note>{escape(text[:300])}</p></div>"
        for row, text in items
    )
    return f'<div style="{_GRID}">{cards}</div>'


def _kept_text(row: Labelled) -> str:
    sure = "" if row.confidence is None else f", confidence {row.confidence:.2f}"
    reason = "" if not row.rationale else f" - {row.rationale}"
    return f"{json.dumps(row.answer, ensure_ascii=False)} ({row.source}{sure}){reason}"


def _provenance(work: Work, report: Mapping[str, Any]) -> list[tuple[str, str]]:
    days = sorted({a.at[:10] for row in _labels(work) for a in row.answers})
    prompts = sorted({a.prompt_sha256 for row in _labels(work) for a in row.answers})
    return [
        ("digest of the kept rows", report["kept_sha256"]),
        ("answers bought", f"{days[0]} to {days[-1]}" if days else "none"),
        ("different prompts", f"{len(prompts)}; digests in each row"),
        ("prompt files, digest", work.prompts.digest),
        ("licences", ", ".join(f"{n} rows {name}" for name, n in report["licences"].items()) or "none"),
        ("seed", str(work.recipe.seed)),
    ]


def _labels(work: Work) -> list[Labelled]:
    from distill.labels import read_labels

    return read_labels(work.labels_path)
