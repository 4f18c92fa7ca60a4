"""`fovea keys`: make, list, rotate and revoke API keys."""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from models.support.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from serving.keys import Key, KeyStore

UNITS = {"m": 60, "h": 3600, "d": 86_400}
DAY = "%Y-%m-%d %H:%M"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fovea keys`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="make a key and print it, once")
    create.add_argument("--tenant", required=True, help="a tenant of the stack file")
    create.add_argument("--role", choices=("caller", "operator", "auditor", "admin"), default="caller")
    create.add_argument("--label", default="", help="a note for yourself")
    create.add_argument("--lane", choices=("interactive", "batch"), default="interactive", help="its requests' lane")
    create.add_argument("--expires", metavar="TIME", help="for example 12h or 90d; never if not given")
    listing = actions.add_parser("list", help="list the keys, without their secrets")
    listing.add_argument("--tenant", help="only this tenant's")
    revoke = actions.add_parser("revoke", help="end a key")
    revoke.add_argument("id", help="as `list` shows it")
    rotate = actions.add_parser("rotate", help="make a successor, and end a key after a while")
    rotate.add_argument("id", help="as `list` shows it")
    rotate.add_argument("--grace", metavar="TIME", default="24h", help="how long both work (default: %(default)s)")
    for action in (create, listing, revoke, rotate):
        action.add_argument("--stack", default="stack.yaml", help="stack file (default: stack.yaml)")
        action.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run one action."""
    from serving.errors import StoreDown
    from serving.keys import open_keys
    from serving.stack import load_stack

    stack = load_stack(args.stack)
    if stack.identify is None:
        raise UsageError("the stack asks for no keys", field=args.stack, fix="add the section `identify`")
    tenants = [tenant.name for tenant in stack.identify.tenants]
    wanted = getattr(args, "tenant", None)
    if wanted is not None and wanted not in tenants:
        raise UsageError("no such tenant", field="--tenant", value=wanted, fix=f"the stack has {', '.join(tenants)}")

    async def work() -> int:
        store = open_keys(stack.identify.keys) if stack.identify else None
        assert store is not None
        try:
            return await ACTIONS[args.action](args, store)
        finally:
            await store.close()

    try:
        return asyncio.run(work())
    except StoreDown as error:
        raise CheckFailed(
            f"the key store does not answer: {error}",
            field="identify.keys",
            fix="start the server that identify.keys names",
        ) from error


async def create(args: argparse.Namespace, store: KeyStore) -> int:
    """Make a key."""
    from serving.keys import make_key

    expires = time.time() + seconds_of(args.expires, "--expires") if args.expires else None
    text, key = make_key(args.tenant, role=args.role, label=args.label, lane=args.lane, expires=expires)
    await store.put(key)
    _show_new(text, key, args.json)
    return 0


async def rotate(args: argparse.Namespace, store: KeyStore) -> int:
    """Make a successor of a key; the old one ends after the grace time."""
    from serving.keys import make_key, revoked_at

    grace = seconds_of(args.grace, "--grace")
    old = await _find(store, args.id)
    now = time.time()
    if old.state(now) != "active":
        raise UsageError(f"the key is {old.state(now)}", field="id", value=args.id, fix="make a new one with `create`")
    text, key = make_key(old.tenant, role=old.role, label=old.label, lane=old.lane, expires=old.expires)
    await store.put(key)  # first: should the second write fail, there is a key too many, not one too few
    await store.put(revoked_at(old, now + grace))
    _show_new(text, key, args.json)
    return 0


async def revoke(args: argparse.Namespace, store: KeyStore) -> int:
    """End a key now."""
    from serving.keys import revoked_at

    key = revoked_at(await _find(store, args.id), time.time())
    await store.put(key)
    print(json.dumps(public(key)) if args.json else f"{key.id} of {key.tenant} is revoked")
    return 0


async def listing(args: argparse.Namespace, store: KeyStore) -> int:
    """List the keys."""
    found = await store.snapshot(None)
    keys = sorted((found or (0, {}))[1].values(), key=lambda key: (key.tenant, key.created))
    rows = [public(key) for key in keys if args.tenant in (None, key.tenant)]
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        until = "never" if row["expires"] is None else time.strftime(DAY, time.gmtime(row["expires"]))
        print(
            f"{row['id']}  {row['state']:8} {row['tenant']:20} {row['role']:9} {row['lane']:12} expires {until:17}"
            f" {row['label']}"
        )
    return 0


ACTIONS = {"create": create, "rotate": rotate, "revoke": revoke, "list": listing}


def public(key: Key) -> dict[str, Any]:
    """Return what may be shown of a key."""
    return {
        "id": key.id,
        "tenant": key.tenant,
        "role": key.role,
        "label": key.label,
        "lane": key.lane,
        "state": key.state(time.time()),
        "created": round(key.created),
        "expires": key.expires and round(key.expires),
        "revoked": key.revoked and round(key.revoked),
    }


def seconds_of(text: str, field: str) -> float:
    """Return the seconds of a time like `12h`.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"(\d{1,6})([mhd])", text)
    if not match:
        raise UsageError("not a time", field=field, value=text, fix="write a number and m, h or d, like 12h")
    return int(match.group(1)) * UNITS[match.group(2)]


async def _find(store: KeyStore, key_id: str) -> Key:
    found = await store.snapshot(None)
    key = (found or (0, {}))[1].get(key_id)
    if key is None:
        raise UsageError("no such key", field="id", value=key_id[:60], fix="see `fovea keys list`")
    return replace(key)


def _show_new(text: str, key: Key, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"key": text, **public(key)}))
        return
    print(text)
    print(f"for {key.tenant} ({key.role}); it is not kept anywhere and not shown again", file=sys.stderr)
