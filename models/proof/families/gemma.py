"""SigLIP and Gemma: PaliGemma 2, ColPali, Gemma 3, ShieldGemma 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.embedded.tokenizers import paligemma_tokenizer
from models.proof.families.parts import chat, hub_tower, siglip, siglip_processor
from models.proof.tiny import TEXT, Recipe, recipe, rename_weights, write
from models.proof.tokenizers import byte_fallback


def _paligemma_parts(size: int) -> tuple[Any, Any, dict[str, Any]]:
    """Return tokenizer, processor and the small configuration of a PaliGemma of that picture size."""
    from transformers import PaliGemmaProcessor

    tokenizer = paligemma_tokenizer()
    images = siglip_processor(size)
    images.image_seq_length = (size // 14) ** 2
    image = tokenizer.convert_tokens_to_ids("<image>")
    vocabulary = -(-len(tokenizer) // 64) * 64
    small = {
        "text_config": TEXT | {"vocab_size": vocabulary},
        "vision_config": siglip(size, 14) | {"projection_dim": 64, "num_image_tokens": (size // 14) ** 2},
        "projection_dim": 64,
        "hidden_size": 64,
        "image_token_id": image,
        "image_token_index": image,
    }
    return tokenizer, PaliGemmaProcessor(images, tokenizer, chat_template=tokenizer.chat_template), small


@recipe("paligemma2-3b-224", image_tokens=256, hf_overrides={"is_mm_prefix_lm": False})
def paligemma2(one: Recipe, folder: Path) -> None:
    """SigLIP and Gemma 2 with soft caps and local layers; a task prefix from a chat message.

    `is_mm_prefix_lm: false`: the CPU attention of vLLM is causal, the published model looks both ways over the prefix.
    """
    tokenizer, processor, small = _paligemma_parts(224)
    small["text_config"] |= {"query_pre_attn_scalar": 32, "sliding_window": 512}
    write(one, folder, small, tokenizer, processor, eos_token_id=tokenizer.eos_token_id)
    rename_weights(folder, hub_tower)


@recipe("colpali-v1.3", asked="page", image_tokens=1024, runner="pooling")
def colpali(one: Recipe, folder: Path) -> None:
    """PaliGemma at 448 pixels with a projection to one 128-wide vector per token."""
    tokenizer, processor, vlm = _paligemma_parts(448)
    write(one, folder, {"vlm_config": vlm, "embedding_dim": 128}, tokenizer, processor)
    rename_weights(folder, hub_tower)


GEMMA_TEMPLATE = chat("<start_of_turn>ROLE\n", "<start_of_image>", "<end_of_turn>\n", "<start_of_turn>model\n")


def _gemma_parts(processor_name: str) -> tuple[Any, Any, dict[str, Any]]:
    """Return tokenizer, processor and the small configuration of Gemma 3: 224-pixel tower, 16 tokens a picture."""
    import transformers
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    marks = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    special = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *marks.values())
    named = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    tokenizer = byte_fallback("GemmaTokenizer", special, GEMMA_TEMPLATE, **named, **marks)
    processor = getattr(transformers, processor_name)(
        Gemma3ImageProcessorPil(size={"height": 224, "width": 224}),
        tokenizer,
        chat_template=GEMMA_TEMPLATE,
        image_seq_length=16,
    )
    ids = tokenizer.convert_tokens_to_ids
    small = {
        "text_config": TEXT
        | {"vocab_size": len(tokenizer), "num_hidden_layers": 6, "sliding_window": 64, "query_pre_attn_scalar": 32},
        "vision_config": siglip(224, 14),
        "mm_tokens_per_image": 16,
        "image_token_index": ids("<image_soft_token>"),
        "image_token_id": ids("<image_soft_token>"),
        "boi_token_index": ids("<start_of_image>"),
        "eoi_token_index": ids("<end_of_image>"),
    }
    return tokenizer, processor, small


@recipe("gemma-3-4b", image_tokens=16)
def gemma_3(one: Recipe, folder: Path) -> None:
    """SigLIP pooled to a fixed number of tokens; five local layers to one global."""
    tokenizer, processor, small = _gemma_parts("Gemma3Processor")
    write(one, folder, small, tokenizer, processor, eos_token_id=tokenizer.convert_tokens_to_ids("<end_of_turn>"))
    rename_weights(folder, hub_tower)


@recipe("shieldgemma-2-4b")
def shieldgemma_2(one: Recipe, folder: Path) -> None:
    """Gemma 3 read as a classifier of one picture against a policy."""
    tokenizer, processor, small = _gemma_parts("ShieldGemma2Processor")
    write(one, folder, small, tokenizer, processor)
