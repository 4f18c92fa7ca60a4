"""The embedded models' tokenizers: byte-level BPE as Qwen2 has it, byte-fallback BPE as Gemma has it.

Both cover every Unicode string (unknown text falls back to bytes); their merges are learned from the recipe's corpus.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from models.embedded.shapes import corpus

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Qwen2's own split: contractions, words with a leading mark, single digits, punctuation runs, newlines, spaces.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# ChatML as Qwen2.5-VL writes it, without the default system prompt (16 tokens a request), with Hermes-style tools.
QWEN_CHAT_TEMPLATE = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] + '\\n\\n' }}{%- endif %}
{{- 'Tools, one JSON per line:' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\nCall one as <tool_call>{"name": ..., "arguments": ...}</tool_call>.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if not (tools and loop.first and message['role'] == 'system') %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{- message['content'] }}
{%- elif message['content'] %}
{%- for part in message['content'] %}
{%- if part['type'] in ('image', 'image_url') or 'image' in part %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part['type'] == 'video' or 'video' in part %}{{- '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part %}{{- part['text'] }}
{%- endif %}
{%- endfor %}
{%- endif %}
{%- for call in message['tool_calls'] or [] %}
{%- set f = call['function'] %}
{{- '<tool_call>' + ({'name': f['name'], 'arguments': f['arguments']} | tojson) + '</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# PaliGemma answers one turn: the last user message becomes the prefix.  A plain question is asked with the `answer en`
# task prefix; a message that begins with a task (caption, describe, ocr, detect, segment, answer) is passed on.
PALIGEMMA_CHAT_TEMPLATE = """\
{%- set last = (messages | selectattr('role', 'equalto', 'user') | list | last) %}
{%- if last['content'] is string %}{%- set text = last['content'] %}
{%- else %}
{%- set words = namespace(text='') %}
{%- for part in last['content'] %}
{%- if 'text' in part %}{%- set words.text = words.text + part['text'] %}{%- endif %}
{%- endfor %}
{%- set text = words.text %}
{%- endif %}
{%- set text = text | trim %}
{%- if text.split(' ')[0] in ('answer', 'caption', 'describe', 'ocr', 'detect', 'segment') %}{{- text }}
{%- else %}{{- 'answer en ' + text }}
{%- endif %}
{{- '\\n' }}"""


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Train and return the Qwen2-style byte-level BPE tokenizer with Qwen2.5-VL's special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, min_frequency=2))
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in QWEN_SPECIAL])
    raw.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<tool_call>", "</tool_call>")])
    return Qwen2Tokenizer(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(QWEN_SPECIAL[1:]),
        chat_template=QWEN_CHAT_TEMPLATE,
        model_max_length=2048,
    )


def paligemma_tokenizer() -> PreTrainedTokenizerFast:
    """Train and return the Gemma-style byte-fallback BPE tokenizer with PaliGemma's location and segment tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never")
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    reserved = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=1000, special_tokens=reserved, min_frequency=2))
    # the trainer marks what is reserved as special, and a decoder may drop special tokens: bytes are text
    state = json.loads(raw.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    raw = Tokenizer.from_str(json.dumps(state))
    raw.add_tokens([AddedToken("\n", special=False, normalized=False)])
    raw.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    raw.add_tokens([AddedToken(f"<loc{i:04d}>", special=False, normalized=False) for i in range(1024)])
    raw.add_tokens([AddedToken(f"<seg{i:03d}>", special=False, normalized=False) for i in range(128)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        add_bos_token=False,
        add_eos_token=False,
        chat_template=PALIGEMMA_CHAT_TEMPLATE,
        model_max_length=2048,
    )
