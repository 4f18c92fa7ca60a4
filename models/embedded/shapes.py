"""Pictures and questions of the easy-VQA kind, rendered without end from a seed.

The published easy-VQA training split has only 4,000 pictures.  This module draws more of the same distribution (one
plain shape on a light background, 64x64 pixels) and asks the published question templates about them, so that the
embedded models can be trained without ever seeing a test picture.  A share of the pictures is *varied* (turned, other
tints, JPEG damage, another size), which the published set is not, so that a user's own drawing is answered too.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64
"""Width and height of an easy-VQA picture, pixels."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
    "yellow": (255, 255, 0),
}
SHAPES: tuple[str, ...] = ("rectangle", "circle", "triangle")

# The published templates with the weight that each has in the training split (a shape is named about a third as often).
COLOR_YES_NO = (
    "is a {color} shape present?",
    "is there a {color} shape?",
    "is there a {color} shape in the image?",
    "does the image contain a {color} shape?",
)
COLOR_NO_YES = (
    "is no {color} shape present?",
    "is there not a {color} shape?",
    "is there not a {color} shape in the image?",
    "does the image not contain a {color} shape?",
)
SHAPE_YES_NO = tuple(template.replace("{color} shape", "{shape}") for template in COLOR_YES_NO)
SHAPE_NO_YES = tuple(template.replace("{color} shape", "{shape}") for template in COLOR_NO_YES)
ASK_COLOR = (
    "what color is the shape?",
    "what color is the {shape}?",
    "what is the color of the shape?",
    "what is the color of the {shape}?",
)
ASK_SHAPE = (
    "what shape is in the image?",
    "what shape does the image contain?",
    "what shape is present?",
    "what is the {color} shape?",
)
ASK_BOTH = ("describe the image.", "what is in the image?", "caption this image.")
ASK_JSON = ("answer in JSON with the keys shape and color.", "give the shape and the color as JSON.")


@dataclass(frozen=True)
class Scene:
    """What a picture shows: `box` is (x0, y0, x1, y1) as fractions of the picture's width and height."""

    shape: str
    color: str
    box: tuple[float, float, float, float]

    @property
    def caption(self) -> str:
        """A four-word description, the answer to the `ASK_BOTH` questions."""
        return f"a {self.color} {self.shape}"

    @property
    def as_json(self) -> str:
        """The scene as compact JSON, the answer to the `ASK_JSON` questions."""
        return json.dumps({"shape": self.shape, "color": self.color})


def render(
    rng: np.random.Generator, varied: bool = False, canvas: tuple[int, int] = (SIZE, SIZE)
) -> tuple[Image.Image, Scene]:
    """Draw one picture.

    Args:
        rng: source of all randomness.
        varied: also turn the shape, tint the colours, damage by JPEG and resize (not done by the published set).
        canvas: width and height of the picture, pixels.

    Returns:
        The RGB picture and what it shows.
    """
    scale = 4  # drawn larger and reduced, so that edges are smooth as in the published pictures
    shape = SHAPES[rng.integers(len(SHAPES))]
    color = list(COLORS)[rng.integers(len(COLORS))]
    frame = np.array(canvas)
    width, height = rng.uniform(8.5, min(33.0, frame.min() - 2.0), size=2)
    if shape == "circle":
        height = width
    elif shape == "triangle":
        height = width * 3**0.5 / 2
    x0, y0 = rng.uniform(0, frame[0] - width), rng.uniform(0, frame[1] - height)
    x1, y1 = x0 + width, y0 + height
    background = tuple(int(c) for c in rng.integers(230, 256, size=3))
    fill: tuple[int, ...] = COLORS[color]
    if varied:
        if rng.random() < 0.5:
            background = tuple(int(c) for c in rng.integers(190, 256, size=3))
        fill = tuple(int(c) for c in np.clip(np.array(fill) + rng.integers(-18, 19, size=3), 0, 255))
    corners = _corners(shape, x0, y0, x1, y1)
    if varied and rng.random() < 0.6:
        corners = _turn(corners, rng.uniform(0, 2 * np.pi))
        corners -= np.minimum(corners.min(axis=0), 0)
        corners -= np.maximum(corners.max(axis=0) - frame, 0)
    picture = Image.new("RGB", (canvas[0] * scale, canvas[1] * scale), background)
    ImageDraw.Draw(picture).polygon([(float(x) * scale, float(y) * scale) for x, y in corners], fill=fill)
    zoom = 1.0 if not varied or rng.random() < 0.5 else rng.uniform(0.75, 2.5)
    picture = picture.resize((round(canvas[0] * zoom), round(canvas[1] * zoom)), Image.Resampling.LANCZOS)
    if varied and rng.random() < 0.4:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(40, 95)))
        picture = Image.open(buffer).convert("RGB")
    if picture.size != canvas:
        picture = picture.resize(canvas, Image.Resampling.BICUBIC)
    low, high = np.clip(corners.min(axis=0) / frame, 0, 1), np.clip(corners.max(axis=0) / frame, 0, 1)
    return picture, Scene(shape, color, (float(low[0]), float(low[1]), float(high[0]), float(high[1])))


