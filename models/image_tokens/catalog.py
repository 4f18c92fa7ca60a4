"""Which model counts images by which rule."""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict, dataclass
from fractions import Fraction

from models.image_tokens.names import match_name
from models.image_tokens.rules import (
    DETAILS,
    ClaudeArea,
    ClaudePatches,
    Fixed,
    GeminiResolution,
    GeminiTiles,
    OpenAIPatches,
    OpenAITiles,
    QwenSmartResize,
    TokenRule,
)
from models.support.errors import UsageError

MAX_SIDE = 1_000_000
_LARGE_IMAGE = (2000, 1500)  # every level of detail that a model has shows on it

_MEASURED = "bills measured in 2026-03 fit {0} instead of the documented multiplier (community.openai.com 1377015)"
_NO_LOW = "detail low does not change the bill of this model (measured, community.openai.com 1262691, 1377015)"
_CLAUDE_LIMIT = "the API refuses images above 8000 px on a side"
_GEMINI_ROUGH = "Google calls the tile count a rough formula; countTokens is exact"

_TILES_4O = OpenAITiles(85, 170)
_TILES_5 = OpenAITiles(70, 140)
_TILES_O = OpenAITiles(75, 150)
_STANDARD = ClaudePatches(1568, 1568)
_HIGH_RES = ClaudePatches(2576, 4784)
_QWEN2 = QwenSmartResize(28, 56 * 56, 12_845_056)
_QWEN3 = QwenSmartResize(32, 256 * 256, 4096 * 4096)


def _patches(multiplier: str, **limits: object) -> OpenAIPatches:
    return OpenAIPatches(Fraction(multiplier), **limits)  # type: ignore[arg-type]


_LARGE = {"budget": 2500, "original": (10_000, 6000), "low_side": 512}

# name -> (rule, what to know about it); a dated or suffixed name (gpt-4o-2024-11-20) is found by its longest prefix
MODELS: dict[str, tuple[TokenRule, str | None]] = {
    # OpenAI, tiles
    "gpt-4o": (_TILES_4O, None),
    "gpt-4o-mini": (OpenAITiles(2833, 5667), None),
    "gpt-4-turbo": (_TILES_4O, None),
    "gpt-4.1": (_TILES_4O, "billed as tiles though a document said patches (community.openai.com 1230130)"),
    "gpt-4.5-preview": (_TILES_4O, "base and tile from bills (community.openai.com 1262691)"),
    "gpt-5": (_TILES_5, None),
    "gpt-5.1": (_TILES_5, None),
    "o1": (_TILES_O, None),
    "o3": (_TILES_O, None),
    "computer-use-preview": (OpenAITiles(65, 129), None),
    # OpenAI, patches
    "gpt-4.1-mini": (_patches("1.62"), _NO_LOW),
    "gpt-4.1-nano": (_patches("2.46"), _NO_LOW),
    "o4-mini": (_patches("1.72"), _NO_LOW),
    "gpt-5-mini": (_patches("1.62"), _MEASURED.format("1.2")),
    "gpt-5-nano": (_patches("2.46"), _MEASURED.format("1.5")),
    "gpt-5.2": (_patches("1.2"), "multiplier from bills (community.openai.com 1372291)"),
    "gpt-5.4": (_patches("1.2", **_LARGE), "multiplier from bills (community.openai.com 1377015)"),
    "gpt-5.4-mini": (_patches("1.62"), _MEASURED.format("1.2")),
    "gpt-5.4-nano": (_patches("2.46"), _MEASURED.format("1.2")),
    "gpt-5.5": (_patches("1.2", **_LARGE), "without a detail the API uses original; multiplier as for gpt-5.4"),
    "gpt-5.6": (_patches("1.2", **_LARGE), "multiplier and budgets from secondary sources (community 1372291)"),
    # Anthropic
    "claude-3": (ClaudeArea(), _CLAUDE_LIMIT),
    "claude-3-5": (ClaudeArea(), _CLAUDE_LIMIT),
    "claude-3-7": (ClaudeArea(), _CLAUDE_LIMIT),
    "claude-sonnet-4": (_STANDARD, _CLAUDE_LIMIT),
    "claude-sonnet-4-5": (_STANDARD, _CLAUDE_LIMIT),
    "claude-sonnet-4-6": (_STANDARD, _CLAUDE_LIMIT),
    "claude-opus-4": (_STANDARD, _CLAUDE_LIMIT),
    "claude-opus-4-1": (_STANDARD, _CLAUDE_LIMIT),
    "claude-opus-4-5": (_STANDARD, _CLAUDE_LIMIT),
    "claude-opus-4-6": (_STANDARD, _CLAUDE_LIMIT),
    "claude-haiku-4-5": (_STANDARD, _CLAUDE_LIMIT),
    "claude-opus-4-7": (_HIGH_RES, _CLAUDE_LIMIT),
    "claude-opus-4-8": (_HIGH_RES, _CLAUDE_LIMIT),
    "claude-opus-5": (_HIGH_RES, _CLAUDE_LIMIT),
    "claude-opus-5-5": (_HIGH_RES, _CLAUDE_LIMIT),
    "claude-sonnet-5": (_HIGH_RES, _CLAUDE_LIMIT),
    "claude-sonnet-5-5": (_HIGH_RES, _CLAUDE_LIMIT),
    "claude-haiku-5-5": (_HIGH_RES, _CLAUDE_LIMIT),
    # Google
    "gemini-2.0-flash": (GeminiTiles(), _GEMINI_ROUGH),
    "gemini-2.5-pro": (GeminiTiles(), _GEMINI_ROUGH),
    "gemini-2.5-flash": (GeminiTiles(), _GEMINI_ROUGH),
    "gemini-2.5-flash-lite": (GeminiTiles(), _GEMINI_ROUGH),
    "gemini-3": (GeminiResolution(), None),
    "gemini-3-pro": (GeminiResolution(), None),
    "gemini-3-flash": (GeminiResolution(), None),
    "gemini-3.1-pro": (GeminiResolution(), None),
    "gemini-3.1-flash-lite": (GeminiResolution(), None),
    "gemini-3.5-flash": (GeminiResolution(), None),
    "gemini-3.8-flash": (GeminiResolution(), None),
    # open models, as served here
    "qwen2-vl": (_QWEN2, None),
    "qwen2.5-vl": (_QWEN2, None),
    "qwen3-vl": (_QWEN3, None),
    "paligemma-224": (Fixed(256), None),
    "paligemma-448": (Fixed(1024), None),
    "paligemma-896": (Fixed(4096), None),
    # the embedded models, which see 64x64 px
    "fovea-qwen": (QwenSmartResize(16, 3072, 4096), "the embedded Qwen2.5-VL: patches of 8 px, 2x2 merged"),
    "fovea-paligemma": (Fixed(64, "models/embedded/paligemma/processor_config.json"), "the embedded PaliGemma"),
}


