"""Receipts in English and German; the answer is a JSON object.

100 clean ones and 20 of each kind of damage.  On a stained one the date is covered (expected null); on a wrong page
there is no receipt at all, and the right answer is to say so.  Printed is only what Pillow's own font can draw: ASCII.
"""

from __future__ import annotations

import datetime as dt
import io
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from models.golden.rendered.damage import DAMAGE, font, stain
from models.golden.sets import GoldenItem, GoldenSet, RenderedImage

CLEAN, PER_DAMAGE = 100, 20
NOT_A_RECEIPT = "not a receipt"
WIDTH = 320
_INK, _PAPER = (32, 30, 34), (250, 248, 242)

SHOPS = {
    "en": ("Corner Grocery", "Green Leaf Market", "Harbour Books", "North Cafe", "Oak Hardware", "Sunrise Bakery"),
    "de": ("Backhaus Kramer", "Blumen Vogel", "Kaffee am Markt", "Papier Lindner", "Radladen Nord", "Wiesenhof Laden"),
}
GOODS = {
    "en": (
        "Apples",
        "Bread",
        "Butter",
        "Coffee",
        "Notebook",
        "Orange juice",
        "Pencils",
        "Rice",
        "Screws",
        "Soap",
        "Tea",
    ),
    "de": (
        "Apfelsaft",
        "Brot",
        "Butter",
        "Filterkaffee",
        "Heft",
        "Milch",
        "Schrauben",
        "Reis",
        "Seife",
        "Tee",
        "Zucker",
    ),
}
WORDS = {"en": ("Date", "TOTAL", "Thank you"), "de": ("Datum", "SUMME", "Vielen Dank")}
LETTER = {
    "en": (
        "Dear neighbour,",
        "the lift is out of order",
        "until Friday. Please use",
        "the stairs meanwhile.",
        "Kind regards",
    ),
    "de": (
        "Liebe Nachbarn,",
        "der Aufzug ist bis Freitag",
        "außer Betrieb. Bitte nehmen",
        "Sie die Treppe.",
        "Viele Grüße",
    ),
}
QUESTION = (
    "Read this receipt. Answer with one JSON object with the keys merchant, date (YYYY-MM-DD), currency (EUR, USD or "
    "GBP), items (a list of names) and total (a number). Use null for what cannot be read. "
    f'If it is no receipt, answer "{NOT_A_RECEIPT}".'
)


@dataclass(frozen=True)
class Receipt:
    """What is printed on one receipt; prices in cents."""

    language: str
    merchant: str
    date: dt.date
    currency: str
    lines: tuple[tuple[str, int], ...]

    @property
    def total(self) -> int:
        return sum(cents for _, cents in self.lines)


def draw_receipt(rng: random.Random, language: str) -> Receipt:
    """Return a receipt with 2 to 6 different goods."""
    goods = rng.sample(GOODS[language], rng.randint(2, 6))
    return Receipt(
        language,
        rng.choice(SHOPS[language]),
        dt.date(2025, 1, 1) + dt.timedelta(days=rng.randrange(600)),
        "EUR" if language == "de" else rng.choice(("USD", "GBP")),
        tuple((name, rng.randint(49, 2999)) for name in goods),
    )


def amount(cents: int, language: str) -> str:
    """Return 1234 as `12.34` or, in German, `12,34`."""
    text = f"{cents // 100}.{cents % 100:02d}"
    return text.replace(".", ",") if language == "de" else text


def render(receipt: Receipt) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Return the picture and the box that the date fills."""
    date_word, total_word, thanks = WORDS[receipt.language]
    german = receipt.language == "de"
    shown = receipt.date.strftime("%d.%m.%Y" if german else "%Y-%m-%d")
    image = Image.new("RGB", (WIDTH, 170 + 26 * len(receipt.lines)), _PAPER)
    draw = ImageDraw.Draw(image)
    large, normal = font(22), font(16)
    draw.text((WIDTH // 2, 24), receipt.merchant, _INK, large, anchor="mm")
    date_text = f"{date_word}: {shown}"
    draw.text((20, 52), date_text, _INK, normal)
    date_box = tuple(round(v) for v in draw.textbbox((20, 52), date_text, normal))
    y = 86
    for name, cents in receipt.lines:
        draw.text((20, y), name, _INK, normal)
        draw.text((WIDTH - 20, y), amount(cents, receipt.language), _INK, normal, anchor="ra")
        y += 26
    draw.line((20, y + 2, WIDTH - 20, y + 2), _INK, 1)
    draw.text((20, y + 10), total_word, _INK, large)
    total = amount(receipt.total, receipt.language)
    total = f"{total} {receipt.currency}" if german else f"{receipt.currency} {total}"
    draw.text((WIDTH - 20, y + 10), total, _INK, large, anchor="ra")
    draw.text((WIDTH // 2, y + 58), thanks, _INK, normal, anchor="mm")
    return image, (date_box[0], date_box[1], date_box[2], date_box[3])


def render_letter(language: str) -> Image.Image:
    """Return a page that is no receipt."""
    image = Image.new("RGB", (WIDTH, 260), _PAPER)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(LETTER[language]):
        draw.text((24, 30 + 36 * number), line, _INK, font(18))
    return image


def as_image(picture: Image.Image, name: str) -> RenderedImage:
    """Return the picture as a PNG in memory."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=3)
    return RenderedImage(Path(f"{name}.png"), "image/png", picture.width, picture.height, buffer.getvalue())


@cache
def build(seed: int = 7) -> GoldenSet:
    """Return the set; the same seed gives the same set."""
    kinds = ["none"] * CLEAN + [k for k in (*DAMAGE, "occlusion", "wrong_page") for _ in range(PER_DAMAGE)]
    items = []
    for number, kind in enumerate(kinds):
        rng = random.Random(f"{seed}-{number}")
        language = ("en", "de")[number % 2]
        items.append(_item(f"receipt-{number:03d}", kind, language, rng))
    return GoldenSet("receipts", items, source=f"rendered by fovea, seed {seed}", licence="Apache-2.0")


def _item(name: str, kind: str, language: str, rng: random.Random) -> GoldenItem:
    receipt = draw_receipt(rng, language)
    picture, date_box = render(receipt)
    expected: dict[str, Any] | None = {
        "merchant": receipt.merchant,
        "date": receipt.date.isoformat(),
        "currency": receipt.currency,
        "items": [line for line, _ in receipt.lines],
        "total": receipt.total / 100,
    }
    rule = "json"
    options: dict[str, Any] = {"fields": {"total": {"rule": "numeric", "abs": 0.001}}}
    if kind == "occlusion" and expected is not None:
        picture, expected["date"] = stain(picture, date_box), None
    elif kind == "wrong_page":
        picture, expected = render_letter(language), None
        # each page is another photograph, so that no picture is twice in the set
        picture = DAMAGE["rotation"](picture, rng)
        rule, options = "abstain", {"phrases": [NOT_A_RECEIPT]}
    elif kind in DAMAGE:
        picture = DAMAGE[kind](picture, rng)
    tags = {"perturbation": kind, "language": language, "slice": "clean" if kind == "none" else "ugly"}
    category = "wrong_page" if kind == "wrong_page" else "receipt"
    image = as_image(picture, name)
    return GoldenItem(name, image, QUESTION, category, expected, rule, options, "test", tags)
