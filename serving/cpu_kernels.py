"""INT8 and INT4 products on an x86 CPU that has AVX-512 VNNI and bfloat16, and no AMX: AMD since Zen 4, for one.

vLLM has kernels for both that need no AMX (its port of SGLang's), and takes them only where there is AMX: elsewhere
INT8 goes to oneDNN, and INT4 is unpacked to 16 bits in a plain vector loop at a fifth of bfloat16's speed.  The
classes here give such a CPU the kernels that an AMX machine gets.  `docs/quantize.md` says what that changes,
`make bench-quantize ARGS="--part kernels"` times both.

`VLLM_DISABLED_KERNELS=VnniInt8LinearKernel,VnniInt4LinearKernel` brings vLLM's own choice back, and
`VLLM_CPU_INT4_W4A8=0` keeps INT4's activations in 16 bits, as with AMX.
"""

from __future__ import annotations

import torch
from vllm import envs
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearLayerConfig
from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel
from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import Int8ScaledMMLinearLayerConfig
from vllm.platforms import PlatformEnum

TILE = 32
"""Inputs and outputs of a layer are multiples of this: a block of the packed weight."""
BLOCK = 128
"""Inputs that share a scale are at most so many to the INT4 kernel; more are several blocks with the same scale."""
ROWS, IN_PARTS = 4, 16
"""The INT4 kernel unpacks a weight in registers for `ROWS` rows at most, and writes it out for more: up to `IN_PARTS`
rows several calls with `ROWS` are faster."""
LARGE = 1 << 20
"""Weights of a layer above which that is worth an operator of its own."""

# an operator, because a compiled graph cannot choose by the number of rows
_LIBRARY = torch.library.Library("fovea", "DEF")
_LIBRARY.define("int4_linear(Tensor x, Tensor weight, Tensor zeros, Tensor scales, Tensor? bias) -> Tensor")


def _int4_linear(
    x: torch.Tensor, weight: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    product = torch.ops._C.int4_scaled_mm_cpu
    if ROWS < x.size(0) <= IN_PARTS:
        return torch.cat([product(rows, weight, zeros, scales, bias) for rows in x.split(ROWS)])
    return product(x, weight, zeros, scales, bias)


def _int4_shape(
    x: torch.Tensor, weight: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    return x.new_empty((x.size(0), scales.size(0) * scales.size(-1)))


_LIBRARY.impl("int4_linear", _int4_linear, "CPU")
torch.library.register_fake("fovea::int4_linear", _int4_shape, lib=_LIBRARY)


def fits() -> bool:
    """Return whether this CPU has what the kernels need, and is not one that vLLM gives them to by itself."""
    cpu = torch.cpu
    has = cpu._is_avx512_bf16_supported() and cpu._is_vnni_supported()
    return bool(has and not cpu._is_amx_tile_supported() and hasattr(torch.ops._C, "int8_scaled_mm_with_quant"))


class VnniInt8LinearKernel(CPUInt8ScaledMMLinearKernel):
    """INT8 weights, a scale per output; activations rounded per token to INT8."""

    @classmethod
    def is_supported(cls, compute_capability: int | None = None) -> tuple[bool, str | None]:
        """Return whether the machine runs it, and why not."""
        return (True, None) if fits() else (False, "needs AVX-512 VNNI and bfloat16, and a CPU without AMX")

    @classmethod
    def can_implement(cls, c: Int8ScaledMMLinearLayerConfig) -> tuple[bool, str | None]:
        """Return whether a layer's scheme is one that it computes, and why not."""
        if c.is_static_input_scheme or not c.input_symmetric:
            return False, "activations must be rounded symmetrically and per token"
        return True, None

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Pack the weight; oneDNN keeps a layer whose sizes do not fit, and every layer of a model not in bfloat16.

        vLLM loads a model with its dtype as torch's default.
        """
        outputs, inputs = getattr(layer, self.layer_param_names[0]).size()
        if outputs % TILE or inputs % TILE or torch.get_default_dtype() != torch.bfloat16:
            super().process_weights_after_loading(layer)
            return
        self.linear_method = self._apply_weights_sgl
        self.process_weights_for_sgl(layer)

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return x (..., inputs) times the weight: (..., outputs).  The packed kernel takes rows; towers give more."""
        found = self.linear_method(layer, x.reshape(-1, x.size(-1)), bias)
        return found.reshape((*x.shape[:-1], found.size(-1)))


class VnniInt4LinearKernel(CPUWNA16LinearKernel):
    """INT4 weights in groups, unpacked to INT8 beside the product; activations rounded per token to 8 bits."""

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        """Return whether the machine and the layer fit, and why not."""
        if not fits():
            return False, "needs AVX-512 VNNI and bfloat16, and a CPU without AMX"
        if not envs.VLLM_CPU_INT4_W4A8:
            return False, "VLLM_CPU_INT4_W4A8=0: activations stay in 16 bits"
        if c.act_type != torch.bfloat16 or c.has_g_idx:
            return False, "activations must be bfloat16, and groups in the order of the inputs"
        inputs = c.partition_weight_shape[0]
        group = c.group_size if c.group_size > 0 else inputs
        if group % TILE or inputs % group or (group > BLOCK and group % BLOCK):
            return False, f"groups of {group} of {inputs} inputs: must be multiples of {TILE}, above {BLOCK} of {BLOCK}"
        return super().can_implement(c)

    def _process_gptq_weights_w4a16(self, layer: torch.nn.Module) -> None:
        if self.w_zp_name is None:  # the packing needs a name to keep its zero points under
            super()._process_gptq_weights_w4a16(layer)
            return
        layer.use_w4a8 = True  # type: ignore[assignment]  # as vLLM keeps it
        self._process_gptq_weights_w4a8(layer)

    def apply_weights(self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Return x (..., inputs) times the weight: (..., outputs)."""
        inputs, outputs = self.config.partition_weight_shape
        if not layer.use_w4a8 or inputs * outputs <= LARGE:
            return super().apply_weights(layer, x, bias)
        weight, scales, zeros, _ = self._get_weight_params(layer)
        found = torch.ops.fovea.int4_linear(x.reshape(-1, inputs), weight, zeros, scales, bias)
        return found.reshape((*x.shape[:-1], outputs))


def install() -> None:
    """Put the kernels before vLLM's own for CPUs; once, however often it is called."""
    int8 = linear._POSSIBLE_INT8_KERNELS[PlatformEnum.CPU]
    if VnniInt8LinearKernel not in int8:
        int8.insert(0, VnniInt8LinearKernel)
    int4 = linear._POSSIBLE_KERNELS[PlatformEnum.CPU]
    if VnniInt4LinearKernel not in int4:
        int4.insert(0, VnniInt4LinearKernel)
