"""Which modules of a checkpoint are quantized, and which must not be: decided from its file headers, in a second.

The patterns are the catalog's (`models/catalog/*.yaml`: `quantize.targets`, `quantize.ignore`, `parts`), written for
the module names of transformers 5.  Checkpoint files have older names (`model.layers.0` for
`model.language_model.layers.0`), so names are compared in a short form (`short_name`).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.support.errors import CheckFailed, UsageError

if TYPE_CHECKING:
    from models.catalog.schema import Family

WRAPPERS = frozenset({"model", "language_model", "vision_model"})


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its safetensors header states it: dtype (`BF16`), shape, file, and bytes on disk."""

    dtype: str
    shape: tuple[int, ...]
    file: str
    size: int


@dataclass(frozen=True)
class Scope:
    """What a job may touch.  Names are short names of linear modules.

    Attributes:
        architecture: class name of the checkpoint (`Qwen2_5_VLForConditionalGeneration`).
        family: the catalog's family name.
        expected: every module that must be quantized, with its (outputs, inputs).
        kept: every other linear module with the part it belongs to: `vision`, `projector`, `embeddings`, `other`.
        ignore: regular expressions for llm-compressor, `re:` included.
        forced: those of `expected` that are the vision tower's.
    """

    architecture: str
    family: str
    expected: dict[str, tuple[int, int]]
    kept: dict[str, str]
    ignore: list[str] = field(default_factory=list)
    forced: list[str] = field(default_factory=list)

    @property
    def widths(self) -> dict[str, int]:
        """Inputs of each expected module."""
        return {name: shape[1] for name, shape in self.expected.items()}


def short_name(name: str) -> str:
    """Return a module's name without wrappers: `language_model.model.layers.0.x` and `model.layers.0.x` are one."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def read_headers(folder: Path) -> dict[str, TensorInfo]:
    """Return every tensor of a checkpoint folder by name, without reading weights.

    Raises:
        UsageError: no safetensors file, or a broken one.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UsageError("no .safetensors file there", field="model", value=str(folder), fix="name a checkpoint folder")
    tensors: dict[str, TensorInfo] = {}
    for path in files:
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if not 2 <= length <= 100_000_000:
                    raise ValueError("header length")
                header = json.loads(file.read(length))
            for name, info in header.items():
                if name != "__metadata__":
                    start, end = info["data_offsets"]
                    tensors[name] = TensorInfo(info["dtype"], tuple(info["shape"]), path.name, end - start)
                    if 8 + length + end > path.stat().st_size:
                        raise ValueError("cut short")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            fix = "copy or download the checkpoint again"
            raise UsageError("not a readable safetensors file", field="model", value=str(path), fix=fix) from error
    return tensors


