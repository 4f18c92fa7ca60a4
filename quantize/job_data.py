"""Calibration items through the model's own processor and chat template, as the engine will see them."""

from __future__ import annotations

import inspect
import io
from collections import Counter
from collections.abc import Callable
from typing import Any

from models.golden import GoldenItem, load_golden
from models.support.errors import UsageError
from quantize.request import CalibrationFacts, JobRequest

Batches = list[dict[str, Any]]
BATCH_TOKENS = 2048


def prepare(request: JobRequest, model: Any, say: Callable[..., None]) -> tuple[Batches, CalibrationFacts]:
    """Return the items as batches of equal length (see `merge`) and the figures about them.

    `model`: takes what its `forward` names; what else the processor makes is left out (token types, for LLaVA).

    Raises:
        UsageError: the checkpoint has no processor or template, or an item has no image tokens, or is too long.
    """
    from PIL import Image
    from transformers import AutoProcessor

    assert request.calibration is not None
    try:
        processor = AutoProcessor.from_pretrained(request.model)
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        fix = "copy the family's processor and tokenizer files into the checkpoint"
        where = str(request.model)
        raise UsageError(f"has no usable processor: {reason}", field="model", value=where, fix=fix) from error
    if not getattr(processor, "chat_template", None):
        fix = "add the family's chat_template.jinja to the checkpoint"
        raise UsageError("has no chat template", field="model", value=str(request.model), fix=fix)
    items = load_golden(request.calibration).items
    image_token, takes = image_token_id(processor), inspect.signature(model.forward).parameters
    batches, counts = [], Counter[int]()
    for number, item in enumerate(items, 1):
        with Image.open(io.BytesIO(item.image_bytes())) as opened:
            image = opened.convert("RGB")
        batch = encode(processor, image, item)
        ids = batch["input_ids"]
        images = int((ids == image_token).sum())
        if images == 0:
            fix = "the checkpoint's processor and template do not fit each other"
            raise UsageError("the prompt has no image tokens", field=f"calibration: item {item.id}", fix=fix)
        if ids.shape[1] > request.max_tokens:
            fix = "smaller pictures, or a larger --max-tokens"
            where = f"calibration: item {item.id}"
            raise UsageError("the prompt is too long", field=where, value=ids.shape[1], fix=fix)
        counts[images] += 1
        batches.append({k: v.to(model.device) for k, v in batch.items() if k in takes})
        if number % 32 == 0:
            say("reading the calibration items", number, len(items))
    lengths = [int(b["input_ids"].shape[1]) for b in batches]
    facts = CalibrationFacts(
        items=len(items),
        tokens=sum(lengths),
        longest=max(lengths),
        image_tokens=dict(sorted(counts.items())),
        first_item=items[0].id,
        first_prompt_tokens=lengths[0],
    )
    return merge(batches), facts


def merge(batches: Batches, most_tokens: int = BATCH_TOKENS) -> Batches:
    """Return batches joined where all shapes but the first dimension agree, up to `most_tokens` tokens each.

    Items of one length need no padding, so every value is what it was alone; the passes over the layers are fewer.
    """
    import torch

    groups: dict[Any, list[dict[str, Any]]] = {}
    for batch in batches:
        groups.setdefault(tuple(sorted((k, tuple(v.shape[1:])) for k, v in batch.items())), []).append(batch)
    joined = []
    for group in groups.values():
        size = max(1, most_tokens // max(1, int(group[0]["input_ids"].shape[1])))
        for start in range(0, len(group), size):
            part = group[start : start + size]
            joined.append({k: torch.cat([b[k] for b in part]) for k in part[0]})
    return joined


def encode(processor: Any, image: Any, item: GoldenItem) -> dict[str, Any]:
    """Return the processor's tensors of one question about one picture, the assistant's turn opened."""
    content = [{"type": "image"}, {"type": "text", "text": item.question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    if type(processor).__name__ == "PaliGemmaProcessor":
        # it ends the prefix with a line feed itself; the served template has one for engines that do not
        text = text.removesuffix("\n")
        return dict(processor(images=[image], text=[text], return_tensors="pt"))
    return dict(processor(images=[image], text=[text], return_tensors="pt", return_mm_token_type_ids=True))


def image_token_id(processor: Any) -> int:
    """Return the token that stands for a piece of a picture.  Raises UsageError when the processor has none."""
    found = getattr(processor, "image_token_id", None)
    if found is None:
        token = getattr(processor, "image_token", None)
        if token is None:
            raise UsageError("the processor names no image token", field="model", value=type(processor).__name__)
        found = processor.tokenizer.convert_tokens_to_ids(getattr(token, "content", token))
    return int(found)
