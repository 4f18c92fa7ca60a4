"""`fovea models ...`: evaluate a model, count image tokens, look up prices, inspect golden sets."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.catalog_cli import add_list, add_show
from models.evaluation_cli import add_compare, add_consistency, add_evaluate, add_scorecard
from models.fit_cli import add_fit
from models.recommend_cli import add_recommend
from models.registry_cli import add_promote, add_registry, add_rollback
from models.support.errors import UsageError
from models.support.terminal import print_json, print_table, whole_number

# Every sub-command: name -> (help, function that adds its arguments and sets `run`).  Imports are inside the functions.
Adder = Callable[[argparse.ArgumentParser], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands of `fovea models` to `parser`."""
    sub = parser.add_subparsers(dest="models_command", metavar="COMMAND", required=True)
    for name, (text, add) in COMMANDS.items():
        child = sub.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        add(child)
        child.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def day(text: str) -> dt.date:
    """argparse type: an ISO date."""
    return dt.date.fromisoformat(text)


def _add_image_tokens(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", help="vendor or open model, for example gpt-4o or Qwen/Qwen2.5-VL-7B-Instruct"
    )
    parser.add_argument("--width", type=whole_number, help="pixels")
    parser.add_argument("--height", type=whole_number, help="pixels")
    parser.add_argument("--detail", default="high", help="low, high (default) or original")
    parser.add_argument("--list", action="store_true", help="list the known models instead")
    parser.set_defaults(run=_image_tokens)


def _image_tokens(args: argparse.Namespace) -> int:
    from models.image_tokens import image_tokens, known_models

    if args.list:
        rows = [image_tokens(m, 1024, 1024, args.detail) for m in known_models()]
        if args.json:
            print_json({"models": [r.as_dict() for r in rows]})
        else:
            print_table(["model", "rule", "1024x1024"], [[r.model, r.rule, r.tokens] for r in rows])
        return 0
    for name in ("model", "width", "height"):
        if getattr(args, name) is None:
            fix = "fovea models image-tokens gpt-4o --width 1024 --height 768"
            raise UsageError("is required", field=name, fix=fix)
    result = image_tokens(args.model, args.width, args.height, args.detail)
    if args.json:
        print_json(result.as_dict())
    else:
        print(f"{result.tokens} tokens  ({result.model}, {result.width}x{result.height}, detail {result.detail})")
        print(f"rule {result.rule}, {result.source}" + (f"\nnote: {result.note}" if result.note else ""))
    return 0


def _add_prices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prices", type=Path, metavar="FILE", help="your own rows, which replace the shipped ones")
    parser.add_argument("--set", default="list", help="row set: list (vendors' prices, default), article-playbook")
    parser.add_argument("--on", type=day, metavar="YYYY-MM-DD", help="prices in force on that day (today)")
    parser.add_argument("--model", help="one model only")
    parser.add_argument("--machines", nargs="?", const="", metavar="FILE", help="GPU and machine prices instead")
    parser.set_defaults(run=_prices)


def _prices(args: argparse.Namespace) -> int:
    if args.machines is not None:
        return _machine_prices(args)
    from models.prices import STALE_AFTER_DAYS, load_prices

    book = load_prices(args.prices)
    if args.model:
        rows = [book.find(args.model, on=args.on, set=args.set)]
    else:
        if args.set not in book.sets:
            raise UsageError("unknown row set", field="set", value=args.set, fix=f"one of {', '.join(book.sets)}")
        rows = book.current(on=args.on, set=args.set)
    stale = [row for row in rows if row.is_stale()]
    if args.json:
        print_json(
            {
                "unit": "USD per 1M tokens",
                "rows": [{**row.model_dump(exclude_none=True), "stale": row.is_stale()} for row in rows],
                "stale": [row.model for row in stale],
            }
        )
        return 0
    print("US dollars per 1M tokens; * source last read more than 90 days ago")
    head = [
        "vendor",
        "model",
        "input",
        "cached",
        "output",
        "batch in",
        "batch out",
        "long input",
        "since",
        "read",
        "source",
    ]
    table: list[list[object]] = []
    for row in rows:
        batch = (
            (None, None) if row.batch_factor is None else (row.input * row.batch_factor, row.output * row.batch_factor)
        )
        long = row.long_context
        table.append(
            [
                row.vendor,
                row.model,
                row.input,
                row.cached,
                row.output,
                *(None if b is None else format(b.normalize(), "f") for b in batch),
                None if long is None else f">{long.above // 1000}k {long.input}/{long.output}",
                row.effective_from,
                f"{row.read}{' *' if row.is_stale() else ''}",
                row.source,
            ]
        )
    print_table(head, table)
    if stale:
        print(f"{len(stale)} of {len(rows)} rows read over {STALE_AFTER_DAYS} days ago: check them before publishing")
    return 0


