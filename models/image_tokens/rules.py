"""The rules themselves: one small frozen class per way of counting, each with its formula and where it is documented.

The vendors' rules are computed exactly (integers, fractions): a float at 33.000000001 patches would cost a whole row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Protocol

# `low` and `high` are OpenAI's words; `original` asks for what the model can take at most, where a vendor has that.
DETAILS = ("low", "high", "original")

OPENAI_DOC = "developers.openai.com/api/docs/guides/images-vision"
CLAUDE_DOC = "platform.claude.com/docs/en/build-with-claude/vision"
GEMINI_DOC = "ai.google.dev/gemini-api/docs/image-understanding"
GEMINI_RESOLUTION_DOC = "ai.google.dev/gemini-api/docs/media-resolution"


class TokenRule(Protocol):
    """Counts the tokens of one image.  `name` is short, `source` says where the rule is documented."""

    name: ClassVar[str]

    @property
    def source(self) -> str: ...

    def tokens(self, width: int, height: int, detail: str) -> int:
        """Return the tokens of a width x height pixels image; both are at least 1."""
        ...


def _ceil_div(value: int, unit: int) -> int:
    return -(-value // unit)


def fit_within(width: int, height: int, *, long_side: int) -> tuple[int, int]:
    """Return the size after shrinking to at most `long_side` px on the longer side; never enlarged."""
    longest = max(width, height)
    if longest <= long_side:
        return width, height
    return max(1, width * long_side // longest), max(1, height * long_side // longest)


@dataclass(frozen=True)
class OpenAITiles:
    """`base + per_tile * tiles` (detail low: `base`).

    The image is fitted into 2048x2048, its short side is shrunk to 768, then the 512x512 tiles that cover it count.
    """

    base: int
    per_tile: int
    name: ClassVar[str] = "openai-tiles"
    source: str = OPENAI_DOC

    def tokens(self, width: int, height: int, detail: str) -> int:
        if detail == "low":
            return self.base
        width, height = fit_within(width, height, long_side=2048)
        shortest = min(width, height)
        if shortest > 768:
            width, height = width * 768 // shortest, height * 768 // shortest
        return self.base + self.per_tile * _ceil_div(width, 512) * _ceil_div(height, 512)


@dataclass(frozen=True)
class OpenAIPatches:
    """`ceil(patches * multiplier)` with patches of 32x32 px, after shrinking to a longest side and a patch budget.

    `original` holds (budget, longest side) of `detail: original`; None: the model has no such level, `high` is used.
    `low_side`: the box of `detail: low`; None: the level does not change the bill.
    """

    multiplier: Fraction
    budget: int = 1536
    long_side: int = 2048
    original: tuple[int, int] | None = None
    low_side: int | None = None
    name: ClassVar[str] = "openai-patches"
    source: str = OPENAI_DOC

    def tokens(self, width: int, height: int, detail: str) -> int:
        budget, long_side = self.budget, self.long_side
        if detail == "original" and self.original is not None:
            budget, long_side = self.original
        elif detail == "low" and self.low_side is not None:
            long_side = self.low_side
        width, height = fit_within(width, height, long_side=long_side)
        return math.ceil(self.patches(width, height, budget) * self.multiplier)

    @staticmethod
    def patches(width: int, height: int, budget: int) -> int:
        """Return the patches after the documented shrink, at most `budget`.

        The document scales by r = sqrt(32^2 budget / (w h)), then by the smaller floor(x)/x of both sides (x = side in
        patches), so that one side becomes a whole number of patches.  Here that side is found with integers only.
        """
        raw = _ceil_div(width, 32) * _ceil_div(height, 32)
        if raw <= budget:
            return raw
        # floor(w r / 32) = floor(sqrt(budget w / h)), and the same with w and h exchanged
        across = max(1, math.isqrt(budget * width // height))
        down = max(1, math.isqrt(budget * height // width))
        # which side loses the larger share by rounding down: compare across/w with down/h
        if Fraction(across, width) <= Fraction(down, height):
            down = math.ceil(Fraction(across * height, width))
        else:
            across = math.ceil(Fraction(down * width, height))
        return min(across * down, budget)


@dataclass(frozen=True)
class ClaudePatches:
    """`ceil(w/28) * ceil(h/28)` after shrinking to at most `long_side` px and at most `cap` tokens, whichever binds."""

    long_side: int
    cap: int
    name: ClassVar[str] = "claude-patches"
    source: str = CLAUDE_DOC

    def tokens(self, width: int, height: int, detail: str) -> int:
        width, height = self.resized(width, height)
        return _ceil_div(width, 28) * _ceil_div(height, 28)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Return the largest size of the same aspect ratio that keeps both limits (never larger than the original)."""
        longest = max(width, height)

        def scaled(edge: int) -> tuple[int, int]:
            # round half up, as a resize to whole pixels does
            return (
                max(1, (2 * width * edge + longest) // (2 * longest)),
                max(1, (2 * height * edge + longest) // (2 * longest)),
            )

        low, high = 1, min(longest, self.long_side)
        while low < high:
            middle = (low + high + 1) // 2
            w, h = scaled(middle)
            if _ceil_div(w, 28) * _ceil_div(h, 28) <= self.cap:
                low = middle
            else:
                high = middle - 1
        return scaled(low)


@dataclass(frozen=True)
class ClaudeArea:
    """`ceil(w * h / 750)`, the rule published until 2026, after shrinking to 1568 px and about 1,600 tokens."""

    long_side: int = 1568
    cap: int = 1600
    name: ClassVar[str] = "claude-area"
    source: str = CLAUDE_DOC + " (as published until early 2026)"

    def tokens(self, width: int, height: int, detail: str) -> int:
        width, height = fit_within(width, height, long_side=self.long_side)
        return min(_ceil_div(width * height, 750), self.cap)


@dataclass(frozen=True)
class GeminiTiles:
    """258 tokens up to 384x384 px, otherwise 258 per tile; detail low is `media_resolution: low`, 64 tokens.

    Tiles are squares of floor(min(w, h) / 1.5) px, at least 256 and at most 768.
    """

    per_tile: int = 258
    low: int = 64
    name: ClassVar[str] = "gemini-tiles"
    source: str = f"{GEMINI_DOC}; {GEMINI_RESOLUTION_DOC}"

    def tokens(self, width: int, height: int, detail: str) -> int:
        if detail == "low":
            return self.low
        if width <= 384 and height <= 384:
            return self.per_tile
        unit = min(768, max(256, min(width, height) * 2 // 3))
        return self.per_tile * _ceil_div(width, unit) * _ceil_div(height, unit)


@dataclass(frozen=True)
class GeminiResolution:
    """A fixed number per `media_resolution`, whatever the size: low 280, high (the default) 1120, ultra high 2240."""

    name: ClassVar[str] = "gemini-media-resolution"
    source: str = GEMINI_RESOLUTION_DOC

    def tokens(self, width: int, height: int, detail: str) -> int:
        return {"low": 280, "high": 1120, "original": 2240}[detail]


@dataclass(frozen=True)
class QwenSmartResize:
    """One token per `factor` x `factor` px after transformers' `smart_resize`: sides rounded to multiples of `factor`,
    then scaled so that the area lies between `min_pixels` and `max_pixels`.

    Floats on purpose: the same steps as the processor, so the same roundings.  ValueError for a ratio above 200."""

    factor: int
    min_pixels: int
    max_pixels: int
    name: ClassVar[str] = "qwen-smart-resize"
    source: str = "transformers, image_processing_qwen2_vl.smart_resize; preprocessor_config.json of the checkpoint"

    def tokens(self, width: int, height: int, detail: str) -> int:
        if max(width, height) > 200 * min(width, height):
            raise ValueError("the ratio of the sides is above 200, which the image processor refuses")
        factor = self.factor
        w, h = round(width / factor) * factor, round(height / factor) * factor
        if w * h > self.max_pixels:
            beta = math.sqrt(width * height / self.max_pixels)
            w = max(factor, math.floor(width / beta / factor) * factor)
            h = max(factor, math.floor(height / beta / factor) * factor)
        elif w * h < self.min_pixels:
            beta = math.sqrt(self.min_pixels / (width * height))
            w, h = math.ceil(width * beta / factor) * factor, math.ceil(height * beta / factor) * factor
        return (w // factor) * (h // factor)


@dataclass(frozen=True)
class Fixed:
    """The same number for every image: it is resized to the square that the checkpoint was trained at."""

    count: int
    name: ClassVar[str] = "fixed"
    source: str = "PaliGemma model card: (resolution / 14)^2 image tokens"

    def tokens(self, width: int, height: int, detail: str) -> int:
        return self.count
