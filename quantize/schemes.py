"""The schemes that `fovea quantize` knows: one row each, smallest checkpoint first."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from models.support.errors import UsageError

GROUP_SIZES = (128, 64, 32)


@dataclass(frozen=True)
class Scheme:
    """One way to store a model's linear weights.

    Attributes:
        name: as on the command line.
        title: what it is.
        tool: `llmcompressor` (in an environment of its own), or `bitsandbytes`.
        weight_bits: bits of one stored weight, scales aside.
        methods: how the stored values are chosen, the default first.
        grouped: a scale per `GROUP_SIZES` input values instead of one per output channel.
        fit: name of the same scheme in `models.fit` (memory), None where that table has none.
        trial: made to be refused: for trying out the gate, never for use.
    """

    name: str
    title: str
    tool: str
    weight_bits: int
    methods: tuple[str, ...]
    grouped: bool = False
    fit: str | None = None
    trial: bool = False

    def needs_calibration(self, method: str) -> bool:
        """Whether `method` looks at activations: GPTQ, AWQ and SmoothQuant do, rounding does not."""
        return method in ("gptq", "awq", "smoothquant")


SCHEMES: dict[str, Scheme] = {
    s.name: s
    for s in (
        Scheme("w4a16", "INT4 weights in groups, 16-bit activations", "llmcompressor", 4, ("gptq", "awq", "rtn"), True,
               "w4a16"),
        Scheme("nf4", "bitsandbytes NF4 weights in blocks of 64, 16-bit activations", "bitsandbytes", 4, ("rtn",)),
        Scheme("w8a8", "INT8 weights per channel, INT8 activations per token", "llmcompressor", 8,
               ("gptq", "smoothquant", "rtn"), False, "w8a8"),
        Scheme("fp8", "FP8 weights per channel, FP8 activations per token", "llmcompressor", 8, ("rtn",), False, "fp8"),
        Scheme("bnb-int8", "bitsandbytes LLM.int8: INT8 weights, outliers in 16 bits", "bitsandbytes", 8, ("rtn",)),
        Scheme("w2-trial", "weights rounded to 2 bits, one scale per matrix, stored in 16: broken on purpose",
               "llmcompressor", 16, ("rtn",), False, None, trial=True),
    )
}  # fmt: skip


def find_scheme(name: str) -> Scheme:
    """Return the scheme of that name.  Raises UsageError with the closest ones."""
    plain = name.strip().casefold()
    if plain in SCHEMES:
        return SCHEMES[plain]
    close = difflib.get_close_matches(plain, SCHEMES, n=2, cutoff=0.4)
    raise UsageError("unknown scheme", field="scheme", value=name, fix=f"one of {', '.join(close or SCHEMES)}")


def find_method(scheme: Scheme, name: str | None) -> str:
    """Return the method to use, the scheme's default when None.  Raises UsageError for one it does not have."""
    method = (name or scheme.methods[0]).casefold()
    if method not in scheme.methods:
        fix = f"{scheme.name} has {', '.join(scheme.methods)}"
        raise UsageError("not a method of this scheme", field="method", value=name, fix=fix)
    return method


def choose_group(scheme: Scheme, widths: dict[str, int], wanted: int | None) -> int | None:
    """Return the group size for linear layers of these input widths (name -> columns); None for ungrouped schemes.

    The largest of 128, 64 and 32 that divides every width, unless `wanted` says which.

    Raises:
        UsageError: `wanted` is none of them, or divides not every width; or none does.
    """
    if not scheme.grouped:
        if wanted is not None:
            raise UsageError("has no groups", field="group", value=wanted, fix=f"leave --group out for {scheme.name}")
        return None
    if wanted is not None and wanted not in GROUP_SIZES:
        raise UsageError("no such group size", field="group", value=wanted, fix=f"one of {_list(GROUP_SIZES)}")
    usable = [g for g in GROUP_SIZES if all(width % g == 0 for width in widths.values())]
    if wanted is None and usable:
        return usable[0]
    if wanted in usable:
        return wanted
    size = wanted or GROUP_SIZES[-1]
    name = next(n for n, width in widths.items() if width % size)
    fix = f"one of {_list(usable)}" if usable else "use w8a8 or fp8, which have no groups"
    raise UsageError(f"does not divide the {widths[name]} inputs of {name}", field="group", value=size, fix=fix)


def _list(values: Sequence[int]) -> str:
    return ", ".join(str(v) for v in values)
