"""LLaVA 1.5, NeXT and OneVision; SmolVLM, which cuts pictures into tiles as they do."""

from __future__ import annotations

from pathlib import Path

from models.proof.families.parts import chat, clip_processor, hub_tower
from models.proof.tiny import TEXT, VISION, Recipe, recipe, rename_weights, write
from models.proof.tokenizers import byte_fallback, byte_level

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
        clip_processor(CLIPImageProcessorPil, 336),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    small = {"text_config": TEXT | {"vocab_size": len(tokenizer)}, "vision_config": VISION, "image_token_index": image}
    write(one, folder, small, tokenizer, processor, eos_token_id=tokenizer.eos_token_id)
    rename_weights(folder, hub_tower)


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
        clip_processor(LlavaNextImageProcessorPil, 336, image_grid_pinpoints=grids),
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
    rename_weights(folder, hub_tower)


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
    rename_weights(folder, hub_tower)


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
