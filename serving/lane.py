"""The batch lane's window: requests that wait a moment leave together, in an order that the engine's caches like.

A group leaves when its oldest request has waited `window_ms`, or when it has `requests` requests or `tokens` prompt
tokens; at most `inside` batch requests are in the engine at once, and what comes while they are collects for the next
group.  Within a group, requests with the same first image stand together, ordered by their text, so that those with the
longest common start are neighbours.

While interactive requests are inside, and `quiet_ms` after the last one, batch requests wait at the door: every one
that runs beside them makes each step of the engine longer, whatever the scheduler's order.  One that has waited `age_s`
goes in all the same, `beside` of them at a time, so that nothing starves.

Whether waiting pays depends on what is sent: `auto` counts how many requests share their image or the start of their
text with another one of about the same time, and lets them pass at once while that is rare.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from serving.section import Section

START = 256
"""Characters of text that count as the same start: more than one block of the engine's prefix cache."""
WEIGHT = 0.05
"""Weight of the newest request in the share that `auto` goes by: the last twenty or so count."""


class Lane(Section):
    """Interactive requests go straight in; batch requests wait and leave grouped, behind the others (layer `lane`)."""

    window: Literal["on", "off", "auto"] = Field(
        "auto", description="Group batch requests: always, never, or while enough of them share an image or a prefix."
    )
    window_ms: float = Field(100.0, gt=0, le=60_000, description="Longest wait of a batch request in the window, ms.")
    requests: int = Field(64, ge=1, description="A group of so many leaves at once.")
    tokens: int = Field(65_536, ge=1, description="So does one of so many prompt tokens (by length, and images).")
    inside: int = Field(64, ge=1, description="Batch requests in the engine of one replica at once.")
    age_s: float = Field(
        30.0, gt=0, description="A batch request is as urgent as an interactive one that came so much later, seconds."
    )
    yields: bool = Field(True, description="Let batch requests in only while no interactive one is inside.")
    quiet_ms: float = Field(
        100.0, ge=0, le=60_000, description="They go in when there was no interactive request for so long, ms."
    )
    beside: int = Field(
        2, ge=1, description="Batch requests that go in beside interactive ones at once, after waiting for `age_s`."
    )
    share: float = Field(0.1, ge=0, le=1, description="`auto` groups while at least this share of requests can profit.")


@dataclass(slots=True)
class Waiter:
    """One request in the window."""

    image: str
    text: str
    tokens: int
    arrived: float = field(default_factory=time.monotonic)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def order(self) -> tuple[str, str]:
        """What a group is sorted by."""
        return (self.image, self.text)


