"""Recompute a variant's parameter counts: its architecture is built by transformers on the meta device, no weights.

Needs torch and transformers; takes under a second and almost no memory, also for 400 billion parameters.
"""

from __future__ import annotations

import re
from typing import Any

from models.catalog.schema import Family, Variant
from models.support.errors import CheckFailed

PARTS = ("vision", "projector", "audio", "language", "embeddings")


def build(variant: Variant) -> Any:
    """Return the transformers model of `variant` on the meta device, tied weights tied."""
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    config = getattr(transformers, variant.config.config_class)(**variant.config.values)
    with torch.device("meta"), no_init_weights():
        model = getattr(transformers, variant.config.model_class)(config)
    model.tie_weights()
    return model


def count(family: Family, variant: Variant) -> dict[str, int]:
    """Return the parameters of each part; a parameter belongs to the first part whose pattern finds its name.

    `embeddings` are counted within `language` as well.

    Raises:
        CheckFailed: a parameter that no pattern of the family finds.
    """
    patterns = {part: [re.compile(p) for p in getattr(family.parts, part)] for part in PARTS}
    totals = dict.fromkeys(PARTS, 0)
    for name, parameter in build(variant).named_parameters():
        owner = next((p for p in PARTS[:4] if any(r.search(name) for r in patterns[p])), None)
        if owner is None:
            raise CheckFailed("no part of the family matches this parameter", field=family.family, value=name)
        totals[owner] += parameter.numel()
        if owner == "language" and any(r.search(name) for r in patterns["embeddings"]):
            totals["embeddings"] += parameter.numel()
    return totals
