"""Qwen2.5-VL, Qwen3-VL, and ColQwen2 on Qwen2-VL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from models.embedded.tokenizers import qwen_tokenizer
from models.proof.tiny import TEXT, Recipe, recipe, write


def _qwen_processor(cls_name: str, patch: int, tokenizer: Any) -> Any:
    import transformers
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    common: dict[str, Any] = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2}
    size: dict[str, Any] = {"shortest_edge": 3136, "longest_edge": 50176}
    video = Qwen3VLVideoProcessor if cls_name.startswith("Qwen3") else Qwen2VLVideoProcessor
    return getattr(transformers, cls_name)(
        image_processor=Qwen2VLImageProcessorPil(size=size, **common),
        tokenizer=tokenizer,
        video_processor=video(size=size, **common),
        chat_template=tokenizer.chat_template,
    )


def _qwen_ids(tokenizer: Any) -> dict[str, Any]:
    ids = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


@recipe("qwen2.5-vl-3b", image_tokens=64)  # 224x224: (224 / 28) squared
def qwen2_5_vl(one: Recipe, folder: Path) -> None:
    """Windowed vision attention with one full layer, M-RoPE; patches of 14, merged 2x2."""
    tokenizer = qwen_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    text = TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope, "hidden_size": 128}
    text.pop("head_dim")  # Qwen2 derives it
    vision: dict[str, Any] = {"depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2}
    vision |= {"out_hidden_size": 128, "fullatt_block_indexes": [1]}
    small = {"text_config": text, "vision_config": vision, **_qwen_ids(tokenizer)}
    processor = _qwen_processor("Qwen2_5_VLProcessor", 14, tokenizer)
    write(one, folder, small, tokenizer, processor, eos_token_id=tokenizer.eos_token_id)


# vLLM 0.29 on CPU looks for the architecture of the language part, which Qwen3-VL's configuration does not name
_QWEN3 = {"text_config": {"architectures": ["Qwen3ForCausalLM"]}}
_QWEN3_MOE = {"text_config": {"architectures": ["Qwen3MoeForCausalLM"]}}


def qwen3_vl(one: Recipe, folder: Path) -> None:
    """Interleaved M-RoPE and DeepStack: vision features enter several language layers; dense or routed experts."""
    tokenizer = qwen_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    text = TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope}
    if "a3b" in one.variant:
        text |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
    vision: dict[str, Any] = {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "out_hidden_size": 64,
    }
    vision |= {"deepstack_visual_indexes": [0, 1], "patch_size": 16, "num_position_embeddings": 256}
    small = {"text_config": text, "vision_config": vision, **_qwen_ids(tokenizer)}
    processor = _qwen_processor("Qwen3VLProcessor", 16, tokenizer)
    write(one, folder, small, tokenizer, processor, eos_token_id=tokenizer.eos_token_id)


recipe("qwen3-vl-2b", image_tokens=49, hf_overrides=_QWEN3)(qwen3_vl)  # 224x224: (224 / 32) squared
recipe("qwen3-vl-30b-a3b", image_tokens=49, hf_overrides=_QWEN3_MOE)(qwen3_vl)


@recipe("colqwen2-v1.0", asked="page", runner="pooling")
def colqwen2(one: Recipe, folder: Path) -> None:
    """Qwen2-VL with a projection to one 128-wide vector per token."""
    tokenizer = qwen_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    text = TEXT | {"vocab_size": len(tokenizer), "rope_parameters": rope, "hidden_size": 128}
    text.pop("head_dim")
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 128, "num_heads": 2}
    vlm = {"text_config": text, "vision_config": vision, **_qwen_ids(tokenizer)}
    processor = _qwen_processor("Qwen2VLProcessor", 14, tokenizer)
    write(one, folder, {"vlm_config": vlm, "embedding_dim": 128}, tokenizer, processor)
