"""The builders: one per architecture of the catalog.

What a family's hub files hold and the catalog does not (special tokens, the processor's sizes, the chat form) is here.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from models.embedded.tokenizers import paligemma_tokenizer, qwen_tokenizer
from models.proof.tiny import TEXT, VISION, Recipe, recipe, rename_weights, write
from models.proof.tokenizers import byte_fallback, byte_level

# The parts of a message in order, a picture as the family's placeholder
_PARTS = """{%- if m['content'] is string %}{{- m['content'] }}{%- else %}{%- for p in m['content'] %}
{%- if 'image' in p['type'] %}{{- 'IMAGE' }}{%- elif 'text' in p %}{{- p['text'] }}{%- endif %}
{%- endfor %}{%- endif %}"""


def chat(before: str, image: str, after: str, answer: str) -> str:
    """Return a chat template: every message as `before` content `after` (ROLE is the role), then `answer`."""
    parts = _PARTS.replace("IMAGE", image)
    opened = before.replace("ROLE", "' + m['role'] + '")
    end = "{%- if add_generation_prompt %}{{- '" + answer + "' }}{%- endif %}"
    return "{%- for m in messages %}{{- '" + opened + "' }}" + parts + "{{- '" + after + "' }}{%- endfor %}" + end


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


def _siglip(size: int, patch: int) -> dict[str, Any]:
    return VISION | {"image_size": size, "patch_size": patch}


def _siglip_processor(size: int) -> Any:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    half = [0.5] * 3
    return SiglipImageProcessorPil(size={"height": size, "width": size}, image_mean=half, image_std=half)


def _hub_tower(key: str) -> str:
    """`vision_tower.x` as the hub names it: `vision_tower.vision_model.x`."""
    tower = "vision_tower."
    return key if f"{tower}vision_model." in key else key.replace(tower, f"{tower}vision_model.")


def _paligemma_parts(size: int) -> tuple[Any, Any, dict[str, Any]]:
    """Return tokenizer, processor and the small configuration of a PaliGemma of that picture size."""
    from transformers import PaliGemmaProcessor

    tokenizer = paligemma_tokenizer()
    images = _siglip_processor(size)
    images.image_seq_length = (size // 14) ** 2
    image = tokenizer.convert_tokens_to_ids("<image>")
    vocabulary = -(-len(tokenizer) // 64) * 64
    small = {
        "text_config": TEXT | {"vocab_size": vocabulary},
        "vision_config": _siglip(size, 14) | {"projection_dim": 64, "num_image_tokens": (size // 14) ** 2},
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
    rename_weights(folder, _hub_tower)


@recipe("colpali-v1.3", asked="page", image_tokens=1024, runner="pooling")
def colpali(one: Recipe, folder: Path) -> None:
    """PaliGemma at 448 pixels with a projection to one 128-wide vector per token."""
    tokenizer, processor, vlm = _paligemma_parts(448)
    write(one, folder, {"vlm_config": vlm, "embedding_dim": 128}, tokenizer, processor)
    rename_weights(folder, _hub_tower)


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


def _clip_processor(cls: Any, size: int, **more: Any) -> Any:
    return cls(size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **more)


LLAVA_SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
LLAVA_NAMED = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


@recipe("llava-1.5-7b", image_tokens=576)  # (336 / 14) squared, without the class token
def llava_1_5(one: Recipe, folder: Path) -> None:
    """CLIP and Llama with a two-layer projector."""
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    template = chat("USER: ", "<image>\n", " ", "ASSISTANT:")
    tokenizer = byte_fallback("LlamaTokenizer", LLAVA_SPECIAL, template, **LLAVA_NAMED, image_token="<image>")
    processor = LlavaProcessor(
        _clip_processor(CLIPImageProcessorPil, 336),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    small = {"text_config": TEXT | {"vocab_size": len(tokenizer)}, "vision_config": VISION, "image_token_index": image}
    write(one, folder, small, tokenizer, processor, eos_token_id=tokenizer.eos_token_id)
    rename_weights(folder, _hub_tower)


@recipe("llava-next-mistral-7b", "llava-next-vicuna-13b")
def llava_next(one: Recipe, folder: Path) -> None:
    """LLaVA with the picture cut into tiles of any resolution; Mistral or Vicuna behind it."""
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    mistral = "mistral" in one.variant
    template = (
        chat("[INST] ", "<image>\n", " [/INST]", "") if mistral else chat("USER: ", "<image>\n", " ", "ASSISTANT:")
    )
    tokenizer = byte_fallback("LlamaTokenizer", LLAVA_SPECIAL, template, **LLAVA_NAMED, image_token="<image>")
    grids = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
    processor = LlavaNextProcessor(
        _clip_processor(LlavaNextImageProcessorPil, 336, image_grid_pinpoints=grids),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    small = {
        "text_config": TEXT | {"vocab_size": len(tokenizer)},
        "vision_config": VISION,
        "image_grid_pinpoints": grids,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
    }
    write(one, folder, small, tokenizer, processor, eos_token_id=tokenizer.eos_token_id)
    rename_weights(folder, _hub_tower)


@recipe("llava-onevision-0.5b", max_model_len=8192)
def llava_onevision(one: Recipe, folder: Path) -> None:
    """SigLIP tiles, up to 6x6, pooled down to at most nine; Qwen2 behind it."""
    from transformers import LlavaOnevisionProcessor
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
    from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor

    template = chat("<|im_start|>ROLE ", "<image>\n", "<|im_end|>", "<|im_start|>assistant\n")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    named = {
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "image_token": "<image>",
        "video_token": "<video>",
    }
    tokenizer = byte_level("Qwen2Tokenizer", special, template, **named)
    grids = [[384 * a, 384 * b] for a in range(1, 7) for b in range(1, 7)]
    size = {"height": 384, "width": 384}
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=grids),
        tokenizer,
        LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
        chat_template=template,
    )
    text = TEXT | {"vocab_size": len(tokenizer), "hidden_size": 128, "max_position_embeddings": 32768}
    text.pop("head_dim")
    small = {
        "text_config": text,
        "vision_config": VISION,
        "image_grid_pinpoints": grids,
        "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
        "video_token_index": tokenizer.convert_tokens_to_ids("<video>"),
    }
    write(one, folder, small, tokenizer, processor, eos_token_id=tokenizer.eos_token_id)
    rename_weights(folder, _hub_tower)


@recipe("smolvlm-256m")
def smolvlm(one: Recipe, folder: Path) -> None:
    """Idefics 3: tiles with row and column marks, pixel shuffle by 4, Llama behind it."""
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    template = chat("<|im_start|>ROLE:", "<image>", "<end_of_utterance>\n", "Assistant:")
    marks = ["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    rows = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    special = ["<|endoftext|>", "<|im_start|>", *marks, *rows]
    named = {"eos_token": "<end_of_utterance>", "bos_token": "<|im_start|>", "pad_token": "<|endoftext|>"}
    tokenizer = byte_level("GPT2Tokenizer", special, template, **named)
    images = Idefics3ImageProcessorPil(size={"longest_edge": 1024}, max_image_size={"longest_edge": 512})
    processor = Idefics3Processor(images, tokenizer, image_seq_len=64, chat_template=template)
    small = {
        "text_config": TEXT | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
        "vision_config": VISION,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
        "pad_token_id": tokenizer.pad_token_id,
    }
    write(one, folder, small, tokenizer, processor, eos_token_id=tokenizer.eos_token_id)


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
        "vision_config": _siglip(224, 14),
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
    rename_weights(folder, _hub_tower)


@recipe("shieldgemma-2-4b")
def shieldgemma_2(one: Recipe, folder: Path) -> None:
    """Gemma 3 read as a classifier of one picture against a policy."""
    tokenizer, processor, small = _gemma_parts("ShieldGemma2Processor")
    write(one, folder, small, tokenizer, processor)


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


@recipe("phi-4-multimodal")
def phi_4_multimodal(one: Recipe, folder: Path) -> None:
    """Transformers' own Phi-4-multimodal: vLLM's class reads the hub's remote code, which is in no package."""
    from transformers import Phi4MultimodalFeatureExtractor, Phi4MultimodalProcessor
    from transformers.models.phi4_multimodal.image_processing_phi4_multimodal import Phi4MultimodalImageProcessor

    template = chat("<|ROLE|>", "<|endoftext10|>", "<|end|>", "<|assistant|>")
    marks = ["<|endoftext10|>", "<|endoftext11|>"]
    special = ["<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", *marks]
    named = {
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "image_token": marks[0],
        "audio_token": marks[1],
    }
    tokenizer = byte_level("GPT2Tokenizer", special, template, **named)
    processor = Phi4MultimodalProcessor(
        Phi4MultimodalImageProcessor(dynamic_hd=4), Phi4MultimodalFeatureExtractor(), tokenizer, chat_template=template
    )
    ids = tokenizer.convert_tokens_to_ids
    text = {k: v for k, v in TEXT.items() if k != "head_dim"} | {"hidden_size": 128, "vocab_size": len(tokenizer)}
    small = text | {
        "vision_config": VISION | {"image_token_id": ids(marks[0]), "crop_size": 448},
        "audio_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "audio_token_id": ids(marks[1]),
            "nemo_conv_channels": 64,
            "ext_pw_out_channel": 64,
        },
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    write(one, folder, small, tokenizer, processor, eos_token_id=tokenizer.eos_token_id)


@recipe("whisper-tiny", asked="speech", max_model_len=448, max_num_batched_tokens=2048)
def whisper(one: Recipe, folder: Path) -> None:
    """Encoder-decoder over 30 s of log-mel frames."""
    from transformers import WhisperFeatureExtractor, WhisperProcessor

    languages = ["<|en|>", "<|de|>"]
    tasks = ["<|translate|>", "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>"]
    times = [f"<|{0.02 * i:.2f}|>" for i in range(1501)]
    special = ["<|endoftext|>", "<|startoftranscript|>", *languages, *tasks, *times]
    named = {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    tokenizer = byte_level("WhisperTokenizer", special, "", **named, pad_token="<|endoftext|>")
    tokenizer.chat_template = None
    end = tokenizer.eos_token_id
    small = {
        "d_model": 64,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "vocab_size": len(tokenizer),
        "pad_token_id": end,
        "bos_token_id": end,
        "eos_token_id": end,
        "decoder_start_token_id": tokenizer.convert_tokens_to_ids("<|startoftranscript|>"),
    }
    processor = WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer)
    write(one, folder, small, tokenizer, processor, eos_token_id=end)
