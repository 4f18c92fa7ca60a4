"""What vLLM's CPU kernels for linear layers cost by themselves, one thread: why a scheme is or is not worth its speed.

One product of x (M, K) with a weight (N, K) at a time, through the operators that vLLM calls; no engine runs.  `VNNI`
are the kernels of serving/cpu_kernels.py, on a CPU that they are for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

SHAPES = ((576, 3072), (1536, 576), (2048, 2048))  # (K, N): gate and up, down of the timed model, and a larger one
ROWS = (1, 8)
GROUPS = (32, 64, 128)
REPEATS, CALLS = 25, 12
Kernel = Callable[[], Any]


def best_us(call: Kernel) -> float:
    """Return the time of one call in microseconds: the fastest of `REPEATS` means over `CALLS` calls."""
    for _ in range(CALLS):
        call()
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append((time.perf_counter() - started) / CALLS)
    return 1e6 * min(found)


def _onednn(x: Any, n: int, k: int) -> dict[str, Kernel]:
    import torch
    from vllm import _custom_ops as ops

    from serving.cpu_kernels import fits

    half = ops.create_onednn_mm(torch.randn(n, k, dtype=x.dtype).t(), 32)
    weight = torch.randint(-127, 128, (n, k), dtype=torch.int8)
    whole = ops.create_onednn_scaled_mm(weight.t(), torch.rand(n, 1), x.dtype, True, False, 32)

    def int8() -> None:
        rounded, scale, _ = ops.onednn_scaled_int8_quant(x, None, None, True)
        out = torch.empty(x.shape[0], n, dtype=x.dtype)
        ops.onednn_scaled_mm(whole, rounded, out, scale, None, None, None)

    found: dict[str, Kernel] = {"bf16 (oneDNN)": lambda: ops.onednn_mm(half, x, None), "W8A8 (oneDNN)": int8}
    if fits():
        product, scales = torch.ops._C.int8_scaled_mm_with_quant, torch.rand(n)
        packed = torch.ops._C.convert_weight_packed(weight)
        found["W8A8 (VNNI)"] = lambda: product(x, packed, scales, None, x.dtype, True)
    return found


def _int4(x: Any, n: int, k: int) -> dict[str, Kernel]:
    import torch
    from vllm import _custom_ops as ops

    from serving.cpu_kernels import fits

    isa = "amx" if torch.cpu._is_amx_tile_supported() else "vec"
    found: dict[str, Kernel] = {}
    for group in (g for g in GROUPS if k % g == 0):
        packed = torch.randint(-(2**31), 2**31 - 1, (n // 16, k * 2), dtype=torch.int64).to(torch.int32)
        scales = torch.rand(k // group, n, dtype=x.dtype)

        def call(packed: Any = packed, scales: Any = scales) -> Any:
            return ops.cpu_gemm_wna16(x, packed, scales, None, None, None, 8, isa)

        found[f"W4A16, groups of {group} ({isa})"] = call
    for group in (g for g in GROUPS if k % g == 0 and fits()):
        words, zeros = torch.randint(-(2**31), 2**31 - 1, (k, n // 8)), torch.full((k // group, n // 8), -2004318072)
        scales = torch.rand(k // group, n, dtype=x.dtype)
        blocks = ops.convert_weight_packed_scale_zp(
            words.to(torch.int32), zeros.to(torch.int32), scales, ops.CPUQuantAlgo.AWQ
        )

        def unpacked(blocks: Any = blocks) -> Any:
            weight, zeros, scales = blocks
            return ops.int4_scaled_mm_cpu(x, weight, zeros, scales, None)

        found[f"W4A16, groups of {group} (VNNI)"] = unpacked
    return found


def kernels() -> list[dict[str, Any]]:
    """Return one row per shape, number of rows and kernel: microseconds, and the speed over oneDNN's bf16."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch
    import vllm._C  # noqa: F401  (registers the operators)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for k, n in SHAPES:
        for m in ROWS:
            x = torch.randn(m, k, dtype=torch.bfloat16)
            calls = {**_onednn(x, n, k), **_int4(x, n, k)}
            times = {name: best_us(call) for name, call in calls.items()}
            base = times["bf16 (oneDNN)"]
            rows += [
                {"rows": m, "inputs": k, "outputs": n, "kernel": name, "us": us, "speed": base / us}
                for name, us in times.items()
            ]
    return rows


def print_kernels(rows: list[dict[str, Any]]) -> None:
    """Print a line per kernel and a column per product, as Markdown."""
    products = list(dict.fromkeys((r["rows"], r["inputs"], r["outputs"]) for r in rows))
    print("\n| kernel | " + " | ".join(f"{m} x {k} x {n}" for m, k, n in products) + " |")
    print("|---" * (len(products) + 1) + "|")
    for name in dict.fromkeys(r["kernel"] for r in rows):
        cells = {(r["rows"], r["inputs"], r["outputs"]): r for r in rows if r["kernel"] == name}
        shown = [f"{cells[p]['us']:.0f} us, {cells[p]['speed']:.2f}" if p in cells else "" for p in products]
        print(f"| {name} | {' | '.join(shown)} |")
