"""`fovea models registry list | show | diff | verify | gc | path | governance | mirror`: what is there."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from models.support.terminal import print_either, print_json, print_table

if TYPE_CHECKING:
    from models.registry import Registry, Version


def add_ref(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a version."""
    parser.add_argument("version", metavar="NAME@VERSION", help="NAME@3, NAME@live, NAME@canary; NAME: the newest")


def add_name(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names all versions of a name."""
    parser.add_argument("name")


def add_nothing(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


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
    told = {"removed": [] if args.dry_run else orphans, "orphans": orphans}
    print_either(args.json, told, f"{len(orphans)} files of no version" + ("" if args.dry_run else " removed"))
    return 0


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", help="names (all)")


def _verify(registry: Registry, args: argparse.Namespace) -> int:
    wrong = registry.verify(args.names or None)
    print_either(args.json, {"problems": wrong}, "\n".join(wrong) or "every file has its recorded digest")
    return 1 if wrong else 0


def _path(registry: Registry, args: argparse.Namespace) -> int:
    found = registry.resolve(args.version)
    told = {"version": found.version.ref, "digest": found.version.digest, "stage": found.stage}
    print_either(args.json, {**told, "path": str(found.folder)}, str(found.folder))
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


def _add_mirror(parser: argparse.ArgumentParser) -> None:
    add_name(parser)
    parser.add_argument("--mlflow", required=True, metavar="URL", help="MLflow tracking server")
    parser.add_argument("--token", default=os.environ.get("MLFLOW_TRACKING_TOKEN"), help="(MLFLOW_TRACKING_TOKEN)")


def _mirror(registry: Registry, args: argparse.Namespace) -> int:
    from models.registry.mlflow import Mirror

    done = Mirror(args.mlflow, args.token).sync(registry, args.name)
    print_either(args.json, {"done": done}, "\n".join(done) or "nothing to do")
    return 0


VIEWS = {
    "list": ("list all versions with their stages", add_nothing, _list),
    "show": ("show a version: files, lineage, reports, what happened to it", add_ref, _show),
    "diff": ("show what differs between two versions", _add_diff, _diff),
    "verify": ("hash every file again", _add_verify, _verify),
    "gc": ("remove files that no version has", _add_gc, _gc),
    "mirror": ("show a name's versions in an MLflow model registry", _add_mirror, _mirror),
    "path": ("check a version out and print its folder", add_ref, _path),
    "governance": ("show the governance checklist of a version", add_ref, _governance),
}
