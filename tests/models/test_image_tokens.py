"""Image tokens: published worked examples of every vendor, and properties that any rule must have."""

from __future__ import annotations

import ast
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.image_tokens import find_model, image_tokens, known_models
from models.image_tokens.catalog import MODELS
from models.image_tokens.rules import ClaudePatches, OpenAIPatches
from models.support.errors import UsageError

SIZES = st.integers(1, 9000)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), [255, 255, 8500, 210, 415, 1032, 361, 361, 324]),
        ((1024, 1024), [765, 765, 25501, 630, 1659, 1032, 1369, 1369, 1369]),
        ((1920, 1080), [1105, 1105, 36835, 910, 2443, 1548, 1560, 2691, 2691]),
    ],
)
def test_comparison_table(size: tuple[int, int], expected: list[int]) -> None:
    models = ["gpt-4o", "gpt-4.1", "gpt-4o-mini", "gpt-5", "gpt-5-mini", "gemini-2.5-pro"]
    models += ["claude-sonnet-4-5", "claude-opus-4-7", "Qwen/Qwen2.5-VL-7B-Instruct"]
    assert [image_tokens(model, *size).tokens for model in models] == expected


@pytest.mark.parametrize(
    ("model", "width", "height", "detail", "tokens"),
    [
        # OpenAI's guide: tiles
        ("gpt-4o", 1024, 1024, "high", 765),
        ("gpt-4o", 2048, 4096, "high", 1105),
        ("gpt-4o", 4096, 8192, "low", 85),
        ("gpt-4o-mini", 2048, 4096, "low", 2833),
        ("gpt-5", 640, 480, "low", 70),
        # a bill: 267 tokens with high detail and 97 with low for 128x64 (community.openai.com 1262691)
        ("gpt-4o", 128, 64, "high", 267 - 97 + 85),
        ("gpt-4o-mini", 128, 64, "high", 8512 - 2845 + 2833),
        ("o3", 128, 64, "high", 236 - 86 + 75),
        # OpenAI's guide: patches (the guide's own 1024 and 1452 are before the multiplier)
        ("gpt-4.1-mini", 1024, 1024, "high", math.ceil(1024 * 1.62)),
        ("gpt-4.1-mini", 1800, 2400, "high", math.ceil(1452 * 1.62)),
        ("o4-mini", 1800, 2400, "high", math.ceil(1452 * 1.72)),
        ("gpt-4.1-nano", 1800, 2400, "high", math.ceil(1452 * 2.46)),
        # 1600x1600: 2,500 patches fit gpt-5.4's budget, 39x39 that of the small models (longform.social, 2026-03-18)
        ("gpt-5.4", 1600, 1600, "high", 3000),
        ("gpt-5.2", 1600, 1600, "high", math.ceil(1521 * 1.2)),
        ("gpt-5.5", 3200, 3200, "original", 12000),
        ("gpt-5.5", 4000, 3000, "low", math.ceil(16 * 12 * 1.2)),
        # Anthropic's vision guide, new rule and the old one
        ("claude-opus-4-7", 200, 200, "high", 64),
        ("claude-opus-4-7", 1000, 1000, "high", 1296),
        ("claude-sonnet-4-6", 1092, 1092, "high", 1521),
        ("claude-sonnet-5", 3840, 2160, "high", 4784),
        ("claude-sonnet-4-6", 3840, 2160, "high", 1560),
        ("claude-3-7-sonnet-20250219", 200, 200, "high", 54),
        ("claude-3-7-sonnet-20250219", 1000, 1000, "high", 1334),
        ("claude-3-7-sonnet-20250219", 1092, 1092, "high", 1590),
        # Google's guide: 960x540 is 3 x 2 tiles
        ("gemini-2.5-flash", 960, 540, "high", 6 * 258),
        ("gemini-2.5-flash", 384, 384, "high", 258),
        ("gemini-2.5-flash", 384, 385, "high", 4 * 258),
        ("gemini-2.5-flash", 960, 540, "low", 64),
        ("gemini-3-pro-preview", 960, 540, "high", 1120),
        ("gemini-3-pro-preview", 960, 540, "low", 280),
        ("gemini-3-pro-preview", 960, 540, "original", 2240),
        ("google/paligemma2-3b-mix-224", 4000, 10, "high", 256),
        ("google/paligemma-3b-pt-448", 64, 64, "high", 1024),
        ("google/paligemma2-28b-pt-896", 64, 64, "high", 4096),
        ("qwen2.5-vl-3b", 64, 64, "high", 4),
        ("qwen2.5-vl-3b", 1, 1, "high", 4),
    ],
)
def test_published_examples(model: str, width: int, height: int, detail: str, tokens: int) -> None:
    assert image_tokens(model, width, height, detail).tokens == tokens


@pytest.mark.parametrize(
    ("cap", "size", "resized"),
    [
        ((1568, 1568), (1075, 1520), (924, 1307)),
        ((2576, 4784), (4032, 3024), (2212, 1659)),
        ((2576, 4784), (3840, 2160), (2576, 1449)),
    ],
)
def test_claude_resize_matches_the_documented_sizes(
    cap: tuple[int, int], size: tuple[int, int], resized: tuple[int, int]
) -> None:
    assert ClaudePatches(*cap).resized(*size) == resized


