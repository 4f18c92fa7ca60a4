"""`fovea distill`: arguments and printing, without the work."""

from __future__ import annotations

import argparse
import signal
from pathlib import Path
from typing import Any

from models.support.terminal import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands."""
    sub = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text, run in (
        ("run", "all steps that the recipe has a section for", _run),
        ("collect", "ask the teachers, within the dollars; goes on where it stopped and buys nothing twice", _run),
        ("filter", "drop what should not be trained on, and write the data card", _run),
        ("train", "train the student on the kept rows; goes on from its last checkpoint", _run),
        ("evaluate", "serve student, teacher and base, compare them on held-out truth, write the report", _run),
        ("export", "check the engine against the weights, register with lineage, set the gate", _run),
        ("plan", "what collect would buy, and the most it can cost; asks nobody", _plan),
        ("schema", "print the JSON Schema of a recipe", _schema),
    ):
        child = sub.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name != "schema":
            child.add_argument("recipe", type=Path, help="the recipe (YAML)")
            child.add_argument("--out", type=Path, help="folder of the work (runs/distill/NAME)")
        child.add_argument("--json", action="store_true", help="print JSON on stdout")
        child.set_defaults(run=run)


def _run(args: argparse.Namespace) -> int:
    from distill.steps import STEPS, run_steps, wanted
    from distill.work import open_work

    signal.signal(signal.SIGTERM, _interrupted)  # as Ctrl-C: what is served for us ends with us
    work = open_work(args.recipe, args.out)
    names = wanted(work) if args.action == "run" else [args.action]
    try:
        reports = run_steps(work, names)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what was answered is kept, and so is the last checkpoint") from None
    if args.json:
        print_json(reports if args.action == "run" else reports[args.action])
    else:
        for name, report in reports.items():
            print(STEPS[name].summary(report))
    return 0


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def _plan(args: argparse.Namespace) -> int:
    from distill.collect.plan import plan
    from distill.work import open_work

    found: dict[str, Any] = plan(open_work(args.recipe, args.out))
    if args.json:
        print_json(found)
        return 0
    print(
        f"{found['rows']} rows to ask, {found['answers_wanted']} answers; {found['answers_known']} are there already."
    )
    for name, one in found["teachers"].items():
        print(f"  {name}: {one['missing']} answers to buy, at most ${one['at_most_usd']}")
    if not found["within_limit"]:
        print(f"The limit is ${found['limit_usd']} (${found['spent_usd']} spent): buying may stop before the end.")
    return 0


def _schema(args: argparse.Namespace) -> int:
    from distill.recipe import recipe_schema

    print_json(recipe_schema())
    return 0
