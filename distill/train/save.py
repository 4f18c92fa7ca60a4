"""From trained weights to a checkpoint that can be served: adapters merged, bf16, processor and template beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill.recipe.train import Train
from distill.train.model import load_model
from models.support.errors import UsageError


def save_student(model: Any, processor: Any, train: Train, source: str | Path, folder: Path) -> None:
    """Write `folder/student`, and `folder/adapter` (PEFT's format, which vLLM serves beside others) where there is one.

    An adapter on a base in NF4 is merged into the base's own weights: what is served is not quantized unless it is
    quantized afterwards.

    Raises:
        UsageError: the disk is full.
    """
    try:
        if train.method != "full":
            model.save_pretrained(folder / "adapter")
            model = _merged(model, train, source, folder / "adapter")
        save_checkpoint(model, processor, folder / "student")
    except OSError as error:
        raise UsageError(f"cannot write the student: {error.strerror}", field=str(folder),
                         fix="free space and run again: the training itself is kept") from error  # fmt: skip


def save_checkpoint(model: Any, processor: Any, folder: Path) -> None:
    """Write a complete checkpoint in bf16."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    processor.save_pretrained(folder)
    if model.config.model_type == "paligemma":
        from models.embedded.architectures import rename_tower

        rename_tower(folder)


def _merged(model: Any, train: Train, source: str | Path, adapter: Path) -> Any:
    if train.method == "lora":
        return model.merge_and_unload()
    from peft import PeftModel

    base = load_model(train.model_copy(update={"method": "full"}), source)
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
