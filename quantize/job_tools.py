"""How each tool quantizes the loaded model in place: llm-compressor and bitsandbytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quantize.request import JobRequest
from quantize.scope import check_touched, short_name
from quantize.smoothing import SMOOTHING, check_pairs, is_smoothed, smooth_layers

Say = Callable[..., None]


@dataclass
class Done:
    """What a tool did.

    Attributes:
        recipe: its settings, for the manifest.
        model: what is to be saved, when it is another model than was given.
        smoothed: patterns of modules outside the scope whose weights it changed on purpose.
        touched: short names of what it quantized.
    """

    recipe: dict[str, Any]
    model: Any = None
    smoothed: list[str] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)


def weight_args(request: JobRequest) -> dict[str, Any]:
    """Return the quantization of weights and activations as compressed-tensors states it."""
    if request.scheme == "w4a16":
        weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": request.group}
        return {"weights": weights}
    kind = "float" if request.scheme == "fp8" else "int"
    weights = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "channel"}
    inputs = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    return {"weights": weights, "input_activations": inputs}


def recipe_of(request: JobRequest) -> list[Any]:
    """Return llm-compressor's modifiers for a request; a method that smooths needs pairs of the architecture."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    groups = {"config_groups": {"group_0": {"targets": ["Linear"], **weight_args(request)}}, "ignore": request.ignore}
    if request.method == "gptq":
        return [GPTQModifier(**groups)]
    if request.method == "rtn":
        return [QuantizationModifier(**groups)]
    pairs = SMOOTHING[request.architecture]
    if request.method == "awq":
        from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier

        mappings = [AWQMapping(smooth, balance) for smooth, balance in pairs]
        return [AWQModifier(mappings=mappings), QuantizationModifier(**groups)]
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    # SmoothQuant takes norms only: an up_proj has a weight of its own to be rounded
    listed = [[balance, smooth] for smooth, balance in pairs if smooth.endswith("layernorm$")]
    return [SmoothQuantModifier(smoothing_strength=0.5, mappings=listed), GPTQModifier(**groups)]


def llmcompressor(request: JobRequest, model: Any, batches: list[dict[str, Any]] | None, say: Say) -> Done:
    """Quantize with llm-compressor, layer by layer.

    Raises:
        CheckFailed: it quantized another set of modules than the scope.
    """
    if request.scheme == "w2-trial":
        return round_to_two_bits(request, model)
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader

    # a list is a dataset to torch, whatever its types say
    data: Any = batches
    loader: Any = None if data is None else DataLoader(data, batch_size=1, collate_fn=lambda rows: rows[0])
    modifiers = recipe_of(request)
    recipe = {
        "modifiers": [{"type": type(m).__name__, **_plain(m.model_dump(exclude_none=True))} for m in modifiers],
        "scheme": weight_args(request),
    }
    _no_pinning_without_accelerator()
    smoothed = smooth_layers(request.method, request.architecture)
    if smoothed:
        check_pairs(request.architecture, (name for name, _ in model.named_modules()))
    before = unquantized(model, request, smoothed)
    oneshot(
        model=model,
        dataset=loader,
        recipe=modifiers,
        num_calibration_samples=len(batches or []),
        max_seq_length=request.max_tokens,
        shuffle_calibration_samples=False,
    )
    touched = {n for n, m in model.named_modules() if getattr(m, "quantization_scheme", None) is not None}
    check_touched(request.expected, request.kept, touched)
    recipe["restored"] = restore(model, before)
    return Done(recipe, smoothed=smoothed, touched={short_name(n) for n in touched})


def _no_pinning_without_accelerator() -> None:
    """Keep llm-compressor 0.13's AWQ from pinning host memory for a device that is not there: torch refuses."""
    import torch
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda self, *args, **kwargs: None


def unquantized(model: Any, request: JobRequest, smoothed: list[str]) -> dict[str, Any]:
    """Return copies of all parameters that neither the scheme nor the method may change, by name."""
    wanted = {f"{name}.weight" for name in request.expected}
    return {
        n: p.detach().clone()
        for n, p in model.named_parameters()
        if short_name(n) not in wanted and not is_smoothed(n, smoothed)
    }


def restore(model: Any, before: dict[str, Any]) -> list[str]:
    """Put parameters back that calibration changed; return their names.

    llm-compressor 0.13 turns Gemma's norms, output x (1 + weight), into plain ones while it works: adding 1 and taking
    it away again rounds their bfloat16 weights.
    """
    import torch

    found = []
    for name, parameter in model.named_parameters():
        if name in before and not torch.equal(parameter, before[name]):
            with torch.no_grad():
                parameter.copy_(before[name])
            found.append(name)
    return found


def _plain(value: Any) -> Any:
    """Return a modifier's settings as JSON: only text, numbers, lists and mappings survive."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if not str(k).endswith("_")}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def round_to_two_bits(request: JobRequest, model: Any) -> Done:
    """Round every weight of the scope to 4 values and keep it in 16 bits: what the gate must refuse."""
    import torch

    touched = set()
    for name, module in model.named_modules():
        short = short_name(name)
        if isinstance(module, torch.nn.Linear) and short in set(request.expected):
            with torch.no_grad():
                module.weight.copy_(two_bits(module.weight))
            touched.add(short)
    check_touched(request.expected, request.kept, touched)
    return Done({"round": {"bits": 2, "symmetric": True, "strategy": "tensor"}}, touched=touched)


def two_bits(weight: Any) -> Any:
    """Return a weight (outputs, inputs) rounded to -2, -1, 0, 1 times one scale for the whole matrix.

    One scale, because with a scale per output or per group the small embedded models lose nothing by 2 bits.
    """
    values = weight.float()
    scale = values.abs().max().clamp(min=1e-8) / 2
    return ((values / scale).round().clamp(-2, 1) * scale).to(weight.dtype)


def bitsandbytes(request: JobRequest, model: Any, batches: list[dict[str, Any]] | None, say: Say) -> Done:
    """Load the checkpoint again through transformers' bitsandbytes quantizer: NF4 or INT8.

    Raises:
        CheckFailed: it quantized another set of modules than the scope.
    """
    import torch
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

    outside = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and not _inside(n, request)]
    if request.scheme == "nf4":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=False,
            llm_int8_skip_modules=outside,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=outside)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    made = AutoModelForImageTextToText.from_pretrained(
        request.model, dtype=torch.bfloat16, quantization_config=config, device_map={"": device}
    )
    touched = {n for n, m in made.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt")}
    check_touched(request.expected, request.kept, touched)
    return Done({"bitsandbytes": _plain(config.to_dict())}, model=made, touched={short_name(n) for n in touched})


def _inside(name: str, request: JobRequest) -> bool:
    return short_name(name) in set(request.expected)


TOOLS: dict[str, Callable[[JobRequest, Any, list[dict[str, Any]] | None, Say], Done]] = {
    "llmcompressor": llmcompressor,
    "bitsandbytes": bitsandbytes,
}
