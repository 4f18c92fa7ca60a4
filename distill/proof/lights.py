"""The document task of the proof: photographs of a modem's lights; the answer is JSON, one field a light.

Drawn without end from a seed: wall, housing, labels in several sizes of type, then blur, noise, turning, shade and
compression as cameras do it.
"""

from __future__ import annotations

import io
import json

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from models.golden.rendered.damage import font

FIELDS = ("power", "dsl", "net", "wlan")
STATES = {"off": (46, 48, 52), "green": (40, 210, 80), "yellow": (255, 196, 0), "red": (235, 40, 40)}
QUESTION = "Give the lights as JSON."
SIDE = 128


def draw(rng: np.random.Generator) -> tuple[Image.Image, dict[str, str]]:
    """Return a picture (128x128 RGB) and the state of each light."""
    shown = {field: list(STATES)[int(rng.integers(4))] for field in FIELDS}
    image = Image.new("RGB", (SIDE, SIDE), _color(rng, 140, 225))
    pen = ImageDraw.Draw(image)
    body = ((28, 30, 34), (238, 238, 236), (70, 78, 92), (150, 152, 158))[int(rng.integers(4))]
    ink = (235, 235, 235) if sum(body) < 380 else (40, 40, 40)
    left, top, height = int(rng.integers(2, 9)), int(rng.integers(24, 52)), int(rng.integers(40, 58))
    pen.rounded_rectangle((left, top, left + 116, top + height), radius=int(rng.integers(2, 12)), fill=body)
    radius, type_size = int(rng.integers(8, 11)), int(rng.integers(8, 12))
    level = top + radius + int(rng.integers(4, 9))
    for number, field in enumerate(FIELDS):
        x = left + 16 + 28 * number
        edge = tuple(int(c * 0.4) for c in STATES[shown[field]])
        pen.ellipse((x - radius, level - radius, x + radius, level + radius), fill=STATES[shown[field]], outline=edge)
        pen.text((x, level + radius + 9), field.upper(), ink, font(type_size), anchor="mm")
    return _photograph(image, rng), shown


def text_of(shown: dict[str, str]) -> str:
    """Return the answer as the teacher is taught to write it."""
    return json.dumps(shown)


def _photograph(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.6:
        image = image.rotate(rng.uniform(-9, 9), Image.Resampling.BICUBIC, fillcolor=_color(rng, 60, 200))
    if rng.random() < 0.4:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.6)))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.65, 1.15))
    if rng.random() < 0.5:
        noise = rng.normal(0, rng.uniform(2, 14), (SIDE, SIDE, 3))
        image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(25, 90)))
        with Image.open(buffer) as damaged:
            image = damaged.convert("RGB")
    return image


def _color(rng: np.random.Generator, low: int, high: int) -> tuple[int, int, int]:
    r, g, b = (int(c) for c in rng.integers(low, high, 3))
    return r, g, b
