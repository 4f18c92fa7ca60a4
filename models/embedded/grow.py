"""A larger Qwen2.5-VL that begins where a smaller, trained one ended (Net2Net, Chen et al. 2016; bert2BERT 2021).

Training a large model from nothing takes hours on two cores; one that is grown says the same as the small one from the
first step, and learns on with all of its weights.  What is new reads at random and writes nothing: the columns of
`o_proj` and `down_proj` that belong to new heads and units are zero, and so is everything that would write into the new
part of the hidden state.  Gradients reach them from the first step, because the weights before them are not zero.
"""

from __future__ import annotations

import math
import re
from typing import Any

from models.support.errors import UsageError

# what writes into the hidden state
_WRITERS = re.compile(r"(o_proj|down_proj|embed_tokens|lm_head)\.weight$|visual\.merger\.mlp\.2\.(weight|bias)$")
_NORM = re.compile(r"language_model.*norm\.weight$")
_LAYER = re.compile(r"(.*language_model\.layers\.)(\d+)(\..*)$")


def grow(small: Any, large: Any) -> None:
    """Fill `large` (newly made, any seed) in place so that it answers as `small` does.

    Both must have the same tower but for its last projection, heads of one size, and as many query heads per key head.

    Raises:
        UsageError: `large` is smaller somewhere, or the heads do not fit.
    """
    import torch

    a, b = small.config.text_config, large.config.text_config
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if getattr(b, name) < getattr(a, name):
            raise UsageError("is smaller than in the model that is grown", field=name, value=getattr(b, name))
    groups = [c.num_attention_heads // c.num_key_value_heads for c in (a, b)]
    widths = [c.hidden_size // c.num_attention_heads for c in (a, b)]
    if groups[0] != groups[1] or widths[0] != widths[1]:
        raise UsageError(
            "heads are grouped or sized otherwise", field="num_attention_heads", value=b.num_attention_heads
        )
    at = {round(i * b.num_hidden_layers / a.num_hidden_layers): i for i in range(a.num_hidden_layers)}
    shrink = math.sqrt(a.hidden_size / b.hidden_size)  # the mean square is over more dimensions, most of them zero
    known = small.state_dict()
    with torch.no_grad():
        for name, target in large.state_dict().items():
            if _WRITERS.search(name):
                target.zero_()
            found = _LAYER.match(name)
            if found is not None:
                if int(found[2]) not in at:
                    continue  # a new layer: it writes nothing yet
                name = f"{found[1]}{at[int(found[2])]}{found[3]}"
            source = known[name]
            block = tuple(slice(0, n) for n in source.shape)
            target[block] = source * shrink if _NORM.search(name) else source
