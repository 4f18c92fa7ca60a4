"""What fits on a GPU: weights, KV cache, activations and overhead of a served model, with the arithmetic.

Weights and KV cache are exact up to padding.  Activations and overhead are estimates of what vLLM's profile run finds:
for Llama 3.1 8B with 8,192 batched tokens and 256 sequences the formula gives 1.1 GiB, vLLM logged 1.2 GiB.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from models.catalog.schema import Decoder, Encoder, Variant
from models.fit_defaults import OVERHEAD_GIB, UTILIZATION
from models.gpus import Gpu, find_gpu, load_gpus
from models.support.errors import UsageError

GIB = 2**30
BLOCK = 16  # tokens of a KV cache block (vLLM's default)
LOGIT_BYTES = 10  # per logit: 16-bit logits, their float32 copy and the softmax
TEXT_TOKENS = 1024  # prompt text and answer, where no context is given

# bytes per weight of the language model's linear layers; all else stays in 16 bits (float32: everything in 32)
SCHEMES: dict[str, tuple[float, str]] = {
    "bf16": (2.0, "16-bit weights"),
    "fp16": (2.0, "16-bit weights"),
    "fp32": (4.0, "32-bit weights, everywhere"),
    "w8a8": (1.0, "INT8 weights and activations, a scale per channel"),
    "fp8": (1.0, "FP8 weights and activations"),
    "w4a16": (0.5 + 2 / 128, "INT4 weights, a 16-bit scale per 128"),
}
NAMES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "fp32", "int8": "w8a8", "int4": "w4a16"}


__all__ = [
    "GIB",
    "SCHEMES",
    "Fit",
    "Gpu",
    "Load",
    "activation_bytes",
    "advice",
    "engine_defaults",
    "find_gpu",
    "fit",
    "gib",
    "kv_bytes",
    "load_gpus",
    "scheme_name",
    "weight_bytes",
]


@dataclass(frozen=True)
class Load:
    """What is asked of the model.  `context`: tokens of one request, images and answer included; None: see `fit`."""

    concurrency: int = 1
    image: tuple[int, int] | None = None
    images: int = 1
    context: int | None = None
    scheme: str = "bf16"
    kv_dtype: str = "auto"
    batched_tokens: int | None = None
    sequences: int | None = None
    gpus: int = 1
    utilization: float = UTILIZATION
    overhead_gib: float = OVERHEAD_GIB


@dataclass(frozen=True)
class Fit:
    """The answer for one GPU of `gpus`; sizes in bytes.  `lines` is the arithmetic, `notes` what to know about it."""

    model: str
    scheme: str
    gpus: int
    memory: int
    budget: int
    weights: int
    activations: int
    overhead: int
    kv_per_request: int
    kv: int
    request_tokens: int
    image_tokens: int
    fits: bool
    max_concurrency: int
    lines: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def needed(self) -> int:
        return self.weights + self.activations + self.overhead + self.kv

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "needed": self.needed}


def scheme_name(name: str) -> str:
    """Return the scheme's name (`bfloat16` is `bf16`).  Raises UsageError for another one."""
    plain = name.strip().casefold()
    found = NAMES.get(plain, plain)
    if found not in SCHEMES:
        raise UsageError("unknown scheme", field="scheme", value=name, fix=f"one of {', '.join(SCHEMES)}")
    return found


def weight_bytes(variant: Variant, scheme: str) -> int:
    """Return the bytes of all weights: `scheme` for the language model's linear layers, 16 bits for the rest.

    Embeddings, output head, vision encoder, projector, audio and shipped adapters are not quantized.  Norms and biases
    (under 0.1 %) are counted with the linear layers.
    """
    p = variant.parameters
    rest = 4.0 if scheme == "fp32" else 2.0
    linear = p.language - p.embeddings
    return math.ceil(linear * SCHEMES[scheme][0] + (p.total + p.adapters - linear) * rest)


def kv_bytes(decoder: Decoder, tokens: int, *, value_bytes: int = 2, gpus: int = 1) -> int:
    """Return the KV cache bytes of one request of `tokens` on each of `gpus` (tensor parallel).

    2 x layers x KV heads x head size x bytes per token, in whole blocks; local layers keep at most their window.  With
    more GPUs than KV heads every GPU keeps one head.
    """
    heads = max(1, math.ceil(decoder.kv_heads / gpus))
    per_layer = 2 * heads * decoder.head_dim * value_bytes

    def blocks(count: int) -> int:
        return math.ceil(count / BLOCK) * BLOCK

    local = blocks(min(tokens, decoder.window)) if decoder.window else 0
    kept = (decoder.layers - decoder.window_layers) * blocks(tokens) + decoder.window_layers * local
    return per_layer * (kept + decoder.layers * blocks(decoder.cross_tokens))