@dataclass(frozen=True)
class ImageTokens:
    """The answer: how many tokens, by which rule (`rule`), documented where (`source`), and what to doubt (`note`)."""

    model: str
    width: int
    height: int
    detail: str
    tokens: int
    rule: str
    source: str
    note: str | None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def known_models() -> list[str]:
    """Return every name in the table, in its order."""
    return list(MODELS)


def find_model(name: str) -> str:
    """Return the table's name for `name`: `openai/gpt-4o-2024-11-20` gives `gpt-4o`.

    Raises:
        UsageError: unknown; the closest names are offered.
    """
    plain = name.strip().casefold().rsplit("/", 1)[-1]
    pali = re.fullmatch(r"paligemma.*-(224|448|896)(-.*)?", plain)
    if pali:
        return f"paligemma-{pali[1]}"
    known = match_name(plain, MODELS)
    if known is not None:
        return known
    close = difflib.get_close_matches(plain, MODELS, n=3, cutoff=0.5)
    fix = f"did you mean {', '.join(close)}?" if close else "`fovea models image-tokens --list` shows the known models"
    raise UsageError("no image-token rule for this model", field="model", value=name, fix=fix)


def image_tokens(model: str, width: int, height: int, detail: str = "high") -> ImageTokens:
    """Return the input tokens of one image of width x height pixels.

    Raises:
        UsageError: unknown model, size or detail; or a size that the model's own processor refuses.
    """
    for field, value in (("width", width), ("height", height)):
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SIDE:
            raise UsageError(f"must be a whole number of pixels from 1 to {MAX_SIDE:,}", field=field, value=value)
    if detail not in DETAILS:
        raise UsageError("unknown detail", field="detail", value=detail, fix=f"one of {', '.join(DETAILS)}")
    known = find_model(model)
    rule, note = MODELS[known]
    try:
        tokens = rule.tokens(width, height, detail)
    except ValueError as error:
        raise UsageError(str(error), field="width, height", value=f"{width}x{height}", fix="crop or pad it") from error
    if (
        detail != "high"
        and note != _NO_LOW
        and rule.tokens(*_LARGE_IMAGE, detail) == rule.tokens(*_LARGE_IMAGE, "high")
    ):
        note = "; ".join(filter(None, (note, f"detail {detail} changes nothing for this model")))
    return ImageTokens(known, width, height, detail, tokens, rule.name, rule.source, note)
