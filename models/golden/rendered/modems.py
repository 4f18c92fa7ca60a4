"""Photographs of a modem's lights with a customer's words, in English and German; the answer is a diagnosis.

The lights decide: some customers describe something else than the picture shows (tag `text`: `agrees`, `vague`,
`contradicts`).  100 clean pictures and 20 of each kind of damage; on a wrong page there is no modem.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw

from models.golden.rendered.damage import DAMAGE, font, stain
from models.golden.rendered.receipts import as_image, render_letter
from models.golden.sets import GoldenItem, GoldenSet

CLEAN, PER_DAMAGE = 100, 20
NOT_A_MODEM = "not a modem"
OFF, GREEN, AMBER, RED = (46, 48, 52), (40, 210, 80), (255, 176, 0), (235, 40, 40)
LIGHTS = ("POWER", "DSL", "INTERNET", "WLAN")


@dataclass(frozen=True)
class Fault:
    """A diagnosis and the lights that show it."""

    name: str
    lights: tuple[tuple[int, int, int], ...]
    complaint: dict[str, str]


FAULTS = (
    Fault("no power", (OFF, OFF, OFF, OFF), {"en": "It is completely dead.", "de": "Er ist völlig tot."}),
    Fault(
        "line down",
        (GREEN, AMBER, OFF, GREEN),
        {"en": "No signal since the storm.", "de": "Seit dem Sturm kein Signal."},
    ),
    Fault(
        "login failed",
        (GREEN, GREEN, RED, GREEN),
        {"en": "It says wrong password.", "de": "Er meldet ein falsches Passwort."},
    ),
    Fault(
        "wireless off",
        (GREEN, GREEN, GREEN, OFF),
        {"en": "My phone cannot find it.", "de": "Mein Handy findet ihn nicht."},
    ),
    Fault("all fine", (GREEN, GREEN, GREEN, GREEN), {"en": "It works again, I think.", "de": "Es geht wohl wieder."}),
)
VAGUE = {"en": "The internet does not work.", "de": "Das Internet geht nicht."}
QUESTION = {
    "en": "The customer writes: “{text}” The photo shows the modem's lights. Answer with one of: {names}. "
    "If the photo shows no modem, answer “{none}”.",
    "de": "Der Kunde schreibt: „{text}“ Das Foto zeigt die Lampen des Modems. Was ist los? Antworte mit: {names}. "
    "Wenn das Foto kein Modem zeigt, antworte „{none}“.",
}


def render(fault: Fault, rng: random.Random) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Return the picture and the box of the INTERNET light with its label."""
    width, height = 360, 200
    wall = tuple(rng.randint(150, 215) for _ in range(3))
    body = rng.choice(((28, 30, 34), (238, 238, 236), (70, 78, 92)))
    ink = (235, 235, 235) if sum(body) < 380 else (40, 40, 40)
    image = Image.new("RGB", (width, height), wall)
    draw = ImageDraw.Draw(image)
    left, top = rng.randint(14, 30), rng.randint(44, 70)
    draw.rounded_rectangle((left, top, left + 310, top + 84), radius=14, fill=body, outline=(20, 20, 20), width=2)
    small = font(13)
    boxes = []
    for number, (label, color) in enumerate(zip(LIGHTS, fault.lights, strict=True)):
        x = left + 44 + 74 * number
        draw.ellipse((x - 9, top + 18, x + 9, top + 36), fill=color, outline=(0, 0, 0))
        draw.text((x, top + 58), label, ink, small, anchor="mm")
        boxes.append((x - 34, top + 14, x + 34, top + 68))
    return image, boxes[2]


@cache
def build(seed: int = 11) -> GoldenSet:
    """Return the set; the same seed gives the same set."""
    kinds = ["none"] * CLEAN + [k for k in (*DAMAGE, "occlusion", "wrong_page") for _ in range(PER_DAMAGE)]
    items = []
    for number, kind in enumerate(kinds):
        rng = random.Random(f"{seed}-{number}")
        items.append(_item(f"modem-{number:03d}", kind, ("en", "de")[number // 5 % 2], FAULTS[number % 5], rng))
    return GoldenSet("modems", items, source=f"rendered by fovea, seed {seed}", licence="Apache-2.0")


def _item(name: str, kind: str, language: str, fault: Fault, rng: random.Random) -> GoldenItem:
    picture, internet_box = render(fault, rng)
    text_kind = rng.choice(("agrees", "vague", "contradicts"))
    other = rng.choice([f for f in FAULTS if f is not fault])
    text = {"agrees": fault.complaint, "vague": VAGUE, "contradicts": other.complaint}[text_kind][language]
    expected = fault.name
    if kind == "wrong_page":
        picture, expected = DAMAGE["rotation"](render_letter(language), rng), NOT_A_MODEM
    elif kind == "occlusion":
        # the stain hides a light that the diagnosis does not need: the line is down whatever INTERNET says
        fault = FAULTS[rng.choice((0, 1))]
        picture, internet_box = render(fault, rng)
        picture, expected = stain(picture, internet_box), fault.name
    elif kind in DAMAGE:
        picture = DAMAGE[kind](picture, rng)
    names = ", ".join(f.name for f in FAULTS)
    question = QUESTION[language].format(text=text, names=names, none=NOT_A_MODEM)
    tags = {
        "perturbation": kind,
        "language": language,
        "slice": "clean" if kind == "none" else "ugly",
        "text": text_kind,
    }
    return GoldenItem(name, as_image(picture, name), question, expected, expected, "normalized", {}, "test", tags)
