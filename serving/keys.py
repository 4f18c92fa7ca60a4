"""API keys: their form, what is kept of them, and where.

A key reads `fovea_ID_SECRET`; the secret has 256 random bits and is shown once, when the key is made.  The store has
the id, a salted BLAKE2b of the secret (no slow hash: nothing can be guessed about 256 random bits), and whom the key is
for.  Stores are small and are read whole: a replica keeps a snapshot and asks only whether the version has changed.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from serving.section import is_valkey

Role = Literal["caller", "operator", "auditor", "admin"]
Permission = Literal["call", "observe", "operate"]
ROLES: dict[str, frozenset[Permission]] = {
    "caller": frozenset(("call",)),
    "operator": frozenset(("call", "observe", "operate")),
    "auditor": frozenset(("observe",)),
    "admin": frozenset(("call", "observe", "operate")),
}
"""Role -> what it may: `call` the models, `observe` metrics, `operate` caches and batches of every tenant."""

_FORM = re.compile(r"fovea_([a-z0-9]{12})_([A-Za-z0-9_-]{43})")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of one key.

    Attributes:
        id: public part, shown by `fovea keys list`; safe in logs.
        salt, hash: hexadecimal, of the secret.
        created, expires, revoked: seconds since 1970, or None.
        lane: where its requests go unless they say otherwise.
    """

    id: str
    salt: str
    hash: str
    tenant: str
    role: Role = "caller"
    label: str = ""
    lane: Literal["interactive", "batch"] = "interactive"
    created: float = field(default_factory=time.time)
    expires: float | None = None
    revoked: float | None = None

    def matches(self, secret: str) -> bool:
        """Whether `secret` is this key's, compared in constant time."""
        return hmac.compare_digest(hash_secret(secret, self.salt), self.hash)

    def state(self, now: float) -> Literal["active", "expired", "revoked"]:
        """Return what the key is at a time."""
        if self.revoked is not None and self.revoked <= now:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


NOBODY = Key("", "0" * 32, "0" * 64, "")
"""Compared with when the id is unknown, so that an unknown id takes as long as a wrong secret."""


def hash_secret(secret: str, salt: str) -> str:
    """Return the salted BLAKE2b-256 of a secret, hexadecimal."""
    return hashlib.blake2b(secret.encode(), digest_size=32, salt=bytes.fromhex(salt)).hexdigest()


def split_key(text: str) -> tuple[str, str] | None:
    """Return (id, secret) of a key's text, None when it does not have the form of one."""
    match = _FORM.fullmatch(text)
    return (match.group(1), match.group(2)) if match else None


def make_key(
    tenant: str,
    *,
    role: Role = "caller",
    label: str = "",
    lane: Literal["interactive", "batch"] = "interactive",
    expires: float | None = None,
) -> tuple[str, Key]:
    """Return a new key's text, which is not kept anywhere, and what is kept of it."""
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(12))
    secret, salt = secrets.token_urlsafe(32), secrets.token_hex(16)
    kept = Key(key_id, salt, hash_secret(secret, salt), tenant, role, label, lane, expires=expires)
    return f"fovea_{key_id}_{secret}", kept


def revoked_at(key: Key, when: float) -> Key:
    """Return the key as revoked from `when` on; never later than it already was."""
    return replace(key, revoked=when if key.revoked is None else min(when, key.revoked))


class KeyStore(Protocol):
    """Where keys are."""

    async def snapshot(self, known: int | None) -> tuple[int, dict[str, Key]] | None:
        """Return (version, keys by id), or None when the version is still `known`.

        Raises:
            StoreDown: the store cannot be reached.
        """

    async def put(self, key: Key) -> None:
        """Write one key, new or changed, and raise the version.

        Raises:
            StoreDown: the store cannot be reached.
        """

    async def close(self) -> None:
        """Let go of connections."""


def open_keys(location: str) -> KeyStore:
    """Return the store at a location (`serving.section.Location`)."""
    if is_valkey(location):
        from serving.keys_valkey import ValkeyKeys

        return ValkeyKeys(location)
    from serving.keys_sqlite import SqliteKeys

    return SqliteKeys(location)


def last_ends(keys: Iterable[Key], now: float) -> dict[str, float]:
    """Return when each tenant's last active key ends; tenants with one that does not end are not in it."""
    ends: dict[str, float] = {}
    for key in keys:
        if key.state(now) == "active":
            ends[key.tenant] = max(ends.get(key.tenant, 0.0), math.inf if key.expires is None else key.expires)
    return {tenant: end for tenant, end in ends.items() if end < math.inf}
