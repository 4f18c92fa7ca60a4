"""Checkpoints that are large enough to time and have no sense: Qwen2.5-VL with random weights.

`build` writes one of two.  `smollm2`: the language model has SmolLM2-135M's shape, 30 layers of 576, 9 heads (3 of keys
and values), 1,536 in the MLP, 49,152 tokens: 135 million parameters, 106 million of them in the linear layers that are
quantized.  `wide`: 16 layers of 1,024, 16 heads (4), 4,096 in the MLP and the embedded model's 448 tokens: 243 million
parameters, nearly all of them in those layers, so that it shows the kernels and no vocabulary.  The vision tower and
the processor are those of the embedded Qwen2.5-VL (a 64x64 picture is 16 tokens).

`describe` writes no weights at all, only the description of a catalog model in a scheme, for vLLM's
`--load-format dummy`: a GPU's speed with 3 or 7 billion parameters needs no download.

Their answers mean nothing: they measure speed and size, never accuracy.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from models.support.errors import UsageError
from models.support.files import write_json
from quantize.run import EMBEDDED

SHAPES = {
    "smollm2": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "wide": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "vocab_size": 448,
    },
}
MROPE = [8, 12, 12]  # sums to half a head, of 64 in both
COPIED = ("chat_template.jinja", "generation_config.json", "processor_config.json", "tokenizer_config.json")


def build(folder: Path, shape: str = "smollm2", seed: int = 0) -> int:
    """Write the checkpoint of one of `SHAPES` into `folder`; return its number of parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    sizes = SHAPES[shape]
    _processor(folder, sizes["vocab_size"])
    config = _config(sizes, {"out_hidden_size": sizes["hidden_size"]}, MROPE)
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    # transformers writes its own form of the config; the processor's files are as they were
    return sum(p.numel() for p in model.parameters())


# what vLLM reads to choose its kernels: as `fovea quantize run` writes it, with the weights' numbers
_WEIGHTS: dict[str, dict[str, Any]] = {
    "w8a8": {"num_bits": 8, "type": "int", "strategy": "channel"},
    "w4a16": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128},
    "fp8": {"num_bits": 8, "type": "float", "strategy": "channel"},
}
_FORMAT = {"w8a8": "int-quantized", "w4a16": "pack-quantized", "fp8": "float-quantized"}
PICTURE_TOKENS = 256
"""Tokens of a square picture of any size: 16 x 16 merged patches of 28 x 28 pixels."""


def describe(folder: Path, shape: str, scheme: str | None) -> None:
    """Write into `folder` what a served checkpoint has except its weights.

    Args:
        shape: a Qwen2.5-VL of the catalog.
        scheme: `w8a8`, `w4a16` (group 128), `fp8`, None for bfloat16.  The language model's linear layers are in it;
            tower, projector, embeddings and head stay in bfloat16.

    Raises:
        UsageError: not such a model or scheme.
    """
    from models.catalog import load_catalog

    family, variant = load_catalog().find(shape)
    if family.family != "qwen2.5-vl" or variant is None or variant.config is None:
        known = [v.name for f, v in load_catalog().variants() if f.family == "qwen2.5-vl" and v.config]
        raise UsageError("has no shape to time", field="shape", value=shape, fix=f"one of {', '.join(known)}")
    if scheme is not None and scheme not in _WEIGHTS:
        fix = f"one of {', '.join(_WEIGHTS)}"
        raise UsageError("no weights can be left out in this scheme", field="scheme", value=scheme, fix=fix)
    values = variant.config.values
    text, vision = dict(values["text_config"]), dict(values["vision_config"])
    half = variant.decoder.head_dim // 2
    temporal = half // 4
    config = _config(
        {k: v for k, v in text.items() if k != "tie_word_embeddings"} | {"max_position_embeddings": 32768},
        # as published: patches of 14, windows of 112, four blocks that see the whole picture
        vision | {"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
        [temporal, (half - temporal) // 2, (half - temporal) // 2],
    )
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = values["tie_word_embeddings"]
    config["text_config"]["rope_parameters"]["rope_theta"] = 1_000_000.0
    if scheme is not None:
        config["quantization_config"] = _quantization(scheme)
    _processor(folder, variant.decoder.vocab)
    processor = json.loads((folder / "processor_config.json").read_text("utf-8"))
    pixels = PICTURE_TOKENS * (14 * 2) ** 2
    for part in ("image_processor", "video_processor"):
        processor[part] |= {"patch_size": 14, "size": {"shortest_edge": pixels, "longest_edge": pixels}}
    write_json(folder / "processor_config.json", processor)
    write_json(folder / "config.json", config)


def _quantization(scheme: str) -> dict[str, Any]:
    common = {"symmetric": True, "dynamic": False, "actorder": None, "group_size": None, "block_structure": None}
    inputs = {"num_bits": 8, "type": _WEIGHTS[scheme]["type"], "strategy": "token", "symmetric": True, "dynamic": True}
    group = {
        "targets": ["Linear"],
        "format": _FORMAT[scheme],
        "weights": common | _WEIGHTS[scheme],
        "input_activations": None if scheme == "w4a16" else inputs,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": _FORMAT[scheme],
        "config_groups": {"group_0": group},
        "ignore": ["re:.*visual.*", "re:.*lm_head"],
        "kv_cache_scheme": None,
    }


def _config(text: dict[str, Any], vision: dict[str, Any], mrope: list[int]) -> dict[str, Any]:
    """Return the embedded model's configuration with other sizes."""
    config: dict[str, Any] = json.loads((EMBEDDED / "qwen2_5_vl" / "config.json").read_text("utf-8"))
    rope = config["text_config"]["rope_parameters"] | {"mrope_section": mrope}
    config["text_config"] |= {**text, "rope_parameters": rope}
    config["text_config"]["layer_types"] = ["full_attention"] * int(text["num_hidden_layers"])
    config["vision_config"] |= vision
    return config


def _processor(folder: Path, vocabulary: int) -> None:
    """Make `folder` anew with the embedded model's processor and a tokenizer of `vocabulary` tokens."""
    source = EMBEDDED / "qwen2_5_vl"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in COPIED:
        shutil.copyfile(source / name, folder / name)
    _widen_vocabulary(source / "tokenizer.json", folder / "tokenizer.json", vocabulary)


def _widen_vocabulary(source: Path, target: Path, size: int) -> None:
    """Write the tokenizer with tokens that no text produces, up to `size`: the model may answer any of them."""
    tokenizer = json.loads(source.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    used = {*vocabulary.values(), *(t["id"] for t in tokenizer["added_tokens"])}
    for number in range(size):
        if number not in used:
            vocabulary[f"<unused{number}>"] = number
    target.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
