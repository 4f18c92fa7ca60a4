"""The student's own answers, for on-policy distillation: it is corrected where it goes, not where a teacher went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distill.recipe.train import OnPolicy
from distill.train.rows import Encoded, EncodedRows


def own_answers(
    model: Any, rows: EncodedRows, items: Sequence[Encoded], wanted: OnPolicy, autocast: Any
) -> list[Encoded]:
    """Return the items with answers that the model samples now; draws come from torch's generator.

    An answer ends with the token that ends answers, or after `wanted.max_tokens`.
    """
    drawn = {"do_sample": True, "temperature": wanted.temperature, "top_k": 0, "top_p": 1.0}
    answers = written(model, rows, items, wanted.max_tokens, autocast, **drawn)
    model.train()
    return [_answered(item, ids) for item, ids in zip(items, answers, strict=True)]


def written(
    model: Any, rows: EncodedRows, items: Sequence[Encoded], max_tokens: int, autocast: Any, **how: Any
) -> list[list[int]]:
    """Return the tokens that the model writes for each item, with what ends an answer if it came; greedily, or `how`.

    The model is in evaluation mode afterwards.
    """
    import torch
    from transformers import GenerationConfig

    tokenizer = rows.processor.tokenizer
    end, pad = int(tokenizer.eos_token_id), int(tokenizer.pad_token_id or 0)
    batch = rows.batch([_question(item) for item in items], pad, asked=True)
    batch = batch.to(next(model.parameters()).device)
    settings = GenerationConfig(**({"do_sample": False} | how), repetition_penalty=1.0, max_new_tokens=max_tokens,
                                eos_token_id=end, pad_token_id=pad)  # fmt: skip
    model.eval()
    with torch.no_grad(), autocast:
        made = model.generate(
            input_ids=batch.ids, attention_mask=batch.mask, generation_config=settings, **batch.pixels, **batch.extra
        )
    answers: list[list[int]] = made[:, batch.ids.shape[1] :].tolist()
    return [ids[: ids.index(end) + 1] if end in ids else ids for ids in answers]


def _question(item: Encoded) -> Encoded:
    extra = {name: values[: item.start] for name, values in item.extra.items()}
    positions = None if item.positions is None else item.positions[:, : item.start]
    return replace(item, ids=item.ids[: item.start], extra=extra, positions=positions)


def _answered(item: Encoded, answer: list[int]) -> Encoded:
    """Return the item with another answer."""
    import torch

    asked = _question(item)
    positions = asked.positions
    if positions is not None:  # after the picture words are counted on by one, on every axis
        more = positions[:, -1:] + torch.arange(1, len(answer) + 1)
        positions = torch.cat([positions, more], dim=1)
    extra = {name: [*values, *([0] * len(answer))] for name, values in asked.extra.items()}
    return replace(asked, ids=[*asked.ids, *answer], extra=extra, positions=positions)
