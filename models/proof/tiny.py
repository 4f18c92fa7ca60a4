"""Tiny checkpoints: a catalog variant's own configuration with small sizes and random weights.

A `Recipe` says which variant it stands for and how to build it; `RECIPES` holds one per architecture of the catalog.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from models.catalog import load_catalog

SEED = 20
HEAD_DIM = 32
TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
}
VISION: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
Asked = Literal["image", "speech", "page"]


@dataclass(frozen=True)
class Recipe:
    """How to prove one architecture.

    Attributes:
        variant: the catalog's name of the checkpoint whose configuration is made small.
        build: writes the checkpoint into a folder.
        asked: an image (chat completion), speech (transcription) or a page (embedding).
        args: engine arguments beyond those that every proof uses.
        image_tokens: prompt tokens that the picture must take, by the family's own rule; None where not asserted.
    """

    variant: str
    build: Callable[[Recipe, Path], None]
    asked: Asked = "image"
    args: Mapping[str, Any] = field(default_factory=dict)
    image_tokens: int | None = None


RECIPES: dict[str, Recipe] = {}


def recipe(
    *variants: str, asked: Asked = "image", image_tokens: int | None = None, **args: Any
) -> Callable[[Callable[[Recipe, Path], None]], Callable[[Recipe, Path], None]]:
    """Register the decorated builder for each of `variants`."""

    def register(build: Callable[[Recipe, Path], None]) -> Callable[[Recipe, Path], None]:
        for name in variants:
            RECIPES[name] = Recipe(name, build, asked, args, image_tokens)
        return build

    return register


def merged(base: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `small` put in, sub-dictionaries merged."""
    result = deepcopy(dict(base))
    for key, value in small.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(value, Mapping) and isinstance(inner, dict) else value
    return result


def write(one: Recipe, folder: Path, small: Mapping[str, Any], tokenizer: Any, processor: Any, **ends: Any) -> Any:
    """Write configuration, random bf16 weights, tokenizer and processor; return the transformers model.

    The configuration is the catalog's, made small by `small`; everything that `small` does not name stays as the real
    checkpoint has it (layer kinds, activation, soft caps, tying).
    """
    import torch
    import transformers

    config = load_catalog().variant(one.variant).config
    torch.manual_seed(SEED)
    made = getattr(transformers, config.config_class)(**merged(config.values, small))
    made.architectures = [config.model_class]
    model = getattr(transformers, config.model_class)(made)
    with torch.no_grad():
        for parameter in model.parameters():
            # some classes leave parameters uninitialized, or (Gemma 3's projector) at zero, which hides the picture
            largest = float(parameter.abs().max())
            if not largest < 100 or (largest == 0 and parameter.dim() > 1):
                torch.nn.init.normal_(parameter, std=0.02)
    if ends and hasattr(model, "generation_config"):
        model.generation_config = transformers.GenerationConfig(do_sample=False, **ends)
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def rename_weights(folder: Path, names: Callable[[str], str]) -> None:
    """Rename the tensors of a checkpoint: transformers 5 writes some names that the hub and vLLM do not use."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file({names(key): value for key, value in load_file(path).items()}, path, metadata={"format": "pt"})
