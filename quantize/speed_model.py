"""A checkpoint large enough to time: Qwen2.5-VL, its language model in SmolLM2-135M's shape, with random weights.

30 layers of 576, 9 heads (3 of keys and values), 1,536 in the MLP, 49,152 tokens: 135 million parameters, 106 million
of them in the linear layers that are quantized.  The vision tower and the processor are those of the embedded
Qwen2.5-VL (a 64x64 picture is 16 tokens).  Its answers mean nothing: it measures speed and size, never accuracy.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from quantize.run import EMBEDDED

SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
MROPE = [8, 12, 12]  # sums to half a head


def build(folder: Path, seed: int = 0) -> int:
    """Write the checkpoint into `folder`; return its number of parameters."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    source = EMBEDDED / "qwen2_5_vl"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("chat_template.jinja", "generation_config.json", "processor_config.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    _widen_vocabulary(source / "tokenizer.json", folder / "tokenizer.json", int(SHAPE["vocab_size"]))
    config = json.loads((source / "config.json").read_text("utf-8"))
    text = config["text_config"] | SHAPE
    text["rope_parameters"] = text["rope_parameters"] | {"mrope_section": MROPE}
    text["layer_types"] = ["full_attention"] * int(SHAPE["num_hidden_layers"])
    config["text_config"] = text
    config["vision_config"]["out_hidden_size"] = SHAPE["hidden_size"]
    (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    # transformers writes its own form of the config; the processor's files are as they were
    return sum(p.numel() for p in model.parameters())


def _widen_vocabulary(source: Path, target: Path, size: int) -> None:
    """Write the tokenizer with tokens that no text produces, up to `size`: the model may answer any of them."""
    tokenizer = json.loads(source.read_text("utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    used = {*vocabulary.values(), *(t["id"] for t in tokenizer["added_tokens"])}
    for number in range(size):
        if number not in used:
            vocabulary[f"<unused{number}>"] = number
    target.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")
