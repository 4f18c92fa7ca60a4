"""What several families share: the chat form, the towers' configurations and picture processors."""

from __future__ import annotations

from typing import Any

from models.proof.tiny import VISION

# The parts of a message in order, a picture as the family's placeholder
_PARTS = """{%- if m['content'] is string %}{{- m['content'] }}{%- else %}{%- for p in m['content'] %}
{%- if 'image' in p['type'] %}{{- 'IMAGE' }}{%- elif 'text' in p %}{{- p['text'] }}{%- endif %}
{%- endfor %}{%- endif %}"""


def chat(before: str, image: str, after: str, answer: str) -> str:
    """Return a chat template: every message as `before` content `after` (ROLE is the role), then `answer`."""
    parts = _PARTS.replace("IMAGE", image)
    opened = before.replace("ROLE", "' + m['role'] + '")
    end = "{%- if add_generation_prompt %}{{- '" + answer + "' }}{%- endif %}"
    return "{%- for m in messages %}{{- '" + opened + "' }}" + parts + "{{- '" + after + "' }}{%- endfor %}" + end


def siglip(size: int, patch: int) -> dict[str, Any]:
    return VISION | {"image_size": size, "patch_size": patch}


def siglip_processor(size: int) -> Any:
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    half = [0.5] * 3
    return SiglipImageProcessorPil(size={"height": size, "width": size}, image_mean=half, image_std=half)


def hub_tower(key: str) -> str:
    """`vision_tower.x` as the hub names it: `vision_tower.vision_model.x`."""
    tower = "vision_tower."
    return key if f"{tower}vision_model." in key else key.replace(tower, f"{tower}vision_model.")


def clip_processor(cls: Any, size: int, **more: Any) -> Any:
    return cls(size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **more)
