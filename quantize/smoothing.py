"""Pairs of layers along which AWQ and SmoothQuant move scale from activations into weights.

A pair is a layer that is divided and the linear layers after it that are multiplied.  All names are anchored to the
language model: vision towers have modules of the same names (Qwen2.5-VL's `gate_proj` and `up_proj`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from models.support.errors import CheckFailed, UsageError
from quantize.scope import module_name, short_name

Pair = tuple[str, list[str]]
METHODS = ("awq", "smoothquant")


def _pairs(before_mlp: str, layers: str = "language_model") -> list[Pair]:
    """Return the pairs of decoder layers whose MLP is fed by the norm `before_mlp`."""
    at = rf"re:.*{layers}\.layers\.\d+\."
    return [
        (rf"{at}input_layernorm$", [rf"{at}self_attn\.{x}_proj$" for x in "qkv"]),
        (rf"{at}{before_mlp}$", [rf"{at}mlp\.{x}_proj$" for x in ("gate", "up")]),
        (rf"{at}mlp\.up_proj$", [rf"{at}mlp\.down_proj$"]),
    ]


# Gemma 2 and 3 norm the attention's output before it is added, so what feeds the MLP there is another norm.
_LLAMA, _GEMMA = _pairs("post_attention_layernorm"), _pairs("pre_feedforward_layernorm")
SMOOTHING: dict[str, list[Pair]] = {
    "Qwen2_5_VLForConditionalGeneration": _LLAMA,
    "Qwen3VLForConditionalGeneration": _LLAMA,
    "LlavaForConditionalGeneration": _LLAMA,
    "LlavaNextForConditionalGeneration": _LLAMA,
    "LlavaOnevisionForConditionalGeneration": _LLAMA,
    "Idefics3ForConditionalGeneration": _pairs("post_attention_layernorm", "text_model"),
    "PaliGemmaForConditionalGeneration": _GEMMA,
    "Gemma3ForConditionalGeneration": _GEMMA,
}


def check_method(method: str, architecture: str) -> None:
    """Find out before the work that a method that smooths knows no pairs of layers.  Raises UsageError."""
    if method in METHODS and architecture not in SMOOTHING:
        fix = f"use --method gptq or rtn; pairs are known for {', '.join(SMOOTHING)}"
        raise UsageError(f"{method} knows no pairs of layers of {architecture}", field="method", value=method, fix=fix)


def check_pairs(architecture: str, modules: Iterable[str]) -> None:
    """Compare the pairs with the module names of a loaded model: each must name one module in every decoder layer.

    An architecture may have more than one language model behind it (PaliGemma's first had Gemma 1), and a pair that
    finds nothing would be skipped without a word.

    Raises:
        CheckFailed: a pattern names fewer or more modules than there are layers.
    """
    names = list(modules)
    pairs = SMOOTHING[architecture]
    layers = {n for n in names if re.search(pairs[0][0].removeprefix("re:").split("input_layernorm")[0] + "mlp$", n)}
    for pattern in (p for smooth, balance in pairs for p in (smooth, *balance)):
        found = sum(1 for n in names if re.search(pattern.removeprefix("re:"), n))
        if found != len(layers) or not found:
            text = f"{found} modules fit the pair's pattern where there are {len(layers)} layers"
            raise CheckFailed(text, field="method", value=pattern, fix="use --method gptq or rtn")


def smooth_layers(method: str, architecture: str) -> list[str]:
    """Return patterns of the layers outside the scope that the method rescales; none for GPTQ and rounding."""
    if method not in METHODS:
        return []
    return [smooth for smooth, _ in SMOOTHING.get(architecture, []) if smooth.endswith("layernorm$")]


def is_smoothed(name: str, patterns: Sequence[str]) -> bool:
    """Whether a parameter belongs to a layer that one of the patterns names."""
    module = module_name(short_name(name)).removesuffix(".weight")
    return any(re.search(pattern.removeprefix("re:"), module) for pattern in patterns)