def processor_smart_resize() -> Callable[..., tuple[int, int]]:
    """transformers' own function, taken from its source: importing the module needs a working torchvision."""
    package = importlib.util.find_spec("transformers")
    assert package is not None and package.origin is not None
    path = Path(package.origin).parent / "models" / "qwen2_vl" / "image_processing_pil_qwen2_vl.py"
    tree = ast.parse(path.read_text())
    function = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "smart_resize")
    names: dict[str, Any] = {"math": math}
    exec(compile(ast.Module([function], []), str(path), "exec"), names)
    result: Callable[..., tuple[int, int]] = names["smart_resize"]
    return result


@given(SIZES, SIZES)
@settings(max_examples=300)
def test_qwen_rule_is_the_processor_s_own(width: int, height: int) -> None:
    smart_resize = processor_smart_resize()
    try:
        h, w = smart_resize(height, width, 28, 56 * 56, 12_845_056)
    except ValueError:
        with pytest.raises(UsageError, match="ratio"):
            image_tokens("qwen2.5-vl", width, height)
        return
    assert image_tokens("qwen2.5-vl", width, height).tokens == h * w // 28**2


@given(SIZES, SIZES, st.sampled_from([1536, 2500, 10_000]))
def test_patches_follow_the_documented_float_formula(width: int, height: int, budget: int) -> None:
    """The guide's formula in floats may differ only where a float misses a whole number of patches."""
    raw = math.ceil(width / 32) * math.ceil(height / 32)
    got = OpenAIPatches.patches(width, height, budget)
    if raw <= budget:
        assert got == raw
        return
    r = math.sqrt(32**2 * budget / (width * height))
    x, y = width * r / 32, height * r / 32
    assert got <= budget
    if min(x, y) < 1 or min(abs(x - round(x)), abs(y - round(y))) < 1e-6:
        return
    r *= min(math.floor(x) / x, math.floor(y) / y)
    expected = math.ceil(round(width * r / 32, 9)) * math.ceil(round(height * r / 32, 9))
    assert got == min(expected, budget)


@pytest.mark.parametrize("model", known_models())
@given(width=SIZES, height=SIZES)
@settings(max_examples=25)
def test_every_rule_is_positive_bounded_and_ordered_by_detail(model: str, width: int, height: int) -> None:
    rule = MODELS[model][0]
    try:
        low, high, original = (rule.tokens(width, height, detail) for detail in ("low", "high", "original"))
    except ValueError:
        assert max(width, height) > 200 * min(width, height)
        return
    assert 1 <= low <= 40_000 and 1 <= high <= 50_000
    assert low <= high <= original
    if isinstance(rule, ClaudePatches):
        assert high <= rule.cap


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("openai/gpt-4o-2024-11-20", "gpt-4o"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("anthropic/claude-sonnet-4.5", "claude-sonnet-4-5"),
        ("claude-sonnet-4-20250514", "claude-sonnet-4"),
        ("claude-3.5-sonnet", "claude-3-5"),
        ("models/gemini-2.5-flash-preview-05-20", "gemini-2.5-flash"),
        ("Qwen/Qwen2.5-VL-72B-Instruct-AWQ", "qwen2.5-vl"),
        ("Qwen/Qwen3-VL-30B-A3B-Instruct", "qwen3-vl"),
    ],
)
def test_names(name: str, known: str) -> None:
    assert find_model(name) == known


@pytest.mark.parametrize("name", ["gpt-4o-min", "gpt-5.9", "claude-opus-6", "gemini-4-pro", "", "llava"])
def test_unknown_model_is_refused_never_guessed(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        image_tokens(name, 10, 10)
    assert caught.value.exit_code == 2 and caught.value.fix


def test_close_names_are_offered() -> None:
    with pytest.raises(UsageError, match="did you mean gpt-4o-mini"):
        image_tokens("gpt-4o-min", 10, 10)


@pytest.mark.parametrize(("width", "height"), [(0, 10), (10, -1), (10, 10**7), (True, 10), (10, 2.5)])
def test_bad_size(width: int, height: int) -> None:
    with pytest.raises(UsageError, match=r"^(width|height): must be a whole number of pixels"):
        image_tokens("gpt-4o", width, height)


def test_bad_detail() -> None:
    with pytest.raises(UsageError, match="low, high, original"):
        image_tokens("gpt-4o", 10, 10, "medium")


def test_every_entry_names_a_source() -> None:
    for name in known_models():
        result = image_tokens(name, 640, 480)
        assert result.source and result.rule and result.as_dict()["tokens"] == result.tokens


@pytest.mark.parametrize(
    ("model", "detail", "told"),
    [
        ("gpt-4o", "low", False),
        ("gpt-4o", "original", True),
        ("gpt-5.4", "original", False),
        ("gemini-2.5-pro", "low", False),
        ("qwen2.5-vl", "low", True),
        ("paligemma-448", "low", True),
        ("claude-sonnet-4-5", "low", True),
        ("qwen2.5-vl", "high", False),
    ],
)
def test_a_detail_that_a_model_does_not_have_is_told(model: str, detail: str, told: bool) -> None:
    note = image_tokens(model, 64, 64, detail).note or ""
    assert (f"detail {detail} changes nothing for this model" in note) is told
