"""INT8 and INT4 on a CPU without AMX: who gets the kernels, and that a product is the product."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from vllm import envs
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear.mixed_precision.cpu import CPUWNA16LinearKernel
from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearLayerConfig
from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel
from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import Int8ScaledMMLinearLayerConfig
from vllm.platforms import PlatformEnum, current_platform
from vllm.scalar_type import scalar_types

from serving import cpu_kernels
from serving.cpu_kernels import VnniInt4LinearKernel, VnniInt8LinearKernel

current_platform.import_kernels()
here = pytest.mark.skipif(
    not cpu_kernels.fits(), reason="this CPU has no AVX-512 VNNI and bfloat16, or has AMX: vLLM chooses by itself"
)


def int8_config(**changes: Any) -> Int8ScaledMMLinearLayerConfig:
    settings = {"is_static_input_scheme": False, "is_channelwise": True, "input_symmetric": True}
    return Int8ScaledMMLinearLayerConfig(**settings | changes)


def int4_config(inputs: int, outputs: int, group: int, **changes: Any) -> MPLinearLayerConfig:
    settings: dict[str, Any] = {
        "full_weight_shape": (inputs, outputs),
        "partition_weight_shape": (inputs, outputs),
        "weight_type": scalar_types.uint4b8,
        "act_type": torch.bfloat16,
        "group_size": group,
        "zero_points": False,
        "has_g_idx": False,
    }
    return MPLinearLayerConfig(**settings | changes)


@pytest.fixture
def vllm_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with vLLM's own lists, whatever this process installed before."""
    for table in (linear._POSSIBLE_INT8_KERNELS, linear._POSSIBLE_KERNELS):
        own = [k for k in table[PlatformEnum.CPU] if not k.__module__.startswith("serving.")]
        monkeypatch.setitem(table, PlatformEnum.CPU, own)


def fit(monkeypatch: pytest.MonkeyPatch, bf16: bool = True, vnni: bool = True, amx: bool = False) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)


@pytest.mark.usefixtures("vllm_s_own")
def test_they_come_before_vllm_s_own_once(monkeypatch: pytest.MonkeyPatch) -> None:
    int8, int4 = (t[PlatformEnum.CPU] for t in (linear._POSSIBLE_INT8_KERNELS, linear._POSSIBLE_KERNELS))
    before = [list(int8), list(int4)]
    cpu_kernels.install()
    cpu_kernels.install()
    assert [int8[1:], int4[1:]] == before
    fit(monkeypatch)
    assert linear.choose_mp_linear_kernel(int4_config(64, 64, 32)) is VnniInt4LinearKernel
    assert isinstance(linear.init_int8_linear_kernel(True, False, True, "t"), VnniInt8LinearKernel)
    monkeypatch.setenv("VLLM_DISABLED_KERNELS", "VnniInt8LinearKernel,VnniInt4LinearKernel")
    assert linear.choose_mp_linear_kernel(int4_config(64, 64, 32)) is CPUWNA16LinearKernel
    assert type(linear.init_int8_linear_kernel(True, False, True, "t")) is CPUInt8ScaledMMLinearKernel


@pytest.mark.usefixtures("vllm_s_own")
@pytest.mark.parametrize("lacks", [{"bf16": False}, {"vnni": False}, {"amx": True}])
def test_another_cpu_keeps_vllm_s_own(monkeypatch: pytest.MonkeyPatch, lacks: dict[str, bool]) -> None:
    cpu_kernels.install()
    fit(monkeypatch, **lacks)
    assert linear.choose_mp_linear_kernel(int4_config(64, 64, 32)) is CPUWNA16LinearKernel
    assert type(linear.init_int8_linear_kernel(True, False, True, "t")) is CPUInt8ScaledMMLinearKernel


