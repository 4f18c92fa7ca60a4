"""From a workload to the bytes that are sent: every body is serialized before the clock starts.

A finite workload is walked through in order; when a run needs more requests than it has items, it begins again.  A
prompt that is used again gets a short unique mark in front of its text (unless `cache_bust` is off), so that a cache
in the server does not answer what the test should measure.  Items with a truth are never changed: their repeats are
counted instead.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import orjson

from loadtest.apis import Api, Message, Part
from loadtest.client import Target, request_head
from loadtest.config import RunConfig, TrafficClass
from loadtest.workloads.base import Item, Workload
from models.support.errors import UsageError

if TYPE_CHECKING:
    from loadtest.dialogue import Talk

MARK = "[0123456789ab] "  # the shape of a cache-busting mark; the hex digits are replaced
_PLACE = b"@fovea-mark@"
BUDGET = 1 << 30  # bytes of prepared bodies that one process may hold


@dataclass
class Prepared:
    """One serialized request."""

    head: bytes
    body: bytes
    mark_at: int  # where a mark goes in the body, -1: nowhere

    def payload(self, mark: bytes = b"") -> bytes:
        """Return the whole request, with a mark in the prompt when one is given and there is a place for it."""
        if not mark or self.mark_at < 0:
            return b"%s%d\r\n\r\n%s" % (self.head, len(self.body), self.body)
        at = self.mark_at
        return b"%s%d\r\n\r\n%s%s%s" % (self.head, len(self.body) + len(mark), self.body[:at], mark, self.body[at:])


def _marked(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the messages with a placeholder in front of the first text that the user says."""
    for i, message in enumerate(messages):
        if message.role != "user":
            continue
        for j, part in enumerate(message.parts):
            if part.kind == "text":
                parts = (*message.parts[:j], Part("text", _PLACE.decode() + part.text), *message.parts[j + 1 :])
                return (*messages[:i], replace(message, parts=parts), *messages[i + 1 :])
    return messages


class Source:
    """Hands out ready requests of one traffic class by number.

    Args:
        first: how many requests will be drawn at most, when that is known (no more items are prepared than that).
        worker, workers: this process serves numbers worker, worker + workers, ...
    """

    def __init__(
        self,
        workload: Workload,
        config: RunConfig,
        traffic: TrafficClass,
        api: Api,
        target: Target,
        key: str,
        first: int | None = None,
        worker: int = 0,
        workers: int = 1,
    ):
        self.workload, self.config, self.traffic, self.api = workload, config, traffic, api
        self.size = len(workload)
        self.head = request_head(
            target, api.path(target.base, config.model, config.stream), {**api.headers(key), **traffic.headers}
        )
        self.busts = self.repeats = 0
        self.counts: dict[str, int] = {}  # of conversations: there are none
        self._seed = f"{config.seed}/{traffic.name}".encode()
        self._ready: dict[int, Prepared] = {}
        self._items: dict[int, Item] = {}
        needed = self.size if first is None else min(first, self.size)
        held = 0
        # With co-prime strides every process meets every item; otherwise it meets its own share only.
        numbers = range(worker, needed if first is not None else self.size * workers, workers)
        for number in numbers:
            index = number % self.size
            if index in self._ready:
                break
            self._prepare(index)
            held += len(self._ready[index].body)
            if held > BUDGET:
                raise UsageError(
                    f"the workload's bodies take more than {BUDGET >> 20} MiB of memory",
                    field="--workload",
                    value=workload.name,
                    fix="use fewer or smaller items (for instance --workload-option limit=1000)",
                )
        self.scored = self.wants_text = any(item.check for item in self._items.values())

    def _prepare(self, index: int) -> Prepared:
        item = self.workload.item(index)
        options = self.traffic.options(self.config.temperature) | item.options
        messages = item.messages if item.check else _marked(item.messages)
        value = self.api.body(self.config.model, messages, options, self.config.stream)
        body = orjson.dumps(value)
        at = body.find(_PLACE)
        prepared = Prepared(self.head, body.replace(_PLACE, b"", 1) if at >= 0 else body, at)
        self._ready[index] = prepared
        self._items[index] = item
        return prepared

    def item(self, index: int) -> Item:
        """Return a prepared item."""
        return self._items[index]

    def sample(self) -> bytes:
        """Return the first request of the workload."""
        return (self._ready.get(0) or self._prepare(0)).payload()

    def request(self, number: int, user: int = -1) -> tuple[int, bytes, Talk | None]:
        """Return (item index, whole HTTP request, no conversation) for request `number` of the run."""
        index = number % self.size
        prepared = self._ready.get(index) or self._prepare(index)
        if number < self.size:
            return index, prepared.payload(), None
        if prepared.mark_at < 0 or not self.config.cache_bust:
            self.repeats += 1
            return index, prepared.payload(), None
        self.busts += 1
        digest = hashlib.blake2b(self._seed + number.to_bytes(8, "little"), digest_size=6).hexdigest()
        return index, prepared.payload(b"[" + digest.encode() + b"] "), None

    def answered(self, talk: Talk, text: str | None) -> None:
        """Do nothing: these requests do not go on from one another."""

    def check(self, index: int, text: str) -> int:
        """Return 1 for a right answer, 0 for a wrong one, -1 when the item has no truth."""
        check = self._items[index].check
        return -1 if check is None else int(check(text))
