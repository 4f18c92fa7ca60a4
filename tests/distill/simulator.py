"""A simulator of a teacher: a vendor's wire format, answers by question and picture, and a bill of what it sent."""

from __future__ import annotations

import asyncio
import io
import json
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web
from PIL import Image, ImageDraw

from models.prices import Usage, load_prices
from tests.models.vendor_simulator import KEY, MODELS, Script, VendorSimulator

KEY_VARIABLE = "FOVEA_TEST_TEACHER_KEY"
COLOURS = {"red": (220, 30, 30), "green": (20, 160, 60), "blue": (30, 60, 220)}
Answer = Callable[[str, bytes | None, int], str]


def reply(answer: Any, confidence: float = 0.9) -> str:
    """Return what a well-behaved teacher writes."""
    return json.dumps({"answer": answer, "confidence": confidence, "rationale": "seen"})


class TeacherSimulator(VendorSimulator):
    """Answers with `answer(question, image or None, number of the request)`.

    `asked` counts requests by question; `bill` is what the replies that left cost by the price book.
    """

    def __init__(self, answer: Answer, *, vendor: str = "openai", delay_s: float = 0.0, **script: Any):
        super().__init__(vendor, Script(**({"input_tokens": 500, "output_tokens": 10} | script)))
        self.answer, self.delay_s = answer, delay_s
        self.asked: Counter[str] = Counter()
        self.sent = 0
        self.one = load_prices().find(MODELS[vendor]).cost(
            Usage(self.script.input_tokens, self.script.output_tokens)).total  # fmt: skip

    async def __aenter__(self) -> TeacherSimulator:
        await super().__aenter__()
        return self

    @property
    def bill(self) -> Decimal:
        return self.one * self.sent

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        question = words_of(body)
        self.asked[question] += 1
        if self.delay_s:
            await asyncio.sleep(self.delay_s)
        before = len(self.script.images)
        known, self.script.images = self.script.images, []
        try:
            self.wire.read(request, body)
        except Exception:
            self.script.images = []
        picture = self.script.images[0] if self.script.images else None
        self.script.images = known[:before]
        self.script.text = self.answer(question, picture, sum(self.asked.values()) - 1)
        found = await super()._handle(request)
        self.sent += found.status == 200
        return found


def words_of(body: dict[str, Any]) -> str:
    """Return the user's text of a request in any of the three formats."""
    message = (body.get("messages") or body["contents"])[-1]
    parts = message.get("content") or message.get("parts")
    return next(str(p["text"]) for p in parts if "text" in p)


def picture(colour: str, number: int, side: int = 48) -> bytes:
    """Return a PNG: a square of one colour whose place and size come from `number`."""
    image = Image.new("RGB", (side, side), (245, 245, 245))
    x, y, size = number * 7 % 24, number * 13 % 24, 10 + number % 12
    ImageDraw.Draw(image).rectangle((x, y, x + size, y + size), fill=COLOURS[colour])
    image.putpixel((0, 0), (number % 256, 245, 245))  # no two are the same file
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def colour_of(data: bytes | None) -> str:
    """Return the colour of a picture made by `picture`; `unknown` without one."""
    if data is None:
        return "unknown"
    with Image.open(io.BytesIO(data)) as image:
        pixels = set(image.convert("RGB").get_flattened_data())
    return next((name for name, rgb in COLOURS.items() if rgb in pixels), "unknown")


def write_data(folder: Path, n: int = 6, **extra: Any) -> list[dict[str, Any]]:
    """Write `n` pictures and rows.jsonl; return the rows.  Questions differ, so that requests can be told apart."""
    rows = []
    for i in range(n):
        colour = list(COLOURS)[i % 3]
        (folder / f"p{i}.png").write_bytes(picture(colour, i))
        rows.append(
            {"id": f"r{i}", "image": f"p{i}.png", "question": f"Colour of square {i}?", "category": colour} | extra
        )
    write_rows(folder / "rows.jsonl", rows)
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_recipe(folder: Path, url: str, *, vendor: str = "openai", teacher: dict[str, Any] | None = None,
                 **sections: Any) -> Path:  # fmt: skip
    """Write a recipe whose only teacher is a simulator at `url`."""
    one = {"name": "sim", "model": f"{vendor}/{MODELS[vendor]}", "vendor_url": url, "api_key_env": KEY_VARIABLE,
           "max_tokens": 60, "attempts": 3} | (teacher or {})  # fmt: skip
    recipe = {
        "name": "colours",
        "task": {"description": "Name the colour of the square."},
        "data": {"rows": "rows.jsonl"},
        "teachers": [{k: v for k, v in one.items() if v is not None}],
        "budget": {"max_usd": "1.00"},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe | sections))
    return path


__all__ = ["KEY", "KEY_VARIABLE", "MODELS", "TeacherSimulator", "colour_of", "picture", "reply", "write_data",
           "write_recipe", "write_rows"]  # fmt: skip
