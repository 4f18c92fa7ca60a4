"""`fovea models evaluate | compare | consistency | scorecard`: arguments; the work is imported when it is asked for."""

from __future__ import annotations

import argparse
from pathlib import Path

from models.support.errors import UsageError
from models.support.terminal import print_json, print_table, whole_number


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="endpoint (http://127.0.0.1:8000/v1), version (NAME@live) or a vendor's model")
    parser.add_argument("--store", help="registry of the version (FOVEA_REGISTRY, or runs/registry)")
    parser.add_argument("--model", help="the model's name at the endpoint; not for a vendor")
    parser.add_argument("--golden", required=True, help="easy-vqa, receipts, modems, a folder or a .jsonl file")
    parser.add_argument("--limit", type=whole_number, help="ask that many items, drawn at random by --seed")
    parser.add_argument("--seed", type=whole_number, default=0, help="of the draw and of the bootstrap (0)")
    parser.add_argument("--concurrency", type=whole_number, default=32, help="requests in flight (32)")
    parser.add_argument("--max-tokens", type=whole_number, default=16, help="longest answer, in tokens (16)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for one answer (120)")
    parser.add_argument("--api-key", help="bearer token (default: OPENAI_API_KEY, when it is set)")
    parser.add_argument("--out", type=Path, required=True, help="folder for answers.jsonl, report.json and report.html")
    parser.add_argument("--max-usd", metavar="DOLLARS", help="spend limit for a vendor's model (required there)")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="your own price rows")
    parser.add_argument("--vendor-url", help="another address of the vendor's API")
    parser.add_argument("--usd-per-hour", metavar="DOLLARS", help="price of the machine that serves, for $ per answer")
    parser.add_argument("--fresh", action="store_true", help="ask everything again instead of continuing in --out")
    parser.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    from models.evaluation.run import run_command

    return run_command(args)


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", type=Path, help="folder of an evaluation: the one to beat")
    parser.add_argument("second", type=Path, help="folder of another evaluation on the same golden set")
    parser.add_argument(
        "--max-drop", type=float, metavar="SHARE", help="fail (exit 1) unless the drop is shown to be less"
    )
    parser.add_argument("--seed", type=whole_number, default=0, help="of the bootstrap (0)")
    parser.add_argument("--out", type=Path, help="folder for report.json and report.html")
    parser.set_defaults(run=_compare)


def _compare(args: argparse.Namespace) -> int:
    """Print the paired comparison; exit code 1 when `--max-drop` is not met."""
    from models.evaluation.compare import compare, read_evaluation, verdict, write_comparison_page
    from models.support.files import write_json

    if args.max_drop is not None and not 0 <= args.max_drop < 1:
        raise UsageError("must lie between 0 and 1", field="max-drop", value=args.max_drop, fix="0.01 is one point")
    first, second = read_evaluation(args.first), read_evaluation(args.second)
    result = compare(first, second, seed=args.seed)
    holds, sentence = verdict(result, args.max_drop)
    result["verdict"] = {"holds": holds, "max_drop": args.max_drop, "text": sentence}
    if args.out is not None:
        write_json(args.out / "report.json", result)
        write_comparison_page(args.out / "report.html", result, first, second, sentence, holds)
    if args.json:
        print_json(result)
    else:
        print(sentence)
        for name, group in result["by_category"].items():
            d = group["difference"]
            interval = f"{100 * d['low']:+.2f} to {100 * d['high']:+.2f}"
            print(f"  {name:<12}{100 * d['value']:+.2f} points ({interval}), n = {d['n']}")
        print(f"lost {len(result['flips']['lost'])}, won {len(result['flips']['won'])}")
    return 0 if holds else 1


def add_scorecard(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("evaluations", nargs="+", type=Path, help="folders of evaluations on one golden set")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="YAML of dimension: weight (equal without)")
    parser.add_argument("--store", help="registry of evaluated versions, for governance (FOVEA_REGISTRY)")
    parser.set_defaults(run=_scorecard)


def _scorecard(args: argparse.Namespace) -> int:
    from models.evaluation.compare import read_evaluation
    from models.evaluation.scorecard import add_governance, equal_weights, load_weights, scorecard

    candidates = [read_evaluation(folder) for folder in args.evaluations]
    add_governance(candidates, args.store)
    weights = equal_weights(candidates) if args.weights is None else load_weights(args.weights)
    result = scorecard(candidates, weights)
    if args.json:
        print_json(result)
        return 0
    head = ["model", *(f"{name} ({weight:.0%})" for name, weight in weights.items()), "total", "dominated by"]
    rows = []
    for row in result["candidates"]:
        shown = [
            "no figure" if row["values"][n] is None else f"{row['values'][n]:.4g} -> {row['scores'][n]:.2f}"
            for n in weights
        ]
        rows.append([row["model"], *shown, f"{row['total']:.3f}", ", ".join(row["dominated_by"])])
    print_table(head, rows)
    return 0


def add_consistency(parser: argparse.ArgumentParser) -> None:
    add_evaluate(parser)
    parser.add_argument("--repeats", type=whole_number, default=5, help="runs with another sampling seed each (5)")
    parser.add_argument("--temperature", type=float, default=0.0, help="of the repeated runs (0)")
    parser.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="TEXT",
        help="another wording, with {question} in it; repeatable",
    )
    parser.set_defaults(run=_consistency)


def _consistency(args: argparse.Namespace) -> int:
    from models.evaluation.consistency import consistency_command

    return consistency_command(args)