class Places:
    """Who may be in the engine: `inside` batch requests, fewer while interactive ones are there."""

    def __init__(self, section: Lane):
        self.section = section
        self.used = self.interactive = 0
        self.left = float("-inf")
        """When the last interactive request ended."""
        self.queue: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def interactively(self) -> Iterator[None]:
        """Keep batch requests out for as long as this lasts."""
        self.interactive += 1
        try:
            yield
        finally:
            self.interactive -= 1
            self.left = time.monotonic()
            if self.queue:
                self._let_in()

    async def take(self, arrived: float) -> None:
        """Wait for a place, in the order of asking; `give` must follow.  `arrived`: since when the request waits."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.queue.append((arrived, turn))
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give()
            else:
                self.queue = deque(one for one in self.queue if one[1] is not turn)
                self._let_in()
            raise

    def give(self) -> None:
        """Give a place back."""
        self.used -= 1
        self._let_in()

    def _let_in(self) -> None:
        while self.queue and self.used < self._most():
            _, turn = self.queue.popleft()
            if not turn.done():
                self.used += 1
                turn.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.queue and self.used < self.section.inside:
            now = time.monotonic()
            ends = [self.queue[0][0] + self.section.age_s]
            if not self.interactive:
                ends.append(self.left + self.section.quiet_ms / 1000)
            later = [end - now for end in ends if end > now]
            if later:  # else the next one that ends lets them in
                self._timer = asyncio.get_running_loop().call_later(min(later) + 0.001, self._let_in)

    def _most(self) -> int:
        now = time.monotonic()
        quiet = not self.interactive and now - self.left >= self.section.quiet_ms / 1000
        if quiet or not self.section.yields:
            return self.section.inside
        aged = now - self.queue[0][0] >= self.section.age_s
        return min(self.section.beside, self.section.inside) if aged else 0


class Window:
    """See the module's docstring."""

    def __init__(self, section: Lane):
        self.section = section
        self.waiting: list[Waiter] = []
        self.places = Places(section)
        self.shared = 1.0 if section.window == "on" else 0.0
        self.recent: OrderedDict[object, float] = OrderedDict()
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def enter(self, waiter: Waiter) -> None:
        """Wait for a request's turn; `leave` must follow."""
        self._learn(waiter)
        if not self.grouping:
            await self.places.take(waiter.arrived)
            return
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        self.waiting.append(waiter)
        self._news.set()
        try:
            await waiter.go.wait()
        except asyncio.CancelledError:
            if waiter in self.waiting:
                self.waiting.remove(waiter)
            elif waiter.go.is_set():
                self.places.give()
            else:
                waiter.tokens = -1  # its group is on the way: `_run` passes it over
            raise

    def leave(self) -> None:
        """Make room for the next one."""
        self.places.give()

    def stop(self) -> None:
        """End the task."""
        if self._task is not None:
            self._task.cancel()

    @property
    def grouping(self) -> bool:
        """Whether requests wait at the moment."""
        how = self.section.window
        return how == "on" or (how == "auto" and self.shared >= self.section.share)

    def _learn(self, waiter: Waiter) -> None:
        """Count whether a request could profit from one that came at most a few windows before."""
        now = time.monotonic()
        reach = max(4 * self.section.window_ms / 1000, 1.0)
        while self.recent and now - next(iter(self.recent.values())) > reach:
            self.recent.popitem(last=False)
        marks: list[object] = [("image", waiter.image)] if waiter.image else []
        if len(waiter.text) >= START:
            marks.append(("text", waiter.text[:START]))
        profits = any(mark in self.recent for mark in marks)
        for mark in marks:
            self.recent.pop(mark, None)
            self.recent[mark] = now
        self.shared += WEIGHT * (profits - self.shared)

    async def _run(self) -> None:
        while True:
            while not self.waiting:
                self._news.clear()
                await self._news.wait()
            ends = self.waiting[0].arrived + self.section.window_ms / 1000
            while not self._full() and (left := ends - time.monotonic()) > 0:
                self._news.clear()
                try:
                    async with asyncio.timeout(left):
                        await self._news.wait()
                except TimeoutError:
                    break
            group, self.waiting = sorted(self.waiting, key=lambda waiter: waiter.order), []
            oldest = min(waiter.arrived for waiter in group)
            for waiter in group:
                await self.places.take(oldest)
                if waiter.tokens < 0:
                    self.places.give()
                    continue
                waiter.go.set()
                await asyncio.sleep(0)  # it goes in before the next one does

    def _full(self) -> bool:
        enough = len(self.waiting) >= self.section.requests
        return enough or sum(waiter.tokens for waiter in self.waiting) >= self.section.tokens


def text_of(body: dict[str, Any]) -> str:
    """Return the text of a request in its order: what a prefix cache sees of it."""
    pieces: list[str] = []
    prompt = body.get("prompt", body.get("input"))
    if isinstance(prompt, str):
        pieces.append(prompt)
    messages = body.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            pieces.append(content)
        for part in content if isinstance(content, list) else ():
            text = part.get("text") if isinstance(part, dict) else None
            if isinstance(text, str):
                pieces.append(text)
    return "\n".join(pieces)
