"""`fovea models recommend`: flags or questions, and printing."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from models.support.errors import UsageError
from models.support.terminal import print_json

if TYPE_CHECKING:
    from models.recommend import Recommendation


def add_recommend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--use", help="documents, reasoning, coding, support, cataloging, manufacturing or classification"
    )
    parser.add_argument("--on-premises", help="must data stay on premises: no (default), some or yes")
    parser.add_argument("--latency", help="relaxed (default) or sub-second")
    parser.add_argument("--offline", action=argparse.BooleanOptionalAction, help="must work without a network")
    parser.add_argument("--queries", type=int, metavar="N", help="queries a month (10,000)")
    parser.add_argument("--enterprise-support", action=argparse.BooleanOptionalAction, help="a vendor's SLA is needed")
    parser.add_argument("--corpus", action=argparse.BooleanOptionalAction, help="a corpus of documents is searched")
    parser.add_argument("--scope", help="broad (default), mixed or narrow task")
    parser.add_argument("--high-stakes", action=argparse.BooleanOptionalAction, help="high-risk or regulated decisions")
    parser.add_argument("--ask", action="store_true", help="ask every question that no flag answers")
    parser.set_defaults(run=run_recommend)


def run_recommend(args: argparse.Namespace) -> int:
    from models.recommend import QUESTIONS, Answers, recommend

    given = {name: getattr(args, name) for name in QUESTIONS if getattr(args, name) is not None}
    if args.ask or (not given and sys.stdin.isatty() and not args.json):
        given |= _ask([name for name in QUESTIONS if name not in given])
    if "use" not in given:
        fix = "--use documents, say; or --ask for the questions"
        raise UsageError("is required", field="use", fix=fix)
    result = recommend(Answers(**given))
    if args.json:
        print_json(result.as_dict())
    else:
        _print_recommendation(result)
    return 0


def _ask(names: list[str]) -> dict[str, Any]:
    """Ask on the terminal; an empty line takes the default, a wrong answer is asked again."""
    from models.recommend import CHOICES, QUESTIONS, Answers

    defaults = Answers(use="documents")
    found: dict[str, Any] = {}
    for name in names:
        default = getattr(defaults, name)
        options = CHOICES.get(name) or (("yes", "no") if isinstance(default, bool) else ())
        shown = {True: "yes", False: "no"}[default] if isinstance(default, bool) else default
        choice = f" ({'/'.join(options)})" if options else ""
        while name not in found:
            try:
                text = input(f"{QUESTIONS[name]}?{choice} [{shown}] ").strip().casefold() or str(shown)
            except EOFError:
                fix = "answer all questions, or give flags"
                raise UsageError("the questions ended early", field=name, fix=fix) from None
            if isinstance(default, bool):
                if text in ("y", "yes", "n", "no"):
                    found[name] = text.startswith("y")
            elif isinstance(default, int):
                digits = text.replace(",", "")
                if digits.isdigit() and int(digits) > 0:
                    found[name] = int(digits)
            elif text in options:
                found[name] = text
            if name not in found:
                print(f"  one of {', '.join(options)}" if options else "  a whole number above 0")
    return found


def _print_recommendation(r: Recommendation) -> None:
    from models.recommend import ARCHITECTURES, PATTERNS

    title, trade = ARCHITECTURES[r.architecture]
    print(f"model         {r.primary.name} ({r.primary.kind})")
    for role, option in r.companions.items():
        print(f"{'':<13} {option.name} for: {role}")
    print(f"runner-up     {r.runner_up.name if r.runner_up else 'none'}")
    print(f"pattern       {r.pattern}: {PATTERNS[r.pattern]}")
    print(f"architecture  {title}: {trade}")
    print("why")
    for reason in r.why:
        print(f"  {reason}")
    print("what would change it")
    for change in r.changes or ["no single other answer"]:
        print(f"  {change}")
    for note in r.notes:
        print(f"note: {note}")
    for option in (r.primary, *r.companions.values()):
        if option.catalog:
            print(f"next: fovea models fit {option.catalog} --gpu H100 --image 1024x1024 --concurrency 16")
            break
