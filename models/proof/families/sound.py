"""What hears: Phi-4-multimodal, which sees too, and Whisper."""

from __future__ import annotations

from pathlib import Path

from models.proof.families.parts import chat
from models.proof.tiny import TEXT, VISION, Recipe, recipe, write
from models.proof.tokenizers import byte_level


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
