"""LoRA modules in PEFT's format, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

LAYER = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


def write_adapter(folder: Path, *, rank: int = 4, layer: str = LAYER, seed: int = 0, **config: Any) -> Path:
    """Write an adapter of one square layer of 192 and return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"], "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    rng = np.random.default_rng(seed)
    weights = {
        f"{layer}.lora_A.weight": rng.normal(size=(rank, 192)).astype(np.float32),
        f"{layer}.lora_B.weight": rng.normal(size=(192, rank)).astype(np.float32),
    }
    save_file(weights, folder / "adapter_model.safetensors")
    return folder
