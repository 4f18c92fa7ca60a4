"""`fovea cache`: look at the answers that are kept, and let some be forgotten."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import TYPE_CHECKING

from models.support.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from serving.recall.store import Shelf


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fovea cache`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    purge = actions.add_parser("purge", help="forget kept answers, in every replica")
    purge.add_argument("--all", action="store_true", help="every answer")
    for name, text in (("tenant", "of a tenant"), ("model", "of a model"), ("version", "of a model version")):
        purge.add_argument(f"--{name}", action="append", default=[], metavar="NAME", help=text)
    purge.add_argument("--tag", action="append", default=[], metavar="TAG", help="that a request gave this tag")
    stats = actions.add_parser("stats", help="count them")
    calibrate = actions.add_parser("calibrate", help="find the threshold of semantic recall from labelled pairs")
    calibrate.add_argument("pairs", nargs="?", help="JSONL of same, a, b (default: the project's own pairs)")
    calibrate.add_argument("--model", default="minilm", help="embedding model (default: %(default)s)")
    calibrate.add_argument("--json", action="store_true", help="print JSON")
    for action in (purge, stats):
        action.add_argument("--stack", default="stack.yaml", help="stack file (default: stack.yaml)")
        action.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run one action."""
    if args.action == "calibrate":
        return _calibrate(args)
    from serving.errors import StoreDown
    from serving.recall.store import open_shelf
    from serving.stack import load_stack

    section = load_stack(args.stack).recall
    if section is None:
        raise UsageError("the stack keeps no answers", field=args.stack, fix="add the section `recall`")
    if section.store == "memory":
        raise UsageError(
            "the answers are in the replica's own memory",
            field="recall.store",
            value="memory",
            fix="POST /fovea/cache/purge there, or name a file or a server as store",
        )
    scopes = scopes_of(args) if args.action == "purge" else []

    async def work() -> dict[str, object]:
        shelf = open_shelf(section)
        try:
            return await _purge(shelf, scopes) if scopes else await _stats(shelf)
        finally:
            await shelf.close()

    try:
        result = asyncio.run(work())
    except StoreDown as error:
        raise CheckFailed(
            f"the store does not answer: {error}", field="recall.store", fix="start the server that recall.store names"
        ) from error
    print(json.dumps(result) if args.json else "\n".join(f"{name}: {value}" for name, value in result.items()))
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from pathlib import Path

    from serving.recall.calibrate import PAIRS, judge, read_pairs, summary
    from serving.recall.embed import Embedder

    pairs = read_pairs(Path(args.pairs) if args.pairs else PAIRS)
    found = summary(judge(pairs, Embedder(args.model)))
    if args.json:
        print(json.dumps(found, ensure_ascii=False))
        return int(bool(found["wrong"]))
    one, two, alone = found["of_one"], found["of_two"], found["cosine_alone"]
    print(
        f"threshold {found['threshold']}\n"
        f"pairs of one: {one['recalled']} of {one['pairs']} recalled ({one['same_words']} by words alone)\n"
        f"pairs of two: {two['wrong']} of {two['pairs']} taken for one\n"
        f"by the embedding alone: {two['cosine_alone_at_this_threshold']} wrong at this threshold; none wrong above "
        f"{alone['threshold_without_a_wrong_one']}, where {alone['recalled']} would be recalled"
    )
    return int(bool(found["wrong"]))


def scopes_of(args: argparse.Namespace) -> list[str]:
    """Return what is to be purged.

    Raises:
        UsageError: nothing was named.
    """
    scopes = ["all"] if args.all else []
    scopes += [f"{kind}:{name}" for kind in ("tenant", "model", "version", "tag") for name in getattr(args, kind)]
    if not scopes:
        raise UsageError("say what to forget", field="purge", fix="give --all, --tenant, --model, --version or --tag")
    return scopes


async def _purge(shelf: Shelf, scopes: list[str]) -> dict[str, object]:
    for scope in scopes:
        await shelf.purge(scope)
    return {"purged": scopes}


async def _stats(shelf: Shelf) -> dict[str, object]:
    entries, size = await shelf.count()
    return {"entries": entries, "bytes": size, "purges": await shelf.generations()}
