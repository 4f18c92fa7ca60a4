"""The one report of a distillation, HTML and JSON: what it cost, what came out, and for whom it pays."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping
from decimal import Decimal
from html import escape
from pathlib import Path
from typing import Any

from distill.evaluate.page import calibration, cascade, interval, pictures, seeds, share
from distill.images import thumbnail_uri
from distill.work import Work
from models.cost.ledger import usd
from models.golden import load_golden
from models.support.files import atomic_write, write_json
from models.support.html import Axis, Page, Series, details, line, table

STEPS = ("collect", "filter", "train", "evaluate", "export")
EXAMPLES = 6
NAMES = {"keep": "accuracy kept", "faster": "times faster (P50)", "cheaper": "dollars saved per query"}
_GRID = "display:grid;grid-template-columns:repeat(auto-fill,minmax(170px,1fr));gap:12px"
_CARD = "break-inside:avoid;border:1px solid var(--rule);border-radius:6px;background:var(--card);padding:8px"
_IMAGE = "width:100%;max-height:130px;object-fit:contain;image-rendering:pixelated;display:block"


def write_report(work: Work) -> dict[str, Any]:
    """Write `report.json` and `report.html` in the folder of the work from the steps' reports; return the former."""
    steps = {name: _read(work.out / name / "report.json") for name in STEPS}
    report = {
        "kind": "distillation",
        "recipe": work.recipe.name,
        "seed": work.recipe.seed,
        "made": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "money": money(steps),
        **{name: found for name, found in steps.items() if found is not None},
    }
    write_json(work.out / "report.json", report)
    with atomic_write(work.out / "report.html") as file:
        file.write(report_page(work, report))
    return report


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None  # the step did not run: labels may come from elsewhere
    return found


def money(steps: Mapping[str, dict[str, Any] | None]) -> dict[str, Any]:
    """Return dollars of labels and training, and after how many queries they are paid back."""
    collect, train, evaluate = steps["collect"], steps["train"], steps["evaluate"]
    labels = Decimal(collect["spent_usd"]) if collect else Decimal(0)
    training = Decimal(train["usd"]) if train and train["usd"] is not None else None
    saved = None
    if evaluate:
        teacher, student = (evaluate["arms"][name]["usd_per_query"] for name in ("teacher", "student"))
        saved = None if teacher is None or student is None else Decimal(teacher) - Decimal(student)
    total = labels + (training or 0)
    return {
        "labels_usd": f"{labels:f}",
        "training_usd": None if training is None else f"{training:f}",
        "saved_usd_per_query": None if saved is None else f"{saved:f}",
        "payback_queries": None
        if saved is None or saved <= 0
        else int((total / saved).to_integral_value("ROUND_CEILING")),
    }


def report_page(work: Work, report: Mapping[str, Any]) -> str:
    """Return the page."""
    page = Page(f"Distillation: {report['recipe']}", work.recipe.task.description)
    evaluate, train = report["evaluate"], report.get("train")
    _verdict(page, evaluate)
    _tiles(page, report, evaluate)
    _arms(page, evaluate)
    _against(page, evaluate)
    if train is not None:
        _training(page, work, report, train)
    seeds(page, evaluate)
    pictures(page, evaluate)
    calibration(page, evaluate)
    cascade(page, evaluate)
    _examples(page, evaluate)
    _provenance(page, work, report)
    return page.render()


def _verdict(page: Page, evaluate: Mapping[str, Any]) -> None:
    targets = evaluate["targets"]
    missed = [NAMES[name] for name, one in targets.items() if not one["holds"]]
    text = "; ".join(
        f"{NAMES[name]}: {'not measured' if one['measured'] is None else format(one['measured'], '.3f')} "
        f"(wanted {one['wanted']:g})"
        for name, one in targets.items()
    )
    page.verdict("ok" if not missed else "warn", "every target holds" if not missed else f"missed: {', '.join(missed)}",
                 text)  # fmt: skip


def _tiles(page: Page, report: Mapping[str, Any], evaluate: Mapping[str, Any]) -> None:
    spent, against = report["money"], evaluate["student_against"]["teacher"]
    ratio, faster = against["accuracy_ratio"], against["p50_ratio"]
    saved = "-" if against["usd_saved"] is None else f"{against['usd_saved']:.0%}"
    back = "never" if spent["payback_queries"] is None else f"{spent['payback_queries']:,}"
    student = evaluate["arms"]["student"]
    page.tiles(
        [
            ("student's accuracy", share(student["accuracy"]), interval(student["accuracy"])),
            ("of the teacher's", share(ratio), interval(ratio)),
            ("P50, teacher over student", "-" if faster is None else f"{faster['value']:.1f}x",
             "" if faster is None else f"{faster['low']:.1f} to {faster['high']:.1f}"),
            ("saved per query", saved, "self-hosted: by time"),
            ("labels", usd(spent["labels_usd"]), "bought from the teachers"),
            ("training", "-" if spent["training_usd"] is None else usd(spent["training_usd"]), "of the machine"),
            ("paid back after", back, "queries"),
        ]
    )  # fmt: skip


def _arms(page: Page, evaluate: Mapping[str, Any]) -> None:
    page.section(
        "Teacher to student",
        f"The same items, {evaluate['concurrency']} users each, one after the other on one machine at "
        f"${evaluate['usd_per_hour']} an hour. In brackets 95 % intervals.",
    )
    rows = []
    for name, arm in evaluate["arms"].items():
        rows.append(
            [
                name,
                "-" if arm["parameters"] is None else f"{arm['parameters'] / 1e6:.2f} M",
                "-" if arm["bytes"] is None else f"{arm['bytes'] / 1e6:.1f}",
                f"{share(arm['accuracy'])} ({interval(arm['accuracy'])}, n {arm['accuracy']['n']})",
                _ms(arm["latency_ms"]["p50"]),
                _ms(arm["latency_ms"]["p95"]),
                "-" if arm["usd_per_query"] is None else usd(arm["usd_per_query"]),
                "-" if arm["usd_per_right_answer"] is None else usd(arm["usd_per_right_answer"]),
            ]
        )
    page.add(table(["", "weights", "MB", "accuracy", "P50", "P95", "$/query", "$/right answer"], rows))


