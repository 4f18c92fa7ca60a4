"""`fovea models registry ...`: arguments and printing."""

from __future__ import annotations

import argparse
import getpass
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.support.errors import UsageError
from models.support.terminal import print_json, print_table

if TYPE_CHECKING:
    from models.registry import Registry, Version

Run = Callable[["Registry", argparse.Namespace], int]


def add_registry(parser: argparse.ArgumentParser) -> None:
    """Add the sub-commands."""
    sub = parser.add_subparsers(dest="registry_command", metavar="COMMAND", required=True)
    for name, (text, add, run) in COMMANDS.items():
        child = sub.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        child.add_argument("--store", help="folder or fsspec URL (FOVEA_REGISTRY, or runs/registry)")
        child.add_argument("--json", action="store_true", help="print one JSON object instead of text")
        add(child)
        child.set_defaults(run=_opened(run))


def _opened(run: Run) -> Callable[[argparse.Namespace], int]:
    def opened(args: argparse.Namespace) -> int:
        from models.registry import open_registry

        return run(open_registry(args.store), args)

    return opened


def _ref(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("version", metavar="NAME@VERSION", help="NAME@3, NAME@live, NAME@canary; NAME: the newest")


def _by(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--by", default=getpass.getuser(), help="who does it (the user of this machine)")
    parser.add_argument("--note", help="why")


def _ref_by(parser: argparse.ArgumentParser) -> None:
    _ref(parser)
    _by(parser)


def _name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")


def _file(path: Path) -> Any:
    """Return a JSON or YAML file's content."""
    import yaml

    try:
        return yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"cannot read: {type(error).__name__}", field="file", value=str(path)) from error


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
    if args.json:
        print_json({"version": version.ref, "digest": version.digest, "family": version.family})
    else:
        size = sum(file.bytes for file in version.files.values())
        print(f"{version.ref}: {len(version.files)} files, {size / 2**20:.1f} MiB, digest {version.digest[:12]}")
    return 0


def _list(registry: Registry, args: argparse.Namespace) -> int:
    rows = []
    for name in registry.names():
        stages = registry.state(name).stages
        rows += [(v, stages[v.number]) for v in registry.versions(name)]
    if args.json:
        print_json({"versions": [{"version": v.ref, "stage": s, "digest": v.digest, "by": v.by} for v, s in rows]})
    else:
        head = ["version", "stage", "kind", "family", "digest", "by", "at"]
        print_table(head, [[v.ref, s, v.kind, v.family, v.digest[:12], v.by, v.at] for v, s in rows])
    return 0


def _show(registry: Registry, args: argparse.Namespace) -> int:
    version = registry.find(args.version)
    state = registry.state(version.name)
    events = [e for e in registry.events(version.name) if e.version == version.number]
    if args.json:
        shown = version.model_dump(mode="json") | {"stage": state.stages[version.number]}
        print_json(shown | {"events": [e.model_dump(mode="json", exclude_none=True) for e in events]})
        return 0
    print(f"{version.ref} ({version.kind}), {state.stages[version.number]}, by {version.by} at {version.at}")
    for label in ("digest", "family", "parent", "licence", "note"):
        if getattr(version, label):
            print(f"{label:<8} {getattr(version, label)}")
    for name, digest in version.data.items():
        print(f"data     {name} {digest}")
    for path, file in version.files.items():
        print(f"file     {path}  {file.bytes:,} bytes  {file.sha256[:12]}")
    for event in events:
        what = f"{event.what} {event.to or event.item or ''}".strip() + (" (rollback)" if event.rollback else "")
        if event.report:
            a = event.report["accuracy"]
            what += f" {event.report['golden']['name']} {a['value']:.4f} [{a['low']:.4f}, {a['high']:.4f}] n = {a['n']}"
        print(f"event    {event.at}  {what}  by {event.by}" + (f": {event.note}" if event.note else ""))
    return 0


def _add_attach(parser: argparse.ArgumentParser) -> None:
    _ref(parser)
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
    _ref(parser)
    parser.add_argument("--to", required=True, choices=("canary", "live", "retired"))
    _by(parser)


def _promote(registry: Registry, args: argparse.Namespace) -> int:
    event = registry.promote(args.version, args.to, by=args.by, note=args.note)
    return _told(args, event.seq, f"version {event.version} is {args.to}")


def _approve(registry: Registry, args: argparse.Namespace) -> int:
    return _told(args, registry.approve(args.version, by=args.by, note=args.note).seq, f"approved by {args.by}")


def _add_attest(parser: argparse.ArgumentParser) -> None:
    _ref(parser)
    parser.add_argument("item", help="an item of the governance checklist that a person vouches for")
    _by(parser)


def _attest(registry: Registry, args: argparse.Namespace) -> int:
    event = registry.attest(args.version, args.item, by=args.by, note=args.note)
    return _told(args, event.seq, f"{args.item} attested by {args.by}")


def _add_rollback(parser: argparse.ArgumentParser) -> None:
    _name(parser)
    _by(parser)


def _rollback(registry: Registry, args: argparse.Namespace) -> int:
    event = registry.rollback(args.name, by=args.by, note=args.note)
    return _told(args, event.seq, f"version {event.version} is live again, instead of {event.replaces}")


def _told(args: argparse.Namespace, seq: int, text: str) -> int:
    if args.json:
        print_json({"event": seq, "text": text})
    else:
        print(text)
    return 0


def _add_policy(parser: argparse.ArgumentParser) -> None:
    _name(parser)
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


def _add_diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="NAME@VERSION")
    parser.add_argument("second", metavar="NAME@VERSION")


