"""Where kept answers are: in the replica's memory, and behind it in a store that replicas share.

An entry carries the generation that each of its scopes (everything, its tenant, its model, its version, its tags) had
it began.  A purge raises the generation of a scope; an entry of an older generation is dead wherever it is, also one
that is still being made.  No clock is compared with another machine's for that.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import orjson

from serving.errors import StoreDown
from serving.facts import FACTS
from serving.section import is_valkey

if TYPE_CHECKING:
    from serving.recall.section import Recall

logger = logging.getLogger("fovea.serving")
BREAK_S = 1.0
SKEW_S = 60.0
"""An entry from further in the future than this was written before a clock went back: not to be trusted."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One kept answer.

    Attributes:
        content_type, body: as the engine sent them; a stream's body is all of its events.
        created: seconds since 1970.
        scopes: scope -> its generation.
        image_tokens: of the request, for accounts.
        request: key of the request, where the entry is found by an `Idempotency-Key` and must be of that request.
    """

    content_type: bytes
    body: bytes
    created: float
    scopes: dict[str, int]
    image_tokens: int = 0
    request: str = ""

    def pack(self, key: bytes) -> bytes:
        """Return the entry as bytes with a check sum over key and content."""
        head = orjson.dumps(
            [self.content_type.decode("latin-1"), self.created, self.scopes, self.image_tokens, self.request]
        )
        rest = len(head).to_bytes(4, "big") + head + self.body
        return _sum(key, rest) + rest

    @classmethod
    def unpack(cls, key: bytes, blob: bytes) -> Entry | None:
        """Return the entry in `blob`; None when it is damaged or another key's."""
        rest = blob[16:]
        if _sum(key, rest) != blob[:16]:
            return None
        size = int.from_bytes(rest[:4], "big")
        kind, created, scopes, tokens, request = orjson.loads(rest[4 : 4 + size])
        return cls(kind.encode("latin-1"), rest[4 + size :], created, scopes, tokens, request)


def _sum(key: bytes, rest: bytes) -> bytes:
    return hashlib.blake2b(rest, digest_size=16, key=key).digest()


class Shelf(Protocol):
    """A store that replicas share.  Every method raises `StoreDown` when it cannot be reached."""

    async def get(self, key: bytes) -> bytes | None:
        """Return what was put."""

    async def put(self, key: bytes, blob: bytes, ttl_s: float) -> None:
        """Keep `blob` for at most so long."""

    async def generations(self) -> dict[str, int]:
        """Return the generation of every scope that was ever purged."""

    async def purge(self, scope: str) -> None:
        """Raise a scope's generation."""

    async def count(self) -> tuple[int, int]:
        """Return (entries, bytes), dead ones included."""

    async def close(self) -> None:
        """Let go of connections; what was put is written."""


class Nothing:
    """The shelf of a replica that shares with nobody; purges last as long as the process."""

    def __init__(self) -> None:
        self.scopes: dict[str, int] = {}

    async def get(self, key: bytes) -> bytes | None:
        """See `Shelf`."""
        return None

    async def put(self, key: bytes, blob: bytes, ttl_s: float) -> None:
        """See `Shelf`."""

    async def generations(self) -> dict[str, int]:
        """See `Shelf`."""
        return dict(self.scopes)

    async def purge(self, scope: str) -> None:
        """See `Shelf`."""
        self.scopes[scope] = self.scopes.get(scope, 0) + 1

    async def count(self) -> tuple[int, int]:
        """See `Shelf`."""
        return 0, 0

    async def close(self) -> None:
        """See `Shelf`."""


def open_shelf(section: Recall) -> Shelf:
    """Return the shared store of a stack."""
    if section.store == "memory":
        return Nothing()
    if is_valkey(section.store):
        from serving.recall.valkey import ValkeyShelf

        return ValkeyShelf(section.store)
    from serving.recall.sqlite import SqliteShelf

    return SqliteShelf(section.store, section.file_bytes)


class Memory:
    """Least recently used entries, bounded by bytes."""

    def __init__(self, most: int):
        self.most, self.bytes = most, 0
        self.entries: OrderedDict[bytes, Entry] = OrderedDict()

    def get(self, key: bytes) -> Entry | None:
        """Return an entry and make it the most recent."""
        entry = self.entries.get(key)
        if entry is not None:
            self.entries.move_to_end(key)
        return entry

    def put(self, key: bytes, entry: Entry) -> None:
        """Keep an entry; others leave for it."""
        self.drop(key)
        if weight(entry) > self.most:
            return
        self.entries[key] = entry
        self.bytes += weight(entry)
        while self.bytes > self.most:
            _, old = self.entries.popitem(last=False)
            self.bytes -= weight(old)

    def drop(self, key: bytes) -> None:
        """Forget an entry."""
        old = self.entries.pop(key, None)
        if old is not None:
            self.bytes -= weight(old)


def weight(entry: Entry) -> int:
    """Return about what an entry takes in memory, bytes."""
    return len(entry.body) + 600


class Answers:
    """Both tiers, with life times and purges."""

    def __init__(self, section: Recall):
        self.section, self.shelf, self.memory = section, open_shelf(section), Memory(section.memory_bytes)
        self.known: dict[str, int] = {}
        self.asked = float("-inf")
        self.closed_until = 0.0

    async def refresh(self) -> None:
        """Learn of purges.

        Raises:
            StoreDown: the store cannot be reached.
        """
        self.asked = time.monotonic()
        for scope, number in (await self.shelf.generations()).items():
            # never back: a server that lost its memory must not revive what was purged
            self.known[scope] = max(number, self.known.get(scope, 0))

    async def get(self, key: bytes) -> Entry | None:
        """Return a living entry.  A store that fails is a miss."""
        try:
            if time.monotonic() - self.asked > self.section.purge_s and self._open:
                await self.refresh()
            entry = self.memory.get(key)
            if entry is None and self._open:
                blob = await self.shelf.get(key)
                entry = Entry.unpack(key, blob) if blob else None
                if entry is not None:
                    self.memory.put(key, entry)
                FACTS.degraded.pop("recall", None)
        except StoreDown as error:
            self.down(error)
            entry = self.memory.get(key)
        if entry is not None and not self.alive(entry):
            self.memory.drop(key)
            return None
        return entry

    def alive(self, entry: Entry) -> bool:
        """Whether an entry may still be given."""
        age = time.time() - entry.created
        fresh = -SKEW_S < age < self.section.ttl_s
        return fresh and all(self.known.get(scope, 0) == number for scope, number in entry.scopes.items())

    def scopes(self, names: tuple[str, ...]) -> dict[str, int]:
        """Return the generations that an answer has which begins now."""
        return {name: self.known.get(name, 0) for name in names}

    async def put(self, key: bytes, entry: Entry) -> None:
        """Keep an entry in both tiers."""
        self.memory.put(key, entry)
        if self._open:
            try:
                await self.shelf.put(key, entry.pack(key), self.section.ttl_s)
            except StoreDown as error:
                self.down(error)

    async def purge(self, scope: str) -> None:
        """Let everything of a scope be forgotten.

        Raises:
            StoreDown: the store cannot be reached.
        """
        await self.shelf.purge(scope)
        await self.refresh()

    @property
    def _open(self) -> bool:
        return time.monotonic() >= self.closed_until

    def down(self, error: StoreDown) -> None:
        """Leave the store alone for a while, and say so in `/health`."""
        logger.warning("the store of kept answers does not answer: %s", error)
        FACTS.degraded["recall"] = f"kept answers are in memory only: {error}"
        self.closed_until = time.monotonic() + BREAK_S
