"""A steady load whose answers are known, for drills, soaks and tests: users in a closed loop who check each answer."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

MODEL = "fovea-qwen"
COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0), "yellow": (255, 255, 0)}
QUESTION = "what color is the shape?"


def picture(color: str, seed: int) -> str:
    """Return a data URI of a shape of this colour, a little different for every seed."""
    from PIL import Image, ImageDraw

    rng = random.Random(seed)
    image = Image.new("RGB", (64, 64), (240, 244, 250 - rng.randrange(6)))
    x, y = rng.randrange(12, 20), rng.randrange(12, 20)
    ImageDraw.Draw(image).rectangle((x, y, x + 30, y + 30), fill=COLORS[color])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def body_of(color: str, seed: int, model: str = MODEL) -> dict[str, Any]:
    """Return a chat body whose right answer is `color`."""
    parts = [{"type": "image_url", "image_url": {"url": picture(color, seed)}}, {"type": "text", "text": QUESTION}]
    message = {"role": "user", "content": parts}
    return {"model": model, "messages": [message], "max_tokens": 8, "temperature": 0}


@dataclass
class Account:
    """What the users saw.

    Attributes:
        attempts: (when, what) of every attempt; `ok`, or why it failed.
        wrong: answers that were not the right one.
        given_up: requests that never got an answer.
        examples: what the first attempts that failed were told.
    """

    attempts: list[tuple[float, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    @property
    def answers(self) -> int:
        """How many attempts were answered."""
        return sum(what == "ok" for _, what in self.attempts)

    @property
    def failed(self) -> int:
        """How many were not."""
        return len(self.attempts) - self.answers

    def between(self, begin: float, end: float) -> dict[str, Any]:
        """Return what happened in a span of `time.monotonic()`."""
        inside = [(when, what) for when, what in self.attempts if begin <= when < end]
        good = [begin, *(when for when, what in inside if what == "ok"), end]
        failed = Counter(what for _, what in inside if what != "ok")
        return {
            "answers": len(good) - 2,
            "failed": dict(failed),
            "longest_without_an_answer_s": round(max(b - a for a, b in itertools.pairwise(good)), 2),
        }


@dataclass
class Load:
    """Users in a closed loop; a request that fails is sent again, half of them with an Idempotency-Key.

    Attributes:
        url: of the stack, without `/v1`.
        headers: of every request.
        pictures: different pictures of each colour; half of the requests show one of the first four in any case.
        pause_s: of a user after an answer.
    """

    url: str
    users: int = 4
    model: str = MODEL
    headers: dict[str, str] = field(default_factory=dict)
    pictures: int = 10**9
    pause_s: float = 0.03
    account: Account = field(default_factory=Account)
    stop: threading.Event = field(default_factory=threading.Event)

    async def run(self) -> None:
        """Ask until told to stop."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout, headers=self.headers) as session:
            await asyncio.gather(*(self._user(session, number) for number in range(self.users)))

    async def _user(self, session: Any, number: int) -> None:
        rng = random.Random(number)
        while not self.stop.is_set():
            color = rng.choice(list(COLORS))
            seed = rng.randrange(min(4, self.pictures) if rng.random() < 0.5 else self.pictures)
            body = body_of(color, seed, self.model)
            headers = {"idempotency-key": uuid.uuid4().hex} if rng.random() < 0.5 else {}
            for _ in range(200):
                said = await self._ask(session, body, headers)
                if said is not None:
                    if said != color:
                        self.account.wrong.append(f"{color}: {said!r}")
                    break
                await asyncio.sleep(0.25)
            else:
                self.account.given_up.append(color)
            await asyncio.sleep(self.pause_s)

    async def _ask(self, session: Any, body: dict[str, Any], headers: dict[str, str]) -> str | None:
        import aiohttp

        try:
            async with session.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as answer:
                text = await answer.text()
                kind = "ok" if answer.status == 200 else f"{answer.status} {_code(text)}".strip()
        except (aiohttp.ClientError, TimeoutError) as error:
            kind, text = type(error).__name__, str(error)
        self.account.attempts.append((time.monotonic(), kind))
        if kind == "ok":
            return str(json.loads(text)["choices"][0]["message"]["content"])
        if len(self.account.examples) < 10:
            self.account.examples.append(f"{kind}: {text[:200]}")
        return None


@contextmanager
def under(load: Load) -> Iterator[Load]:
    """Run a load in a thread of its own for as long as the block lasts."""
    thread = threading.Thread(target=lambda: asyncio.run(load.run()), daemon=True)
    thread.start()
    try:
        yield load
    finally:
        load.stop.set()
        thread.join(130)


def _code(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""
