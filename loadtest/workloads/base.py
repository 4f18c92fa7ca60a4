"""What a workload is: a numbered set of prompts, some with a truth to score answers against."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from loadtest.apis import Message
from models.support.errors import UsageError


@dataclass(frozen=True)
class Shape:
    """How large a query is, for pricing it at a vendor's rules: pixels of each image, number of images, text length."""

    width: int = 0
    height: int = 0
    images: int = 0
    text_chars: int = 0


@dataclass(frozen=True)
class Item:
    """One prompt.

    Args:
        id: its name in reports and CSV files.
        messages: the conversation that is sent.
        check: tells whether an answer is right; None when there is no truth.
        options: fields of the request body that this item sets (`max_tokens`...).
    """

    id: str
    messages: tuple[Message, ...]
    check: Callable[[str], bool] | None = None
    expected: str = ""
    category: str = ""
    shape: Shape = field(default_factory=Shape)
    options: dict[str, Any] = field(default_factory=dict)


class Workload(Protocol):
    """A finite, numbered set of items; the same name, options and seed give the same items."""

    name: str
    digest: str

    def __len__(self) -> int: ...

    def item(self, index: int) -> Item:
        """Return item `index` (0 <= index < len)."""
        ...


class ListWorkload:
    """A workload whose items are all at hand."""

    def __init__(self, name: str, items: list[Item], digest: str):
        self.name, self.items, self.digest = name, items, digest

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int) -> Item:
        """Return item `index`."""
        return self.items[index]


class Conversations(ListWorkload):
    """Conversations of `turns` turns each, one after another: item c * turns + t is what the user adds in turn t.

    What was said before, the server's own answers among it, is put in front when the turn is sent.

    Args:
        live: how many are under way at a time in an open loop.
    """

    def __init__(self, name: str, items: list[Item], digest: str, turns: int, live: int):
        super().__init__(name, items, digest)
        self.turns, self.live = turns, live


def digest_of(*parts: bytes | str) -> str:
    """Return a short SHA-256 over the parts, each set off by its length."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return "sha256:" + total.hexdigest()[:32]


Maker = Callable[..., Workload]
WORKLOADS: dict[str, Maker] = {}


def workload(name: str) -> Callable[[Maker], Maker]:
    """Register a workload by name; the function takes `seed` and the workload's own options."""

    def register(function: Maker) -> Maker:
        WORKLOADS[name] = function
        return function

    return register


def option_error(name: str, value: object, message: str) -> UsageError:
    """Return the error for a workload option that makes no sense."""
    return UsageError(message, field=f"--workload-option {name}", value=value, fix="see docs/loadtest.md, Workloads")
