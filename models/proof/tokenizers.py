"""Small tokenizers of the families' own kinds, learned from a few sentences; every text can be written in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from models.embedded.shapes import corpus


def byte_level(cls_name: str, special: Sequence[str], template: str, **named: str) -> Any:
    """Return a byte-level BPE tokenizer (GPT-2, Llama 3, Phi-4, Whisper kind) of that transformers class.

    `special` become special tokens; `named` are `bos_token=...` and the like, or extra attributes (`image_token=...`).
    """
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    raw.train_from_iterator(corpus(), trainer)
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return _wrap(getattr(transformers, cls_name), raw, template, named)


def byte_fallback(cls_name: str, special: Sequence[str], template: str, **named: str) -> Any:
    """Return a SentencePiece-like BPE tokenizer with byte fallback (Llama 2, Gemma kind) of that transformers class.

    The order `<unk>, <s>, </s>` or `<pad>, <eos>, <bos>` is the caller's: `special` comes first in the vocabulary.
    """
    import transformers
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers

    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    reserved = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    raw.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=600, special_tokens=reserved))
    # runs of line breaks are tokens of their own, as in Gemma's vocabulary
    raw.add_tokens([AddedToken("\n" * n, special=False, normalized=False) for n in range(1, 5)])
    return _wrap(getattr(transformers, cls_name), raw, template, named)


def _wrap(cls: Any, raw: Any, template: str, named: dict[str, str]) -> Any:
    standard = {k: v for k, v in named.items() if k in ("bos_token", "eos_token", "pad_token", "unk_token")}
    extra = {k: v for k, v in named.items() if k not in standard}
    tokenizer = cls(tokenizer_object=raw, extra_special_tokens=extra, model_max_length=4096, **standard)
    tokenizer.chat_template = template
    return tokenizer