def diff(registry: Registry, first: Version, second: Version) -> dict[str, Any]:
    """Return what differs between two versions: files by path, fields, and the accuracy on each golden set."""
    a, b = first.files, second.files
    fields = ("kind", "family", "parent", "recipe", "data", "licence", "by")
    reports: dict[str, dict[str, Any]] = {}
    for version in (first, second):
        for report in registry.state(version.name).reports.get(version.number, []):
            reports.setdefault(report["golden"]["name"], {})[version.ref] = report["accuracy"]
    return {
        "added": sorted(b.keys() - a.keys()),
        "removed": sorted(a.keys() - b.keys()),
        "changed": sorted(path for path in a.keys() & b.keys() if a[path].sha256 != b[path].sha256),
        "same": sum(1 for path in a.keys() & b.keys() if a[path].sha256 == b[path].sha256),
        "fields": {
            f: [getattr(first, f), getattr(second, f)] for f in fields if getattr(first, f) != getattr(second, f)
        },
        "accuracy": reports,
    }


def _diff(registry: Registry, args: argparse.Namespace) -> int:
    first, second = registry.find(args.first), registry.find(args.second)
    found = diff(registry, first, second)
    if args.json:
        print_json({"first": first.ref, "second": second.ref, **found})
        return 0
    for kind in ("added", "removed", "changed"):
        for path in found[kind]:
            print(f"{kind:<8} {path}")
    print(f"same     {found['same']} files")
    for name, (one, other) in found["fields"].items():
        print(f"{name:<8} {one} -> {other}")
    for golden, figures in found["accuracy"].items():
        print(f"{golden:<8} " + ", ".join(f"{ref} {a['value']:.4f} (n = {a['n']})" for ref, a in figures.items()))
    return 0


def _add_gc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")


def _gc(registry: Registry, args: argparse.Namespace) -> int:
    orphans = registry.gc(dry=args.dry_run)
    if args.json:
        print_json({"removed": [] if args.dry_run else orphans, "orphans": orphans})
    else:
        print(f"{len(orphans)} files of no version" + ("" if args.dry_run else " removed"))
    return 0


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", help="names (all)")


def _verify(registry: Registry, args: argparse.Namespace) -> int:
    wrong = registry.verify(args.names or None)
    if args.json:
        print_json({"problems": wrong})
    else:
        print("\n".join(wrong) or "every file has its recorded digest")
    return 1 if wrong else 0


def _path(registry: Registry, args: argparse.Namespace) -> int:
    found = registry.resolve(args.version)
    if args.json:
        told = {"version": found.version.ref, "digest": found.version.digest, "stage": found.stage}
        print_json({**told, "path": str(found.folder)})
    else:
        print(found.folder)
    return 0


def _governance(registry: Registry, args: argparse.Namespace) -> int:
    from models.registry.governance import checklist

    version = registry.find(args.version)
    rows = checklist(registry, version)
    ready = all(row["holds"] for row in rows)
    if args.json:
        print_json({"version": version.ref, "ready": ready, "items": rows})
    else:
        table = [["yes" if r["holds"] else "NO", r["item"], r["checked"], r["what"], r["evidence"] or ""] for r in rows]
        print_table(["holds", "item", "checked by", "what", "evidence"], table)
        print(f"{sum(r['holds'] for r in rows)} of {len(rows)} hold")
    return 0 if ready else 1


def _nothing(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Run]] = {
    "register": ("put a checkpoint, golden set or prompt bundle in as an immutable version", _add_register, _register),
    "list": ("list all versions with their stages", _nothing, _list),
    "show": ("show a version: files, lineage, reports, what happened to it", _ref, _show),
    "attach": ("tie an evaluation report to the version it was made of", _add_attach, _attach),
    "approve": ("approve a version (the second person)", _ref_by, _approve),
    "attest": ("vouch for a governance item that no machine can check", _add_attest, _attest),
    "promote": ("move a version on: canary, live, retired", _add_promote, _promote),
    "rollback": ("put the version back that was live before", _add_rollback, _rollback),
    "policy": ("set or show what a version must show before it is promoted", _add_policy, _policy),
    "diff": ("show what differs between two versions", _add_diff, _diff),
    "verify": ("hash every file again", _add_verify, _verify),
    "gc": ("remove files that no version has", _add_gc, _gc),
    "path": ("check a version out and print its folder", _ref, _path),
    "governance": ("show the governance checklist of a version", _ref, _governance),
}
