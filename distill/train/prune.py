"""Structured pruning: whole layers and whole MLP units go, so that what is left is an ordinary, smaller checkpoint.

Which layers: those spread evenly between the first and the last, which stay (Muralidharan et al. 2024 and Men et al.
2024 find the ends the dearest).  Which units: the largest norm(gate) * norm(up) * norm(down) stay, a data-free measure
of how much a unit can say.
"""

from __future__ import annotations

from typing import Any

from models.support.errors import UsageError


def prune(model: Any, *, layers: int | None, mlp: float | None) -> None:
    """Cut the language model of `model` in place; its configuration says so afterwards.

    Raises:
        UsageError: the model has fewer layers than should stay, or no MLP of the gated kind.
    """
    text = model.model.language_model
    config = text.config
    if layers is not None:
        _cut_layers(text, config, layers)
    if mlp is not None and mlp < 1:
        _cut_units(text, config, mlp)


def kept_layers(there: int, stay: int) -> list[int]:
    """Return the indexes of `stay` of `there` layers, spread evenly from the first to the last."""
    if stay == 1:
        return [0]
    return [round(i * (there - 1) / (stay - 1)) for i in range(stay)]


def _cut_layers(text: Any, config: Any, stay: int) -> None:
    import torch

    there = len(text.layers)
    if stay > there:
        raise UsageError(f"the base has {there} layers", field="train.prune.layers", value=stay, fix="ask for fewer")
    chosen = kept_layers(there, stay)
    text.layers = torch.nn.ModuleList(text.layers[i] for i in chosen)
    for number, layer in enumerate(text.layers):
        layer.self_attn.layer_idx = number
    config.num_hidden_layers = stay
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in chosen]


def _cut_units(text: Any, config: Any, share: float) -> None:
    import torch

    if not all(hasattr(layer.mlp, name) for layer in text.layers for name in ("gate_proj", "up_proj", "down_proj")):
        raise UsageError("the base has no gated MLP", field="train.prune.mlp", value=share, fix="prune layers only")
    stay = max(8, int(config.intermediate_size * share) // 8 * 8)
    for layer in text.layers:
        block = layer.mlp
        worth = (
            block.gate_proj.weight.norm(dim=1) * block.up_proj.weight.norm(dim=1) * block.down_proj.weight.norm(dim=0)
        )
        chosen = worth.topk(stay).indices.sort().values
        for name, dim in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            linear = getattr(block, name)
            linear.weight = torch.nn.Parameter(linear.weight.detach().index_select(dim, chosen).clone())
            if dim == 0 and linear.bias is not None:
                linear.bias = torch.nn.Parameter(linear.bias.detach()[chosen].clone())
        block.gate_proj.out_features = block.up_proj.out_features = block.down_proj.in_features = stay
        if hasattr(block, "intermediate_size"):
            block.intermediate_size = stay
    config.intermediate_size = stay