@pytest.mark.parametrize(
    ("inputs", "group", "changes", "why"),
    [
        (64, 16, {}, "groups of 16 of 64 inputs"),
        (96, 64, {}, "groups of 64 of 96 inputs"),
        (192, -1, {}, "groups of 192 of 192 inputs"),
        (64, 32, {"act_type": torch.float16}, "must be bfloat16"),
        (64, 32, {"has_g_idx": True}, "in the order of the inputs"),
        (64, 32, {"weight_type": scalar_types.uint8b128}, "not supported"),
    ],
)
def test_an_int4_layer_that_does_not_fit_is_left_to_vllm(
    monkeypatch: pytest.MonkeyPatch, inputs: int, group: int, changes: dict[str, Any], why: str
) -> None:
    fit(monkeypatch)
    able, told = VnniInt4LinearKernel.can_implement(int4_config(inputs, 64, group, **changes))
    assert not able and why in str(told)
    assert VnniInt4LinearKernel.can_implement(int4_config(64, 64, 32)) == (True, None)


def test_int4_keeps_16_bit_activations_where_vllm_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fit(monkeypatch)
    monkeypatch.setattr(envs, "VLLM_CPU_INT4_W4A8", False, raising=False)
    able, told = VnniInt4LinearKernel.can_implement(int4_config(64, 64, 32))
    assert not able and "VLLM_CPU_INT4_W4A8=0" in str(told)


@pytest.mark.parametrize("changes", [{"is_static_input_scheme": True}, {"input_symmetric": False}])
def test_an_int8_layer_that_does_not_fit_is_left_to_vllm(changes: dict[str, bool]) -> None:
    able, told = VnniInt8LinearKernel.can_implement(int8_config(**changes))
    assert not able and "per token" in str(told)


@pytest.fixture
def in_bfloat16() -> Iterator[None]:
    """torch's default while vLLM loads a model in bfloat16."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(before)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


def layer(bias: torch.Tensor | None, **parameters: torch.Tensor) -> Any:
    """Return a module with parameters and attributes as compressed-tensors gives them to a kernel."""
    made: Any = torch.nn.Module()
    for name, values in parameters.items():
        setattr(made, name, torch.nn.Parameter(values, requires_grad=False))
    made.bias = None if bias is None else torch.nn.Parameter(bias.clone(), requires_grad=False)
    if "weight" in parameters:
        made.logical_widths = [len(parameters["weight"])]
        made.input_scale = made.input_zero_point = made.azp_adj = None
    else:
        made.weight_packed.input_dim = made.weight_packed.packed_dim = 1
        made.weight_scale.output_dim = 0
    return made


@here
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 40])
@pytest.mark.parametrize("with_bias", [False, True])
def test_an_int8_product(in_bfloat16: None, rows: int, with_bias: bool) -> None:
    torch.manual_seed(rows)
    inputs, outputs = 192, 96
    kernel, made, weight = int8_layer(inputs, outputs, torch.randn(outputs).bfloat16() if with_bias else None)
    x = torch.randn(rows, inputs).bfloat16()
    wanted = x.float() @ weight.t() + (made.bias.float() if with_bias else 0)
    found = kernel.apply_weights(made, x, made.bias)
    assert found.shape == (rows, outputs) and distance(found, wanted) < 0.015
    # as a vision tower gives it: pictures, patches, inputs
    assert torch.equal(kernel.apply_weights(made, x[None].expand(2, -1, -1), made.bias)[1], found)
    assert kernel.linear_method == kernel._apply_weights_sgl


def int8_layer(
    inputs: int, outputs: int, bias: torch.Tensor | None = None
) -> tuple[VnniInt8LinearKernel, Any, torch.Tensor]:
    """Return a kernel, its layer, and the layer's weight (outputs, inputs) multiplied out."""
    numbers = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    scale = torch.rand(outputs, 1, dtype=torch.float32) * 0.01 + 0.001
    made = layer(bias, weight=numbers, weight_scale=scale)
    names = ["weight", "weight_scale", "input_scale", "input_zero_point", "azp_adj"]
    kernel = VnniInt8LinearKernel(int8_config(), names)
    kernel.process_weights_after_loading(made)
    return kernel, made, numbers.float() * scale


