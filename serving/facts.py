"""What the layers of a replica need to know about its engine, and what of them does not work at the moment.

One per process: a replica has one engine.  The replica fills it before its layers start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Facts:
    """See the module's docstring.

    Attributes:
        image_tokens: prompt tokens of an image of (width, height) pixels, by the checkpoint's own processor.
        temperature: of a request that does not say one (the checkpoint's generation_config, or the engine's 1).
        replicas: of the same model, this one included.
        degraded: part of the stack -> why it works less well than configured; `/health` shows it.
    """

    image_tokens: Callable[[int, int], int] | None = None
    temperature: float = 1.0
    replicas: int = 1
    degraded: dict[str, str] = field(default_factory=dict)


FACTS = Facts()