def read_config(folder: Path) -> dict[str, Any]:
    """Return `config.json`.  Raises UsageError when it is missing or broken."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
    except OSError as error:
        fix = "name a checkpoint folder, or embedded:qwen2_5_vl"
        raise UsageError("no config.json there", field="model", value=str(folder), fix=fix) from error
    except ValueError as error:
        raise UsageError("not JSON", field="model", value=str(path), fix="copy the checkpoint again") from error
    if not isinstance(config, dict):
        raise UsageError("not a JSON object", field="model", value=str(path), fix="copy the checkpoint again")
    return config


def family_of(config: dict[str, Any], where: str) -> tuple[str, Family]:
    """Return (architecture, catalog family) of a checkpoint.

    Raises:
        UsageError: it is quantized already, or no family of the catalog says how to quantize the architecture.
    """
    from models.catalog import load_catalog

    if "quantization_config" in config:
        method = (config["quantization_config"] or {}).get("quant_method", "unknown")
        raise UsageError(f"is quantized already ({method})", field="model", value=where, fix="name the 16-bit parent")
    names = config.get("architectures") or []
    architecture = str(names[0]) if names else "none"
    known: dict[str, list[Family]] = {}
    for family in load_catalog().families:
        if family.quantize is not None:
            known.setdefault(family.engine.architecture, []).append(family)
    if architecture not in known:
        fix = f"known: {', '.join(sorted(known))}; others need a `quantize` section in models/catalog"
        raise UsageError("no quantization scope for this architecture", field="model", value=architecture, fix=fix)
    text = config.get("text_config") or config
    size = (text.get("hidden_size"), text.get("num_hidden_layers"))
    # several families may share an architecture: the one with a checkpoint of this size, or else the published one
    fitting = [f for f in known[architecture] if any((v.decoder.hidden, v.decoder.layers) == size for v in f.variants)]
    published = [f for f in known[architecture] if f.role != "embedded"]
    return architecture, (fitting or published or known[architecture])[0]


def is_linear(name: str, info: TensorInfo) -> bool:
    """Whether a tensor is the weight of a linear layer: two-dimensional, not an embedding table."""
    return name.endswith(".weight") and len(info.shape) == 2 and "embed" not in name


def plan_scope(folder: Path, *, vision: bool = False) -> Scope:
    """Return the scope of a checkpoint; with `vision` the vision tower's linear layers too (at the user's own risk).

    Raises:
        UsageError: not a checkpoint, quantized already, unknown architecture, or its linear modules are not those that
            the catalog's patterns expect.
    """
    architecture, family = family_of(read_config(folder), str(folder))
    modules = {n.removesuffix(".weight"): t.shape for n, t in read_headers(folder).items() if is_linear(n, t)}
    return scope_of(architecture, family, modules, vision=vision)


def scope_of(
    architecture: str, family: Family, modules: Mapping[str, tuple[int, ...]], *, vision: bool = False
) -> Scope:
    """Return the scope of linear modules (any names -> shapes).  Raises UsageError as `plan_scope`."""
    rules = family.quantize
    assert rules is not None, "family_of returns families with a quantize section only"
    expected: dict[str, tuple[int, int]] = {}
    kept: dict[str, str] = {}
    forced: list[str] = []
    seen_layers: dict[str, set[str]] = {}
    for name, shape in modules.items():
        short, part = short_name(name), part_of(family, name)
        left_out = part == "language" and _matches(name, rules.ignore)
        wanted = (part == "language" and not left_out) or (vision and part == "vision")
        if wanted:
            expected[short] = (int(shape[0]), int(shape[1]))
            if part == "vision":
                forced.append(short)
            if part == "language":
                if not _matches(name, rules.targets):
                    fix = f"extend quantize.targets or ignore of {family.family} in models/catalog"
                    raise UsageError("a linear module that no pattern names", field="model", value=short, fix=fix)
                layer, _, leaf = short.rpartition(".")
                seen_layers.setdefault(re.sub(r"\D*(\d+).*", r"\1", layer), set()).add(leaf)
        else:
            kept[short] = part
    sizes = {frozenset(leaves) for leaves in seen_layers.values()}
    if not seen_layers:
        raise UsageError("no linear module of the language model found", field="model", value=architecture)
    if len(sizes) > 1:
        layer, leaves = min(seen_layers.items(), key=lambda pair: len(pair[1]))
        gone = sorted(set().union(*sizes) - leaves)
        fix = "the checkpoint is not whole: copy it again"
        raise UsageError(f"layer {layer} lacks {', '.join(gone)}", field="model", value=architecture, fix=fix)
    patterns = [p for p in rules.ignore if not (vision and any(re.search(p, module_name(s)) for s in expected))]
    if vision:  # the projector shares the tower's prefix in some families: it stays
        patterns += family.parts.projector
    ignore = [f"re:.*{p.removeprefix('^')}.*" for p in dict.fromkeys(patterns)]
    return Scope(architecture, family.family, expected, kept, ignore, forced)


def part_of(family: Family, name: str) -> str:
    """Return the part that a linear module belongs to: vision, projector, audio, embeddings, language or other."""
    for part in ("embeddings", "projector", "vision", "audio", "language"):
        if _matches(name, getattr(family.parts, part)):
            return part
    return "other"


def bytes_by_part(folder: Path) -> dict[str, int]:
    """Return the bytes of a checkpoint's tensors, quantized or not, by the part of the model that they belong to.

    Raises:
        UsageError: not a checkpoint, or of no family of the catalog.
    """
    config = {k: v for k, v in read_config(folder).items() if k != "quantization_config"}
    _, family = family_of(config, str(folder))
    found: dict[str, int] = {}
    for name, info in read_headers(folder).items():
        part = part_of(family, name)
        found[part] = found.get(part, 0) + info.size
    return dict(sorted(found.items()))


def _matches(name: str, patterns: list[str]) -> bool:
    """Whether a pattern finds the name as it is, or as transformers 5 has it."""
    return any(re.search(p, n) for p in patterns for n in (name, module_name(short_name(name))))


def module_name(short: str) -> str:
    """Return the name that transformers 5 has for a short one: the language model's layers sit in `language_model`."""
    return f"language_model.{short}" if short.startswith("layers.") else short


def check_touched(expected: Collection[str], kept: Mapping[str, str], touched: Iterable[str]) -> None:
    """Compare what a job quantized with a scope (`expected` short names, `kept` short name -> part).

    Raises:
        CheckFailed: a module outside the scope was quantized, or one of the scope was not; the first is named.
    """
    names, wanted = {short_name(name) for name in touched}, set(expected)
    strange, missed = sorted(names - wanted), sorted(wanted - names)
    if strange:
        part = kept.get(strange[0], "unknown part")
        raise CheckFailed(f"{len(strange)} modules outside the scope were quantized", field=part, value=strange[0])
    if missed:
        raise CheckFailed(f"{len(missed)} modules of the scope were not quantized", field="language", value=missed[0])