@here
@pytest.mark.usefixtures("in_bfloat16")
def test_an_int8_layer_of_odd_sizes_goes_to_onednn() -> None:
    kernel, made, weight = int8_layer(40, 48)
    x = torch.randn(3, 40)
    assert distance(kernel.apply_weights(made, x), x.float() @ weight.t()) < 0.015
    assert kernel.linear_method == kernel._apply_weights_onednn


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_model_that_is_not_in_bfloat16_goes_to_onednn(in_bfloat16: None, dtype: torch.dtype) -> None:
    """With float16 the packed kernel ends the process."""
    torch.set_default_dtype(dtype)
    kernel, made, weight = int8_layer(192, 96)
    assert kernel.linear_method == kernel._apply_weights_onednn
    if dtype == torch.float32:  # oneDNN has no float16 here, as in vLLM
        x = torch.randn(3, 192)
        assert distance(kernel.apply_weights(made, x), x @ weight.t()) < 0.015


def int4_layer(
    inputs: int, outputs: int, group: int, with_bias: bool = False
) -> tuple[VnniInt4LinearKernel, Any, torch.Tensor, torch.Tensor]:
    """Return a kernel, its layer, and the layer's weight (outputs, inputs) and bias multiplied out."""
    groups = inputs // (group if group > 0 else inputs)
    numbers = torch.randint(0, 16, (outputs, inputs))  # 8 stands for zero
    scale = (torch.rand(outputs, groups) * 0.01 + 0.001).bfloat16()
    bias = torch.randn(outputs).bfloat16() if with_bias else None
    words = (numbers.view(outputs, inputs // 8, 8) << torch.arange(8) * 4).sum(-1)
    signed = (words - ((words >> 31) << 32)).to(torch.int32)
    made = layer(bias, weight_packed=signed, weight_scale=scale.clone())
    names = ("weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx")
    kernel = VnniInt4LinearKernel(int4_config(inputs, outputs, group), *names)
    kernel.process_weights_after_loading(made)
    whole = (numbers - 8).float() * scale.float().repeat_interleave(inputs // groups, dim=1)
    return kernel, made, whole, torch.zeros(outputs) if bias is None else bias.float()


@here
@pytest.mark.parametrize(("inputs", "group"), [(192, 32), (192, 64), (256, 128), (512, 256), (256, -1)])
@pytest.mark.parametrize(("rows", "with_bias"), [(1, False), (4, True), (5, False), (40, True)])
def test_an_int4_product(inputs: int, group: int, rows: int, with_bias: bool) -> None:
    torch.manual_seed(inputs + rows)
    kernel, made, weight, bias = int4_layer(inputs, 96, group, with_bias)
    x = torch.randn(rows, inputs).bfloat16()
    found = kernel.apply_weights(made, x[None], made.bias)
    assert found.shape == (1, rows, 96) and distance(found[0], x.float() @ weight.t() + bias) < 0.015


@here
def test_a_large_int4_layer_is_multiplied_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    kernel, made, weight, bias = int4_layer(1024, 1056, 128, with_bias=True)
    assert weight.numel() > cpu_kernels.LARGE
    for rows in (1, 4, 5, 8, 15, 16, 17, 40):
        x = torch.randn(rows, 1024).bfloat16()
        assert distance(kernel.apply_weights(made, x, made.bias), x.float() @ weight.t() + bias) < 0.015
    values = (x, made.weight_packed, made.weight_zero_point, made.weight_scale, made.bias)
    torch.library.opcheck(torch.ops.fovea.int4_linear.default, values)
    asked: list[int] = []

    def product(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return x

    monkeypatch.setattr(torch.ops._C, "int4_scaled_mm_cpu", product)
    for rows, parts in ((4, [4]), (5, [4, 1]), (16, [4, 4, 4, 4]), (17, [17])):
        asked.clear()
        assert cpu_kernels._int4_linear(torch.ones(rows, 2), *values[1:]).shape == (rows, 2)
        assert asked == parts
