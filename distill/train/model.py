"""The student's weights: loaded, pruned, frozen or adapted as the recipe says, and run on a batch."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.recipe.train import Lora, Train
from distill.train.rows import IGNORED, Batch
from models.support.errors import UsageError

TOWERS = ("visual", "vision_tower", "vision_model", "vision_encoder")
# families whose `get_image_features` returns one entry a picture, so that rows can share it
SHARING = frozenset({"qwen2_5_vl", "qwen2_vl", "qwen3_vl", "paligemma"})
PROJECTORS = ("merger", "multi_modal_projector", "connector", "projector")


def load_processor(source: str | Path, image_tokens: int | None = None) -> Any:
    """Return the checkpoint's processor; no picture makes more than `image_tokens` tokens.

    Raises:
        UsageError: no processor there, or its picture size cannot be bounded.
    """
    from transformers import AutoProcessor

    try:
        processor: Any = AutoProcessor.from_pretrained(source)
    except (OSError, ValueError) as error:
        fix = "name a folder with config.json, weights, tokenizer and processor"
        raise UsageError(f"no checkpoint: {str(error).splitlines()[0][:160]}", field="train.base", value=str(source),
                         fix=fix) from error  # fmt: skip
    if image_tokens is not None:
        images = processor.image_processor
        if not (hasattr(images, "merge_size") and hasattr(images, "patch_size")):
            fix = "leave it out: this family's pictures always make the same number of tokens"
            raise UsageError("cannot be set for this model", field="train.image_tokens", value=image_tokens, fix=fix)
        most = image_tokens * (images.patch_size * images.merge_size) ** 2
        size = dict(images.size)
        images.size = size | {"longest_edge": most, "shortest_edge": min(size.get("shortest_edge", most), most)}
    return processor


def load_model(train: Train, source: str | Path) -> Any:
    """Return the model, ready to be trained in fp32, with the parameters that move marked.

    Raises:
        UsageError: no checkpoint, or a target layer of the adapters does not exist.
    """
    import torch
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()
    options: dict[str, Any] = {"dtype": torch.float32}
    if train.method == "qlora":
        from transformers import BitsAndBytesConfig

        if torch.cuda.is_available():
            options["device_map"] = {"": 0}  # quantized as it is loaded: it does not move afterwards
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=["lm_head", *TOWERS],
        )  # fmt: skip
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UsageError(f"no checkpoint: {reason}", field="train.base", value=str(source)) from error
    if train.prune is not None:
        from distill.train.prune import prune

        prune(model, layers=train.prune.layers, mlp=train.prune.mlp)
    if train.method != "full":
        return _adapt(model, train)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(train.tower == "trained" or not in_tower(name))
    return model


def in_tower(name: str) -> bool:
    """Return whether a parameter or module belongs to the vision tower proper (its projector does not)."""
    parts = name.split(".")
    return any(part in TOWERS for part in parts) and not any(part in PROJECTORS for part in parts)


def adapter_targets(model: Any, lora: Lora, tower: bool) -> list[str]:
    """Return the names of the linear layers that get an adapter.  Raises UsageError where none is left."""
    import torch

    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not name.endswith("lm_head")
        # projectors belong to neither side: an adapter there is rarely worth its place in a server's adapter table
        and not any(part in PROJECTORS for part in name.split("."))
        and (tower or not in_tower(name))
    ]
    chosen = [
        n for n in linear if not lora.targets or any(n.split(".")[-1] == t or n.endswith(t) for t in lora.targets)
    ]
    if not chosen:
        known = sorted({name.split(".")[-1] for name in linear})
        raise UsageError("no layer has this name", field="train.lora.targets", value=", ".join(lora.targets),
                         fix=f"known here: {', '.join(known)}")  # fmt: skip
    return chosen


def _adapt(model: Any, train: Train) -> Any:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if train.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        for module in model.modules():
            # on a CPU with AVX512-BF16 a look at the validation rows would repack the base for inference, for good:
            # gradients do not pass through that kernel
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
    lora = train.lora
    targets = adapter_targets(model, lora, tower=train.tower == "trained")
    return get_peft_model(
        model, LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets)
    )


def core_of(model: Any) -> Any:
    """Return the module that merges pictures and words (`model.model`), below an adapter's wrapper too."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.model


def moving(model: Any) -> dict[str, Any]:
    """Return name -> parameter of everything that is trained."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def answer_logits(model: Any, batch: Batch) -> tuple[Any, Any]:
    """Return logits (answer tokens, vocabulary) and the tokens that should have come (answer tokens)."""
    batch = batch.to(next(model.parameters()).device)
    given: dict[str, Any] = dict(batch.extra)
    if batch.positions is not None:
        given["position_ids"] = batch.positions
    with _shared_pictures(core_of(model), batch) as pixels:
        logits = model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False, **pixels, **given).logits
    targets = batch.labels[:, 1:]
    at = targets != IGNORED
    return logits[:, :-1][at], targets[at]


@contextmanager
def _shared_pictures(core: Any, batch: Batch) -> Iterator[dict[str, Any]]:
    """Have the tower see every picture once, however many rows ask about it.

    The model calls its own `get_image_features` with the pictures of the batch; the rows' features are taken from what
    it returns (families of `SHARING`; the others are handed every row's picture).
    """
    pictures = max(batch.owner) + 1
    if pictures == len(batch.owner):
        yield batch.pixels
        return
    own = core.get_image_features

    def shared(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = own(*args, **kwargs)
        features = found.pooler_output
        if len(features) != pictures:
            raise TypeError(f"{len(features)} features came for {pictures} pictures")
        picked = [features[i] for i in batch.owner]
        found.pooler_output = tuple(picked) if isinstance(features, tuple | list) else features[batch.owner]
        return found

    core.get_image_features = types.MethodType(shared, core)
    try:
        yield batch.pixels
    finally:
        del core.get_image_features
