"""A steady load whose answers are known, for drills and soaks: users in a closed loop who check what they are told."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import random
import time
import uuid
from collections import Counter
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


def body_of(color: str, seed: int) -> dict[str, Any]:
    """Return a chat body whose right answer is `color`."""
    parts = [{"type": "image_url", "image_url": {"url": picture(color, seed)}}, {"type": "text", "text": QUESTION}]
    message = {"role": "user", "content": parts}
    return {"model": MODEL, "messages": [message], "max_tokens": 8, "temperature": 0}


@dataclass
class Account:
    """What the users saw: (when, what) of every attempt, wrong answers, requests that never got one."""

    attempts: list[tuple[float, str]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)

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


class Load:
    """Users in a closed loop."""

    def __init__(self, url: str, users: int = 4):
        self.url, self.users, self.account, self.stop = url, users, Account(), asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Ask until told to stop."""
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            await asyncio.gather(*(self._user(session, number) for number in range(self.users)))

    async def _user(self, session: Any, number: int) -> None:
        rng = random.Random(number)
        while not self.stop.is_set():
            color = rng.choice(list(COLORS))
            body = body_of(color, rng.randrange(4) if rng.random() < 0.5 else rng.randrange(10**9))
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
            await asyncio.sleep(0.03)

    async def _ask(self, session: Any, body: dict[str, Any], headers: dict[str, str]) -> str | None:
        import aiohttp

        try:
            async with session.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as answer:
                text = await answer.text()
                kind = "ok" if answer.status == 200 else f"{answer.status} {_code(text)}".strip()
        except (aiohttp.ClientError, TimeoutError) as error:
            kind, text = type(error).__name__, ""
        self.account.attempts.append((time.monotonic(), kind))
        return str(json.loads(text)["choices"][0]["message"]["content"]) if kind == "ok" else None


def _code(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""