def _against(page: Page, evaluate: Mapping[str, Any]) -> None:
    for other, found in evaluate["student_against"].items():
        page.section(f"Student minus {other}", "Paired over the items that both were asked; p: McNemar's exact test.")
        rows = []
        for golden, compared in found["sets"].items():
            difference = compared["difference"]
            p = f"{compared['mcnemar']['p_value']:.3g}"
            rows.append([golden, "all", *_three(compared["first"], compared["second"], difference), p])
            for category, one in compared["by_category"].items():
                pair = {"accuracy": one["first"]}, {"accuracy": one["second"]}
                rows.append(["", category, *_three(*pair, one["difference"]), ""])
        page.add(table(["set", "category", other, "student", "difference", "p"], rows, text_columns=(0, 1)))


def _three(first: Mapping[str, Any], second: Mapping[str, Any], difference: Mapping[str, Any]) -> list[str]:
    gap = "n too small" if difference["value"] is None else (
        f"{difference['value']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f}, n {difference['n']})"
    )  # fmt: skip
    return [share(first["accuracy"]), share(second["accuracy"]), gap]


def _training(page: Page, work: Work, report: Mapping[str, Any], train: Mapping[str, Any]) -> None:
    kept = f"{train['rows']:,} rows, {train['parameters_trained']:,} of {train['parameters']:,} weights"
    page.section("Training", f"{train['method']}, {train['steps']:,} steps on {kept}, {train['seconds']:,.0f} s.")
    path = work.out / "train" / "curve.jsonl"
    if path.is_file():
        from distill.train.curve import curves
        from distill.train.state import Point, State

        points = [Point(**json.loads(row)) for row in path.read_text("utf-8").splitlines()]
        page.add(*curves(State(curve=points)))
    collect = report.get("collect") or {}
    for teacher, one in (collect.get("teachers") or {}).items():
        noise = one["noise"]
        if noise["value"] is not None:
            page.text(f"{teacher} agrees with people on {share(noise)} ({interval(noise)}) of {noise['n']} rows.")
    if collect.get("rounds"):
        bought = collect["rounds"]
        spend = Series("accuracy", [float(r["usd"]) for r in bought], [r["accuracy"]["value"] for r in bought])
        page.add(line([spend], title="Accuracy of the probe over dollars of labels", x=Axis("dollars"),
                      y=Axis("accuracy", lowest=0, highest=1)))  # fmt: skip


def _examples(page: Page, evaluate: Mapping[str, Any]) -> None:
    from models.evaluation.compare import read_evaluation

    page.section("Where they differ", "What the teacher had right and the student wrong, and the other way round.")
    for golden, compared in evaluate["student_against"]["teacher"]["sets"].items():
        items = {item.id: item for item in load_golden(compared["golden"]["spec"]).items}
        sides = [read_evaluation(Path(compared[side]["folder"])).answers for side in ("first", "second")]
        for title, ids in (("lost", compared["flips"]["lost"]), ("won", compared["flips"]["won"])):
            cards = "".join(
                f'<div style="{_CARD}"><img alt="" style="{_IMAGE}" src="{thumbnail_uri(items[i].image)}">'
                f"<p>{escape(items[i].question)}</p><p class=note>truth {escape(_text(items[i].expected))}<br>"
                f"teacher {escape(_said(sides[0], i))}<br>student {escape(_said(sides[1], i))}</p></div>"
                for i in ids[:EXAMPLES]
            )
            if cards:
                shown = min(EXAMPLES, len(ids))
                page.add(details(f"{golden}: {title} {len(ids)}, {shown} shown", f'<div style="{_GRID}">{cards}</div>'))


def _said(answers: Mapping[str, Any], item: str) -> str:
    answer = answers.get(item)
    return "nothing" if answer is None or answer.text is None else answer.text[:120]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _provenance(page: Page, work: Work, report: Mapping[str, Any]) -> None:
    page.section("Provenance")
    evaluate, export = report["evaluate"], report.get("export")
    rows = [("seed", str(report["seed"])), ("machine", json.dumps(evaluate["hardware"])),
            ("versions", ", ".join(f"{k} {v}" for k, v in evaluate["versions"].items()))]  # fmt: skip
    rows += [(f"{name}: weights", arm["digest"]) for name, arm in evaluate["arms"].items() if arm["digest"]]
    if report.get("filter"):
        rows.append(("rows trained on, digest", report["filter"]["kept_sha256"]))
    if export is not None:
        gap = export["parity"]
        differ = f"probabilities differ by {gap['worst']:.4f} at most, {gap['mean']:.5f} in the mean"
        same = f"the same likeliest token in {gap['greedy']:.1%} of {gap['steps']} steps"
        rows.append(("transformers and vLLM", f"{differ}; {same}"))
        rows.append(("registered as", ", ".join([export["version"], *(v["version"] for v in export["also"].values())])))
        rows.append(("promotion", "; ".join(export["refused_for"]) or "nothing stands before it"))
    page.add(table(["", ""], rows, text_columns=(0, 1)))


def _ms(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "n too small"
    return f"{figure['value']:.0f} ms ({figure['low']:.0f} to {figure['high']:.0f})"
