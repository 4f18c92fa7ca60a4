"""Chat templates for families whose checkpoints come without one."""

from __future__ import annotations

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
FAMILIES = ("paligemma",)


def template_for(path: str) -> str | None:
    """Return the chat template's file for a checkpoint folder that has none of its own; None where there is none."""
    folder = Path(path)
    try:
        family = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
        own = json.loads((folder / "tokenizer_config.json").read_text("utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None  # a hub id, or a folder that vLLM will say more about
    if own or family not in FAMILIES or any(folder.glob("chat_template*")):
        return None
    return str(HERE / f"{family}.jinja")
