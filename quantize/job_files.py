"""Save a quantized model beside, with the parent's own tensor names, and check the file tensor by tensor.

The check reads what was written: every weight of the scope is stored in the scheme's format and is finite, and every
other tensor equals the parent's, bit by bit.  transformers renames some tensors when it loads and saves (the vision
tower of PaliGemma); engines expect the parent's names, so they are put back.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.support.errors import CheckFailed
from quantize.artifact import disk_error
from quantize.job_tools import Done
from quantize.request import JobRequest, ModuleLine
from quantize.scope import is_linear, read_headers, short_name
from quantize.smoothing import is_smoothed

# Endings of a quantized weight's tensors; the part before is the module's name.
STORED = {
    "llmcompressor": ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    "bitsandbytes": ("weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4",
                     "SCB", "weight_format"),
}  # fmt: skip
SHARD = 4_000_000_000  # bytes of one weight file


@dataclass
class Saved:
    """What lies in the file now."""

    modules: list[ModuleLine] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    quantization_config: dict[str, Any] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0
    quantized_bytes_before: int = 0
    quantized_bytes_after: int = 0


def save_and_check(request: JobRequest, model: Any, done: Done) -> Saved:
    """Write weights and config.json into `request.staging`, and prove them.

    Raises:
        CheckFailed: the disk is full or refuses, or the file is not what it must be.
    """
    try:
        config = _save(request, model if done.model is None else done.model)
    except Exception as error:
        reason = disk_error(error)
        if reason is None:
            raise
        fix = "free space, or name a folder on another disk"
        raise CheckFailed(f"cannot save: {reason}", field="out", value=str(request.staging.parent), fix=fix) from error
    saved = _prove(request, done)
    saved.quantization_config = config
    return saved


def _save(request: JobRequest, model: Any) -> dict[str, Any]:
    """Save through transformers, rename the tensors, and write the parent's config.json with the quantization in it."""
    model.save_pretrained(request.staging, max_shard_size=SHARD)
    _rename(request)
    made = json.loads((request.staging / "config.json").read_text("utf-8"))
    config = json.loads((request.model / "config.json").read_text("utf-8"))
    quantization = made.get("quantization_config") or {}
    if quantization:
        config["quantization_config"] = quantization
    (request.staging / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    (request.staging / "recipe.yaml").unlink(missing_ok=True)  # the manifest has it
    return dict(quantization)


def _rename(request: JobRequest) -> None:
    """Give every tensor the parent's name; drop a tied output head that the parent does not store."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    parents = _by_short(read_headers(request.model))
    files = sorted(request.staging.glob("*.safetensors"))
    index: dict[str, str] = {}
    for path in files:
        renamed: dict[str, Any] = {}
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                target = parent_name(name, parents, STORED[request.tool])
                if target is not None:
                    renamed[target] = file.get_tensor(name)
        beside = path.with_suffix(".renamed")
        save_file(renamed, beside, metadata={"format": "pt"})
        beside.chmod(0o644)  # safetensors writes files that only their owner may read
        beside.replace(path)
        index |= dict.fromkeys(renamed, path.name)
    if len(files) > 1:
        total = sum(t.size for t in read_headers(request.staging).values())
        text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
        (request.staging / "model.safetensors.index.json").write_text(text, "utf-8")


def _by_short(headers: Any) -> dict[str, str]:
    """Short name of a tensor -> its name in the parent's file."""
    return {short_name(name): name for name in headers}


def parent_name(name: str, parents: dict[str, str], endings: tuple[str, ...]) -> str | None:
    """Return the name that a saved tensor has in the parent's style; None for one that the parent does not store.

    >>> parent_name("model.visual.x.weight_scale", {"visual.x.weight": "visual.x.weight"}, ("weight_scale",))
    'visual.x.weight_scale'
    """
    short = short_name(name)
    if short in parents:
        return parents[short]
    for ending in sorted(endings, key=len, reverse=True):
        module = short.removesuffix(f".{ending}")
        if module != short and f"{module}.weight" in parents:
            return parents[f"{module}.weight"].removesuffix("weight") + ending
    return None


class Tensors(Mapping[str, Any]):
    """The tensors of a checkpoint folder by name, each read when it is asked for: a large one is never held whole."""

    def __init__(self, folder: Path):
        from safetensors import safe_open

        self._files: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = safe_open(path, "pt").__enter__()
            self._files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Any:
        return self._files[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _prove(request: JobRequest, done: Done) -> Saved:
    """Compare the written file with the parent's.

    Raises:
        CheckFailed: a tensor is missing, not finite, or differs although nothing may have changed it.
    """
    import torch

    saved = Saved()
    expected = set(request.expected)
    before, after = read_headers(request.model), read_headers(request.staging)
    old, new = Tensors(request.model), Tensors(request.staging)
    parts = dict(request.kept)
    for name, tensor in new.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise CheckFailed("a stored value is NaN or infinite", field="tensor", value=name)
    used: set[str] = set()
    for name, info in before.items():
        module = name.removesuffix(".weight")
        short = short_name(module)
        if short in expected and name.endswith(".weight"):
            group = {n: after[n] for e in STORED[request.tool] if (n := f"{module}.{e}") in after}
            if not group:
                raise CheckFailed("the weight is missing in the file", field="tensor", value=name)
            used |= group.keys()
            line, size = _quantized_line(request, done, short, module, old[name], new, group)
            saved.modules.append(line)
            saved.quantized_bytes_before += info.size
            saved.quantized_bytes_after += size
            continue
        if name not in new:
            raise CheckFailed("a tensor of the parent is missing in the file", field="tensor", value=name)
        used.add(name)
        same = torch.equal(old[name], new[name].to(old[name].dtype)) and old[name].dtype == new[name].dtype
        if not same:
            if not is_smoothed(name, done.smoothed):
                raise CheckFailed("a tensor outside the scope was changed", field="tensor", value=name)
            saved.changed.append(name)
        if is_linear(name, info):
            shape = (info.shape[0], info.shape[1])
            stored = f"{info.dtype} {list(info.shape)}"
            part = parts.get(short, "other")
            saved.modules.append(
                ModuleLine(
                    name=short, part=part, quantized=False, shape=shape, stored=stored, error=0.0 if same else None
                )
            )
    extra = sorted(after.keys() - used)
    if extra:
        raise CheckFailed(f"{len(extra)} tensors that nothing asked for", field="tensor", value=extra[0])
    saved.bytes_before = sum(t.size for t in before.values())
    saved.bytes_after = sum(t.size for t in after.values())
    return saved


def _quantized_line(
    request: JobRequest, done: Done, short: str, module: str, parent: Any, new: Mapping[str, Any], group: dict[str, Any]
) -> tuple[ModuleLine, int]:
    """Return the line of one quantized module and the bytes it takes; checks the format of what is stored."""
    part = "vision" if short in set(request.forced) else "language"
    name = next(n for n in (f"{module}.weight_packed", f"{module}.weight") if n in group)
    stored = group[name]
    want = {"w4a16": "I32", "w8a8": "I8", "fp8": "F8_E4M3", "nf4": "U8", "bnb-int8": "I8", "w2-trial": "BF16"}
    if stored.dtype not in (want[request.scheme], "F16" if request.scheme == "w2-trial" else ""):
        raise CheckFailed(f"stored as {stored.dtype}, not {want[request.scheme]}", field="tensor", value=name)
    weight = dequantize(request, module, new, tuple(parent.shape))
    error = None
    if not done.smoothed:
        error = float((weight - parent.float()).norm() / parent.float().norm().clamp(min=1e-12))
        if request.scheme != "w2-trial" and error > 0.5:
            raise CheckFailed(f"the stored weight is {error:.0%} off", field="tensor", value=name)
    shape = (int(parent.shape[0]), int(parent.shape[1]))
    text = f"{stored.dtype} {list(stored.shape)}"
    line = ModuleLine(name=short, part=part, quantized=True, shape=shape, stored=text, error=error)
    return line, sum(t.size for t in group.values())


def dequantize(request: JobRequest, module: str, tensors: Mapping[str, Any], shape: tuple[int, ...]) -> Any:
    """Return the float32 weight (outputs, inputs) that the stored tensors mean.

    INT4 is unpacked as compressed-tensors packs it (eight values in an int32, offset by 8), times a scale per group.
    """
    if request.scheme == "nf4":
        import torch
        from bitsandbytes.functional import QuantState, dequantize_4bit

        name = f"{module}.weight"
        state = {n.removeprefix(f"{name}."): tensors[n] for n in tensors if n.startswith(f"{name}.")}
        return (
            dequantize_4bit(tensors[name], QuantState.from_dict(state, device=torch.device("cpu")))
            .float()
            .reshape(shape)
        )
    if request.scheme == "bnb-int8":
        return tensors[f"{module}.weight"].float() * tensors[f"{module}.SCB"].float()[:, None] / 127
    if request.scheme == "w2-trial":
        return tensors[f"{module}.weight"].float()
    scale = tensors[f"{module}.weight_scale"].float()
    if request.scheme != "w4a16":
        return tensors[f"{module}.weight"].float() * scale.reshape(shape[0], -1)
    import torch

    packed = tensors[f"{module}.weight_packed"]
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    values = ((packed[:, :, None] >> shifts) & 15).reshape(shape[0], -1)[:, : shape[1]].float() - 8
    if f"{module}.weight_g_idx" in tensors:
        return values * scale[:, tensors[f"{module}.weight_g_idx"].long()]
    assert request.group is not None
    return values * scale.repeat_interleave(request.group, dim=1)