def activation_bytes(
    decoder: Decoder, encoder: Encoder | None, *, batched: int, sequences: int, encoder_tokens: int, gpus: int = 1
) -> tuple[int, int, int]:
    """Return an estimate of (language model, vision encoder, logits) bytes at the peak, 16-bit activations.

    Language: batched tokens x (2 hidden + 3 intermediate / GPUs).  Vision: patches x the same.  Logits: sequences x
    vocabulary x 10 bytes.  The encoder's outputs wait in a cache of `encoder_tokens` x hidden, counted with vision.
    """
    language = batched * (2 * decoder.hidden + 3 * decoder.intermediate // gpus) * 2
    logits = sequences * decoder.vocab * LOGIT_BYTES
    vision = 0
    if encoder is not None and encoder_tokens:
        patches = encoder_tokens * encoder.patches_per_token
        vision = patches * (2 * encoder.hidden + 3 * encoder.intermediate // gpus) * 2
        vision += encoder_tokens * decoder.hidden * 2
    return language, vision, logits


def engine_defaults(memory_gib: float, gpu: str | None) -> tuple[int, int]:
    """Return vLLM 0.29's default (max_num_batched_tokens, max_num_seqs) of the API server (engine/arg_utils.py)."""
    if memory_gib >= 160:
        return 16384, 1024
    if memory_gib >= 70 and "a100" not in (gpu or "").casefold():
        return 8192, 1024
    return 2048, 256


def _check(load: Load, memory_gib: float) -> None:
    for name, value, low, high in (
        ("concurrency", load.concurrency, 1, 1_000_000),
        ("images", load.images, 0, 10_000),
        ("gpus", load.gpus, 1, 64),
        ("context", load.context if load.context is not None else 1, 1, 100_000_000),
        ("batched-tokens", load.batched_tokens or 1, 1, 10_000_000),
        ("max-num-seqs", load.sequences or 1, 1, 1_000_000),
    ):
        if not low <= value <= high:
            raise UsageError(f"must be from {low:,} to {high:,}", field=name, value=value)
    if not 0 < memory_gib <= 10_000:
        raise UsageError("must be GiB of one GPU, above 0 and at most 10,000", field="memory", value=memory_gib)
    if not 0.05 <= load.utilization <= 1:
        raise UsageError("must be from 0.05 to 1", field="utilization", value=load.utilization)
    if not 0 <= load.overhead_gib <= memory_gib:
        raise UsageError("must be GiB, from 0 to the GPU's memory", field="overhead", value=load.overhead_gib)
    if load.kv_dtype not in ("auto", "fp8"):
        raise UsageError("must be auto (16 bits) or fp8", field="kv-dtype", value=load.kv_dtype)


def _image_tokens(variant: Variant, load: Load) -> int:
    if load.image is None or load.images == 0:
        return 0
    if variant.image is None:
        raise UsageError("takes no images", field="image", value=variant.name, fix="leave --image out")
    try:
        return variant.image.tokens(*load.image)
    except (ValueError, UsageError) as error:
        reason = error.message if isinstance(error, UsageError) else str(error)
        raise UsageError(reason, field="image", value="{}x{}".format(*load.image)) from error


def fit(variant: Variant, memory_gib: float, load: Load, *, gpu: Gpu | None = None) -> Fit:
    """Return whether `variant` serves `load` on `load.gpus` GPUs of `memory_gib` each, and the arithmetic.

    Without a context a request has its image tokens and 1,024 tokens of text and answer, at most the model's context.

    Raises:
        UsageError: a figure out of range, a context that is too short for the image or longer than the model's.
    """
    _check(load, memory_gib)
    scheme = scheme_name(load.scheme)
    d = variant.decoder
    if d.heads % load.gpus:
        fix = f"a divisor of the {d.heads} attention heads"
        raise UsageError("tensor parallelism must divide the heads", field="gpus", value=load.gpus, fix=fix)
    per_image = _image_tokens(variant, load)
    images = per_image * load.images
    tokens = load.context if load.context is not None else min(images + TEXT_TOKENS, variant.context)
    if tokens > variant.context:
        raise UsageError(f"{variant.name} takes {variant.context:,} tokens", field="context", value=tokens)
    if images >= tokens:
        fix = f"more than {images:,}, or a smaller image"
        raise UsageError("leaves no room beside the image tokens", field="context", value=tokens, fix=fix)
    default_batched, default_sequences = engine_defaults(memory_gib, gpu.name if gpu else None)
    batched = max(load.batched_tokens or default_batched, per_image)
    sequences = load.sequences or default_sequences
    value_bytes = 1 if load.kv_dtype == "fp8" else 4 if scheme == "fp32" else 2
    # the engine encodes as many images at once as its encoder budget (the batched tokens) holds
    encoder_tokens = batched // per_image * per_image if per_image else d.cross_tokens
    language, vision, logits = activation_bytes(
        d, variant.encoder, batched=batched, sequences=sequences, encoder_tokens=encoder_tokens, gpus=load.gpus
    )
    memory = int(memory_gib * GIB)
    budget = int(memory * load.utilization)
    weights = math.ceil(weight_bytes(variant, scheme) / load.gpus)
    activations = max(language, vision) + logits
    overhead = int(load.overhead_gib * GIB)
    per_request = kv_bytes(d, tokens, value_bytes=value_bytes, gpus=load.gpus)
    room = budget - weights - activations - overhead
    most = max(0, room // per_request)
    result = Fit(
        model=variant.name,
        scheme=scheme,
        gpus=load.gpus,
        memory=memory,
        budget=budget,
        weights=weights,
        activations=activations,
        overhead=overhead,
        kv_per_request=per_request,
        kv=per_request * load.concurrency,
        request_tokens=tokens,
        image_tokens=images,
        fits=most >= load.concurrency,
        max_concurrency=most,
    )
    result.lines.extend(_lines(result, variant, load, (language, vision, logits), batched, sequences, value_bytes))
    result.notes.extend(_notes(variant, scheme, gpu))
    return result


def gib(count: float) -> str:
    """`8589934592` is `8.00 GiB`."""
    return f"{count / GIB:.2f} GiB"


def _lines(
    f: Fit, v: Variant, load: Load, parts: tuple[int, int, int], batched: int, sequences: int, value_bytes: int
) -> list[str]:
    p, d = v.parameters, v.decoder
    each = f" / {f.gpus} GPUs" if f.gpus > 1 else ""
    linear = p.language - p.embeddings
    rest = p.total + p.adapters - linear
    language, vision, logits = parts
    window = f", {d.window_layers} of them local ({d.window:,} tokens)" if d.window else ""
    cross = f" and {d.cross_tokens:,} of cross-attention" if d.cross_tokens else ""
    return [
        f"budget       {gib(f.budget):>11}  {gib(f.memory)} x {load.utilization}",
        f"weights      {gib(f.weights):>11}  ({linear / 1e9:.3f} G linear x {SCHEMES[f.scheme][0]:.4g} B"
        f" + {rest / 1e9:.3f} G others x {4 if f.scheme == 'fp32' else 2} B){each}",
        f"activations  {gib(f.activations):>11}  max(language {gib(language)}, vision {gib(vision)}) + logits"
        f" {gib(logits)}: {batched:,} batched tokens, {sequences:,} sequences (estimate)",
        f"overhead     {gib(f.overhead):>11}  CUDA context, graphs (assumed)",
        f"KV cache     {gib(f.kv):>11}  {load.concurrency} x {f.kv_per_request / 2**20:.1f} MiB:"
        f" {f.request_tokens:,} tokens ({f.image_tokens:,} of images){cross} x 2 x {d.layers} layers{window}"
        f" x {d.kv_heads} KV heads x {d.head_dim} x {value_bytes} B{each}",
    ]


def _notes(variant: Variant, scheme: str, gpu: Gpu | None) -> list[str]:
    notes = []
    if variant.confidence != "high":
        notes.append(f"catalog confidence of {variant.name}: {variant.confidence}")
    if gpu is None:
        return notes
    major, minor = (int(x) for x in gpu.capability.split("."))
    if scheme == "bf16" and major < 8:
        notes.append(f"{gpu.name} has no bfloat16: use --scheme fp16")
    if scheme == "w8a8" and major >= 10:
        notes.append("INT8 W8A8 kernels are missing on Blackwell (vllm issue 54311): use fp8")
    if scheme == "fp8" and (major, minor) < (8, 9):
        notes.append(f"{gpu.name} runs FP8 as weights only (Marlin): the memory is saved, the speed is not")
    if gpu.confidence != "high":
        notes.append(f"memory of {gpu.name}: {gpu.source}")
    return notes


def advice(variant: Variant, memory_gib: float, load: Load, *, gpu: Gpu | None = None) -> list[str]:
    """Return what would make a load fit that does not: the mildest smaller scheme, then more GPUs, then larger ones."""
    from dataclasses import replace

    found = []
    for scheme in ("fp8", "w8a8", "w4a16"):
        if SCHEMES[scheme][0] < SCHEMES[scheme_name(load.scheme)][0]:
            smaller = replace(load, scheme=scheme)
            if fit(variant, memory_gib, smaller, gpu=gpu).fits:
                found.append(f"--scheme {scheme}")
                break
    for count in (2, 4, 8):
        if count > load.gpus and variant.decoder.heads % count == 0:
            more = replace(load, gpus=count)
            if fit(variant, memory_gib, more, gpu=gpu).fits:
                found.append(f"--gpus {count}")
                break
    for other in load_gpus():
        if other.memory_gib > memory_gib and fit(variant, other.memory_gib, load, gpu=other).fits:
            found.append(f"--gpu {other.name}")
            break
    return found
