"""Llama 4 and Llama Guard 4."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from models.proof.families.parts import chat
from models.proof.tiny import TEXT, VISION, Recipe, recipe, write
from models.proof.tokenizers import byte_level


def _llama_4(one: Recipe, folder: Path, **text: Any) -> None:
    from transformers import Llama4Processor
    from transformers.models.llama4.image_processing_llama4 import Llama4ImageProcessor

    turn = "<|header_start|>ROLE<|header_end|>\n\n"
    template = chat(turn, "<|image|>", "<|eot|>", turn.replace("ROLE", "assistant"))
    marks = [
        "<|image_start|>",
        "<|image_end|>",
        "<|image|>",
        "<|patch|>",
        "<|tile_x_separator|>",
        "<|tile_y_separator|>",
    ]
    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot|>",
        "<|header_start|>",
        "<|header_end|>",
        "<|pad|>",
        *marks,
    ]
    named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot|>", "pad_token": "<|pad|>"}
    tokenizer = byte_level("PreTrainedTokenizerFast", special + marks, template, **named)
    images = Llama4ImageProcessor(size={"height": 336, "width": 336}, max_patches=4)
    processor = Llama4Processor(images, tokenizer, patch_size=14, pixel_shuffle_ratio=0.5, chat_template=template)
    ids = tokenizer.convert_tokens_to_ids
    small = {
        "text_config": TEXT
        | {"vocab_size": len(tokenizer), "num_hidden_layers": 4, "intermediate_size_mlp": 128, "layer_types": None}
        | {"pad_token_id": ids("<|pad|>"), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": ids("<|eot|>")}
        | text,
        "vision_config": VISION
        | {"intermediate_size": 256, "vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64},
        "image_token_index": ids("<|patch|>"),
        "boi_token_index": ids("<|image_start|>"),
        "eoi_token_index": ids("<|image_end|>"),
    }
    write(one, folder, small, tokenizer, processor, eos_token_id=ids("<|eot|>"))


recipe("llama-4-scout", image_tokens=147)(partial(_llama_4, num_local_experts=4, num_experts_per_tok=1))
recipe("llama-4-maverick", image_tokens=147)(partial(_llama_4, num_local_experts=4, num_experts_per_tok=1))
recipe("llama-guard-4-12b", image_tokens=147)(partial(_llama_4, moe_layers=[], interleave_moe_layer_step=0))