def _corners(shape: str, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Return the outline as an (n, 2) array of x, y; a circle is a 48-gon."""
    if shape == "rectangle":
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    if shape == "triangle":
        return np.array([((x0 + x1) / 2, y0), (x1, y1), (x0, y1)])
    angles = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([(x0 + x1) / 2 + (x1 - x0) / 2 * np.cos(angles), (y0 + y1) / 2 + (y1 - y0) / 2 * np.sin(angles)], 1)


def _turn(corners: np.ndarray, angle: float) -> np.ndarray:
    """Turn an outline about its centre by `angle` radians."""
    centre = corners.mean(axis=0)
    cos, sin = np.cos(angle), np.sin(angle)
    return (corners - centre) @ np.array([[cos, sin], [-sin, cos]]) + centre


def answer(question: str, scene: Scene) -> str:
    """Return the true answer to a published easy-VQA question (or one of its templates, filled in) about `scene`."""
    words = question.casefold().rstrip("?. ").split()
    if words[0] == "what":
        return scene.color if "color" in words else scene.shape
    holds = scene.color in words if any(c in words for c in COLORS) else scene.shape in words
    negated = "not" in words or "no" in words
    return "yes" if holds != negated else "no"


def draw_question(
    rng: np.random.Generator, scene: Scene, dense: float, extra: float = 0.08, negation: float = 0.5
) -> tuple[str, str]:
    """Draw one question about `scene` and return it with its true answer.

    Args:
        rng: source of randomness.
        scene: what the picture shows.
        dense: probability of a question whose answer names the colour or the shape (they teach the picture fastest);
            the rest are the published yes/no questions, half of them true.
        extra: probability of a caption or JSON question, which easy-VQA does not have.
        negation: share of the yes/no questions that say "no" or "not".
    """
    draw = rng.random()
    if draw < extra:
        if rng.random() < 0.5:
            return _pick(rng, ASK_BOTH), scene.caption
        return _pick(rng, ASK_JSON), scene.as_json
    if draw < extra + (1 - extra) * dense:
        group = ASK_COLOR if rng.random() < 0.4 else ASK_SHAPE
        question = _pick(rng, group).format(color=scene.color, shape=scene.shape)
        return question, answer(question, scene)
    about_color = rng.random() < 0.7
    truth = scene.color if about_color else scene.shape
    others = [name for name in (COLORS if about_color else SHAPES) if name != truth]
    named = truth if rng.random() < 0.5 else others[rng.integers(len(others))]
    negated = rng.random() < negation
    if about_color:
        question = _pick(rng, COLOR_NO_YES if negated else COLOR_YES_NO).format(color=named)
    else:
        question = _pick(rng, SHAPE_NO_YES if negated else SHAPE_YES_NO).format(shape=named)
    return question, answer(question, scene)


def rephrase(rng: np.random.Generator, question: str) -> str:
    """Vary a question as people do: capital letter, no question mark, British spelling, a polite word."""
    draw = rng.random(4)
    if draw[0] < 0.5:
        question = question[0].upper() + question[1:]
    if draw[1] < 0.2:
        question = question.rstrip("?.")
    if draw[2] < 0.15:
        question = question.replace("color", "colour").replace("gray", "grey")
    if draw[3] < 0.1:
        question = f"{question} Answer with one word." if "JSON" not in question else f"Please {question}"
    return question


def corpus() -> list[str]:
    """Every sentence that the recipes use, for training the tokenizers."""
    lines = [*ASK_BOTH, *ASK_JSON]
    for group in (COLOR_YES_NO, COLOR_NO_YES, SHAPE_YES_NO, SHAPE_NO_YES, ASK_COLOR, ASK_SHAPE):
        lines += [t.format(color=c, shape=s) for t in group for c in COLORS for s in SHAPES]
    lines += [Scene(s, c, (0, 0, 1, 1)).caption for c in COLORS for s in SHAPES]
    lines += [Scene(s, c, (0, 0, 1, 1)).as_json for c in COLORS for s in SHAPES]
    lines += ["yes", "no", *COLORS, *SHAPES, "system user assistant", "You are a helpful assistant."]
    capitals = [line[0].upper() + line[1:] for line in lines]
    return lines + capitals + ["colour grey Answer with one word. Please answer en caption en detect"]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]
