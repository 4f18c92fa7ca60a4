"""A LoRA module for the embedded Qwen2.5-VL, made by PEFT, and the checkpoint that has it merged into its weights."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.conftest import ROOT

EMBEDDED = ROOT / "models" / "embedded" / "qwen2_5_vl"


@dataclass
class Lora:
    """Folders: the adapter in PEFT's format, and a checkpoint that answers as the model does with it."""

    adapter: Path
    merged: Path


def make_lora(folder: Path) -> Lora:
    """Bend the model's answers by random low-rank changes of its language layers, the same at every call."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(5)
    base: Any = AutoModelForImageTextToText.from_pretrained(EMBEDDED, dtype=torch.float32)
    layers = r".*language_model.*\.(q_proj|v_proj|o_proj|up_proj|down_proj)"
    config = LoraConfig(r=4, lora_alpha=32, target_modules=layers, init_lora_weights=False)
    model: Any = get_peft_model(base, config)
    found = Lora(folder / "adapter", folder / "merged")
    model.save_pretrained(str(found.adapter))
    shutil.copytree(EMBEDDED, found.merged)  # tokenizer, processor, chat template
    model.merge_and_unload().to(torch.bfloat16).save_pretrained(found.merged)
    return found
