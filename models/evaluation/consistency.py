"""Does the answer hold when the question is asked again, with another sampling seed, or in other words?

Every run is an evaluation of its own in a sub-folder of `out` (interruptible and resumable like any other), on the same
items.  Compared are the answers, normalized, not only whether they are right: two different wrong answers disagree.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from models.evaluation.answers import Answer
from models.evaluation.compare import read_evaluation
from models.evaluation.context import command
from models.evaluation.page import card_grid
from models.evaluation.run import evaluate, settings_of
from models.evaluation.score import is_right
from models.evaluation.settings import EvaluationSettings
from models.evaluation.target import is_version, served_version
from models.golden import GoldenItem, load_golden, normalize
from models.stats import bootstrap_mean, wilson
from models.support.errors import CheckFailed, UsageError
from models.support.files import atomic_write, write_json
from models.support.html import Page, table
from models.support.terminal import print_json, print_table

Run = Mapping[str, Answer]


def consistency(items: Sequence[GoldenItem], runs: Mapping[str, Run], *, seed: int = 0) -> dict[str, Any]:
    """Return how far the runs (name -> answers by item id) agree on `items`.

    Returns:
        `same_answer`: share of items that got one and the same answer in all runs (Wilson interval).
        `agreement`: mean over items of the share of pairs of runs that agree (bootstrap over items).
        `flips`: share of items that were right in one run and wrong in another.
        `majority`: accuracy of each item's most frequent answer (self-consistency, Wang et al. 2022); ties go to the
        answer that came first.
        `accuracy`: per run, with `spread`, the largest difference between two.

    An error is an answer of its own kind: it agrees with nothing, not with another error either.

    Raises:
        UsageError: fewer than two runs, or no items.
    """
    if len(runs) < 2 or not items:
        raise UsageError("needs at least two runs of at least one item", field="runs", value=len(runs))
    same, flipped, agreement, majority = 0, 0, [], 0
    right = {name: sum(is_right(item, run.get(item.id)) for item in items) for name, run in runs.items()}
    for item in items:
        given = [_text(run.get(item.id), index) for index, run in enumerate(runs.values())]
        pairs = [a == b for a, b in itertools.combinations(given, 2)]
        agreement.append(sum(pairs) / len(pairs))
        same += all(pairs)
        judged = [is_right(item, run.get(item.id)) for run in runs.values()]
        flipped += any(judged) and not all(judged)
        majority += judged[given.index(Counter(given).most_common(1)[0][0])]
    n = len(items)
    shares = [r / n for r in right.values()]
    return {
        "runs": len(runs),
        "items": n,
        "same_answer": wilson(same, n).as_dict(),
        "agreement": bootstrap_mean(agreement, seed=seed).as_dict(),
        "flips": wilson(flipped, n).as_dict(),
        "majority": wilson(majority, n).as_dict(),
        "accuracy": {name: wilson(r, n).as_dict() for name, r in right.items()},
        "spread": max(shares) - min(shares),
    }


def _write_page(
    path: Path, result: Mapping[str, Any], items: Sequence[GoldenItem], groups: Mapping[str, Mapping[str, Run]]
) -> None:
    """Write one HTML page: every figure with its interval, and the answers that were right in one run and not in
    another, beside their images."""
    page = Page(f"Consistency of {result['model']}", f"{result['golden']}, {len(items)} items")
    for name, found in result["groups"].items():
        about = f"at temperature {result['temperature']:g}" if name == "repeats" else "; ".join(result["variants"])
        page.section(f"{name.capitalize()}: {found['runs']} runs", about)
        rows = [[text, _figure(found[key]), found[key]["n"]] for key, text in FIGURES.items()]
        rows += [[f"accuracy, {run}", _figure(figure), figure["n"]] for run, figure in found["accuracy"].items()]
        rows.append(["spread of accuracy", f"{100 * found['spread']:.1f} points", ""])
        page.add(table(["figure", "value (95 % interval)", "n"], rows))
        cards = []
        for item in items:
            wrong = [a for run in groups[name].values() if (a := run.get(item.id)) and not is_right(item, a)]
            if 0 < len(wrong) < len(groups[name]):
                cards.append((item, wrong[0]))
        page.text(f"{len(cards)} items are right in one run and wrong in another; a wrong answer of each, at most 24.")
        page.add(card_grid(cards[:24]))
    page.code(" ".join(result["command"]))
    with atomic_write(path) as file:
        file.write(page.render())


FIGURES = {
    "same_answer": "one and the same answer in all runs",
    "agreement": "two runs agree, mean over items",
    "flips": "right in one run and wrong in another",
    "majority": "the most frequent answer is right",
}


def _figure(figure: Mapping[str, Any]) -> str:
    return f"{100 * figure['value']:.1f} % ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


def _text(answer: Answer | None, index: int) -> str:
    if answer is None or answer.text is None:
        return f"\0no answer in run {index}"
    return normalize(answer.text) or answer.text


def consistency_command(args: argparse.Namespace) -> int:
    """`fovea models consistency`: run the repeats and the wordings, print how far they agree."""
    if args.repeats < 1:
        raise UsageError("must be at least 1", field="repeats", value=args.repeats)
    if args.repeats + len(args.variant) < 2:
        raise UsageError("nothing to compare", field="repeats", value=args.repeats, fix="at least 2, or a --variant")
    if is_version(args.url):
        with served_version(args.url, args.store) as (url, name):
            return _ask_again(args, settings_of(args, url=url, model=name))
    return _ask_again(args, settings_of(args))


def _ask_again(args: argparse.Namespace, base: EvaluationSettings) -> int:
    repeats = {
        f"repeat-{i}": replace(base, temperature=args.temperature, sampling_seed=base.seed + i)
        for i in range(args.repeats)
    }
    wordings = {f"wording-{i}": replace(base, prompt=text) for i, text in enumerate(args.variant, 1)}
    answers: dict[str, Run] = {}
    wall_s = 0.0
    left = base.max_usd  # one spend limit for all runs together
    for name, settings in {**repeats, **wordings}.items():
        report = evaluate(replace(settings, out=base.out / name, max_usd=left))
        if report["run"]["stopped"] is not None:
            raise CheckFailed(f"{name} stopped early: {report['run']['stopped']}", field="max-usd", value=str(left))
        if left is not None:
            left -= Decimal(report["run"]["spent_usd"])
        answers[name] = read_evaluation(base.out / name).answers
        wall_s += report["run"]["wall_s"]
    items = load_golden(base.golden).sample(base.limit, base.seed)
    first = {"repeat-0": answers["repeat-0"]}
    groups = {
        "repeats": {name: answers[name] for name in repeats},
        "wordings": first | {name: answers[name] for name in wordings},
    }
    found = {name: consistency(items, runs, seed=base.seed) for name, runs in groups.items() if len(runs) > 1}
    result = {
        "kind": "consistency",
        "model": base.target,
        "golden": base.golden,
        **{name: report[name] for name in ("target", "seed", "versions", "hardware")},
        "golden_digest": report["golden"]["digest"],
        "command": command(),
        "wall_s": round(wall_s, 3),
        "temperature": args.temperature,
        "variants": args.variant,
        "groups": found,
    }
    write_json(base.out / "consistency.json", result)
    _write_page(base.out / "consistency.html", result, items, groups)
    if args.json:
        print_json(result)
        return 0
    head = ["", "runs", "items", "same answer", "agreement", "flips", "majority right", "accuracy, spread"]
    rows = []
    for name, group in found.items():
        shown = [f"{100 * group[k]['value']:.1f} %" for k in ("same_answer", "agreement", "flips", "majority")]
        rows.append([name, group["runs"], group["items"], *shown, f"{100 * group['spread']:.1f} points"])
    print_table(head, rows)
    return 0
