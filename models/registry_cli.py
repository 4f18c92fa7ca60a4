"""`fovea models registry ...`, `fovea models promote` and `rollback`: arguments and printing."""

from __future__ import annotations

import argparse
import getpass
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.registry_view_cli import VIEWS, add_name, add_ref
from models.support.errors import UsageError
from models.support.terminal import print_either, print_json

if TYPE_CHECKING:
    from models.registry import Registry

Run = Callable[["Registry", argparse.Namespace], int]


def _by(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--by", default=getpass.getuser(), help="who does it (the user of this machine)")
    parser.add_argument("--note", help="why")


def _ref_by(parser: argparse.ArgumentParser) -> None:
    add_ref(parser)
    _by(parser)


def _file(path: Path) -> Any:
    """Return a JSON or YAML file's content."""
    import yaml

    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read: {type(error).__name__}", field="file", value=str(path)) from error


def _told(args: argparse.Namespace, seq: int, text: str) -> int:
    print_either(args.json, {"event": seq, "text": text}, text)
    return 0


def add_registry(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands."""
    sub = parser.add_subparsers(dest="registry_command", metavar="COMMAND", required=True)
    for name, (text, add, run) in COMMANDS.items():
        child = sub.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        child.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        _add(child, add, run)


def add_promote(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fovea models promote`."""
    _add(parser, _add_promote, _promote)


def add_rollback(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fovea models rollback`."""
    _add(parser, _add_rollback, _rollback)


def _add(parser: argparse.ArgumentParser, add: Callable[[argparse.ArgumentParser], None], run: Run) -> None:
    parser.add_argument("--store", help="folder, hf:// repository or fsspec URL (FOVEA_REGISTRY, or runs/registry)")
    add(parser)
    parser.set_defaults(run=_opened(run))


def _opened(run: Run) -> Callable[[argparse.Namespace], int]:
    def opened(args: argparse.Namespace) -> int:
        from models.registry import open_registry

        return run(open_registry(args.store), args)

    return opened


def _add_register(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a checkpoint, a golden set or prompt files")
    parser.add_argument("--name", required=True)
    parser.add_argument("--kind", choices=("model", "prompts", "golden"), default="model")
    parser.add_argument("--family", help="catalog family that the checkpoint must be of (found out without)")
    parser.add_argument("--parent", help="what it was made from: NAME@3, or a hub id with its commit")
    parser.add_argument("--recipe", type=Path, help="JSON or YAML file: how it was made")
    parser.add_argument("--data", action="append", metavar="NAME=DIGEST", default=[], help="data it was made with")
    parser.add_argument("--licence", help="licence of the weights")
    _by(parser)


def _register(registry: Registry, args: argparse.Namespace) -> int:
    data = {}
    for pair in args.data:
        name, equals, digest = pair.partition("=")
        if not equals or not name or not digest:
            raise UsageError("must be NAME=DIGEST", field="data", value=pair)
        data[name] = digest
    recipe = _file(args.recipe) if args.recipe else None
    if recipe is not None and not isinstance(recipe, dict):
        raise UsageError("must be a mapping", field="recipe", value=str(args.recipe))
    recipe = None if recipe is None else json.loads(json.dumps(recipe, default=str))
    version = registry.register(
        args.folder,
        args.name,
        by=args.by,
        kind=args.kind,
        family=args.family,
        parent=args.parent,
        recipe=recipe,
        data=data,
        licence=args.licence,
        note=args.note,
    )
    size = sum(file.bytes for file in version.files.values())
    told = {"version": version.ref, "digest": version.digest, "family": version.family}
    text = f"{version.ref}: {len(version.files)} files, {size / 2**20:.1f} MiB, digest {version.digest[:12]}"
    print_either(args.json, told, text)
    return 0


def _add_attach(parser: argparse.ArgumentParser) -> None:
    add_ref(parser)
    parser.add_argument("report", type=Path, help="folder of an evaluation, or its report.json")
    _by(parser)


def _attach(registry: Registry, args: argparse.Namespace) -> int:
    path = args.report / "report.json" if args.report.is_dir() else args.report
    report = _file(path)
    if not isinstance(report, dict):
        raise UsageError("is not a report", field="report", value=str(path))
    event = registry.attach(args.version, report, by=args.by)
    return _told(args, event.seq, f"report on {report['golden']['name']} attached")


def _add_promote(parser: argparse.ArgumentParser) -> None:
    add_ref(parser)
    parser.add_argument("--to", required=True, choices=("canary", "live", "retired"))
    _by(parser)


def _promote(registry: Registry, args: argparse.Namespace) -> int:
    event = registry.promote(args.version, args.to, by=args.by, note=args.note)
    return _told(args, event.seq, f"version {event.version} is {args.to}")


def _approve(registry: Registry, args: argparse.Namespace) -> int:
    return _told(args, registry.approve(args.version, by=args.by, note=args.note).seq, f"approved by {args.by}")


def _add_attest(parser: argparse.ArgumentParser) -> None:
    add_ref(parser)
    parser.add_argument("item", help="an item of the governance checklist that a person vouches for")
    _by(parser)


def _attest(registry: Registry, args: argparse.Namespace) -> int:
    event = registry.attest(args.version, args.item, by=args.by, note=args.note)
    return _told(args, event.seq, f"{args.item} attested by {args.by}")


def _add_rollback(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    _by(parser)


def _rollback(registry: Registry, args: argparse.Namespace) -> int:
    event = registry.rollback(args.name, by=args.by, note=args.note)
    return _told(args, event.seq, f"version {event.version} is live again, instead of {event.replaces}")


def _add_policy(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument("file", type=Path, nargs="?", help="YAML: require, two_person, governance; shown without")


def _policy(registry: Registry, args: argparse.Namespace) -> int:
    from pydantic import ValidationError

    from models.registry import Policy

    if args.file is not None:
        try:
            registry.set_policy(args.name, Policy.model_validate(_file(args.file)))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "file"
            raise UsageError(first["msg"], field=f"{args.file.name}: {where}") from error
    policy = registry.policy(args.name)
    if policy is None:
        raise UsageError("has no policy", field="name", value=args.name, fix="give a file")
    print_json(policy.model_dump(mode="json"))
    return 0


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Run]] = {
    "register": ("put a checkpoint, golden set or prompt bundle in as an immutable version", _add_register, _register),
    "attach": ("tie an evaluation report to the version it was made of", _add_attach, _attach),
    "approve": ("approve a version (the second person)", _ref_by, _approve),
    "attest": ("vouch for a governance item that no machine can check", _add_attest, _attest),
    "policy": ("set or show what a version must show before it is promoted", _add_policy, _policy),
    **VIEWS,
}