def _machine_prices(args: argparse.Namespace) -> int:
    from models.machines import load_machines

    rows = load_machines(args.machines or None).rows
    if args.json:
        dumped = [{**row.model_dump(exclude_none=True), "stale": row.is_stale()} for row in rows]
        print_json({"unit": "USD per hour", "rows": dumped})
        return 0
    print("US dollars per hour of one GPU or machine; * source last read more than 90 days ago")
    head = ["machine", "provider", "kind", "from", "to", "read", "source"]
    print_table(
        head,
        [
            [r.machine, r.provider, r.kind, r.usd_per_hour, r.high, f"{r.read}{' *' if r.is_stale() else ''}", r.source]
            for r in rows
        ],
    )
    return 0


def _add_cost(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--forecast", type=Path, metavar="FILE", help="what is expected of a month (YAML, docs/money.md)"
    )
    parser.add_argument("--against", action="append", metavar="MODEL", help="vendor model to compare with (repeatable)")
    parser.add_argument("--prices", type=Path, metavar="FILE", help="your own price rows")
    parser.add_argument("--machines", type=Path, metavar="FILE", help="your own machine prices, for serving.machine")
    parser.add_argument("--set", default="list", help="row set of the price book: list (default), article-playbook")
    parser.add_argument("--articles", action="store_true", help="the articles' worked examples instead, recomputed")
    parser.set_defaults(run=_cost)


def _cost(args: argparse.Namespace) -> int:
    from models.cost import load_forecast, report

    if args.articles:
        return report.print_articles(args.json)
    if args.forecast is None:
        raise UsageError("is required", field="forecast", fix="fovea models cost --forecast forecast.yaml")
    from models.machines import load_machines
    from models.prices import load_prices

    book = load_prices(args.prices).only(args.set)
    forecast = load_forecast(args.forecast, load_machines(args.machines))
    return report.print_forecast(forecast, args.against or [], book, args.json)


def _add_golden(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("set", nargs="+", metavar="[check] SET", help="a shipped set, a folder or a .jsonl file")
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write the set as golden.jsonl with its images")
    parser.add_argument("--against", metavar="SET", help="another set, a training set say: report what leaks from it")
    parser.set_defaults(run=_golden)


def _golden(args: argparse.Namespace) -> int:
    from models.golden import load_golden
    from models.golden.check import check_golden, summary
    from models.golden.sets import export

    words = args.set[1:] if args.set[0] == "check" and len(args.set) > 1 else args.set
    if len(words) != 1:
        raise UsageError("one set at a time", field="set", value=" ".join(words))
    golden = load_golden(words[0])
    if args.export is not None:
        export(golden, args.export)
    findings = check_golden(golden, load_golden(args.against) if args.against else None)
    result: dict[str, Any] = summary(golden, findings)
    if args.json:
        print_json(result)
    else:
        for key, value in result.items():
            if key != "findings" and value:
                print(f"{key:<10}  {value}")
        for finding in findings:
            print(f"{finding.kind}: {finding.text}: {', '.join(finding.ids)}")
        print(f"{len(findings)} findings")
    return 1 if findings else 0


def _add_baselines(parser: argparse.ArgumentParser) -> None:
    from models.baselines_live import add_arguments as add

    add(parser)


def _add_prove(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("variants", nargs="*", metavar="NAME", help="models of the catalog (all that have a recipe)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the rows there (models/proof/results.json)")
    parser.set_defaults(run=_prove)


def _prove(args: argparse.Namespace) -> int:
    from models.proof.run import prove_command

    return prove_command(args)


COMMANDS: dict[str, tuple[str, Adder]] = {
    "list": ("list the catalog of model families", add_list),
    "show": ("show what is known about a model family, with sources", add_show),
    "fit": ("work out what fits on a GPU: weights, KV cache, activations", add_fit),
    "recommend": ("recommend a model and an architecture, and say what would change it", add_recommend),
    "evaluate": ("ask a served model a golden set and score the answers", add_evaluate),
    "compare": ("compare two evaluations item by item", add_compare),
    "baselines": ("measure the vendors' models where a key is there, price them elsewhere", _add_baselines),
    "scorecard": ("weigh several evaluations against one another", add_scorecard),
    "consistency": ("ask a golden set again and again, and worded differently: does the answer hold", add_consistency),
    "registry": ("versions: register, approve, verify, compare; what one must show to serve", add_registry),
    "promote": ("move a version on: canary, live, retired", add_promote),
    "rollback": ("put the version back that was live before", add_rollback),
    "prove": ("start vLLM on a tiny checkpoint of every architecture and ask it", _add_prove),
    "image-tokens": ("count the input tokens of an image by a vendor's rule", _add_image_tokens),
    "prices": ("list what the vendors charge, and since when", _add_prices),
    "cost": ("work out what an accepted answer costs, and when own machines pay", _add_cost),
    "golden": ("describe a golden set and check that it is sound", _add_golden),
}
