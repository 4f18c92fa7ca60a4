"""Pairs of layers: anchored to the language model, and found in every decoder layer or refused."""

from __future__ import annotations

import pytest

from models.catalog import load_catalog
from models.support.errors import CheckFailed
from quantize.smoothing import SMOOTHING, check_pairs, is_smoothed, smooth_layers

LEAVES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
GEMMA = ("input_layernorm", "pre_feedforward_layernorm", "post_attention_layernorm", "mlp")


def names(*leaves: str, layers: int = 2) -> list[str]:
    return [f"model.language_model.layers.{i}.{leaf}" for i in range(layers) for leaf in leaves]


def test_smoothing_touches_the_language_model_alone() -> None:
    patterns = [p for pairs in SMOOTHING.values() for p, _ in pairs]
    assert is_smoothed("model.language_model.layers.0.input_layernorm.weight", patterns)
    assert is_smoothed("model.text_model.layers.0.input_layernorm.weight", patterns)
    assert not is_smoothed("model.visual.blocks.0.mlp.up_proj.weight", patterns)
    assert not is_smoothed("model.vision_tower.encoder.layers.0.layer_norm1.weight", patterns)
    assert not is_smoothed("model.language_model.norm.weight", patterns)


def test_only_norms_are_rescaled_outside_the_scope() -> None:
    assert smooth_layers("gptq", "PaliGemmaForConditionalGeneration") == []
    found = smooth_layers("awq", "PaliGemmaForConditionalGeneration")
    assert len(found) == 2 and all(p.endswith("layernorm$") for p in found)


def test_pairs_must_be_found_in_every_layer() -> None:
    check_pairs("PaliGemmaForConditionalGeneration", names(*GEMMA, *LEAVES))
    # the first PaliGemma had Gemma 1, which norms what enters the MLP with another layer
    older = names("input_layernorm", "post_attention_layernorm", "mlp", *LEAVES)
    with pytest.raises(CheckFailed, match="0 modules fit the pair's pattern where there are 2 layers") as caught:
        check_pairs("PaliGemmaForConditionalGeneration", older)
    assert "pre_feedforward_layernorm" in str(caught.value.value)
    with pytest.raises(CheckFailed, match="1 modules fit"):
        check_pairs("PaliGemmaForConditionalGeneration", names(*GEMMA, *LEAVES)[:-1])
    with pytest.raises(CheckFailed, match="0 modules fit"):
        check_pairs("PaliGemmaForConditionalGeneration", [])


def test_every_architecture_with_pairs_is_the_catalog_s() -> None:
    known = {f.engine.architecture for f in load_catalog().families if f.quantize is not None}
    assert set(SMOOTHING) <= known
