"""`fovea models fit`: arguments and printing."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from models.support.errors import UsageError
from models.support.terminal import print_json, print_table

if TYPE_CHECKING:
    from models.catalog.schema import Family, Variant
    from models.fit import Fit, Gpu, Load


def image_size(text: str) -> tuple[int, int]:
    """argparse type: `1024x768` pixels."""
    match = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text)
    if not match or not int(match[1]) or not int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT in pixels, for example 1024x768")
    return int(match[1]), int(match[2])


def add_fit(parser: argparse.ArgumentParser) -> None:
    from models.fit_defaults import OVERHEAD_GIB, UTILIZATION

    parser.add_argument("name", help="a model, a hub id, or a family (all its sizes in one table)")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--gpu", help="L4, A10G, T4, L40S, A100-40, A100-80, H100, H200, B200, RTX-4090, RTX-5090")
    where.add_argument("--memory", type=float, metavar="GIB", help="memory of one GPU instead")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs that share the model, tensor parallel (1)")
    parser.add_argument("--concurrency", type=int, default=1, help="requests in flight (1)")
    parser.add_argument("--image", type=image_size, metavar="WxH", help="size of each image in pixels (none)")
    parser.add_argument("--images", type=int, default=1, help="images in one request, with --image (1)")
    parser.add_argument(
        "--context", type=int, metavar="TOKENS", help="tokens of one request, all told (its images and 1,024)"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--scheme", default="bf16", help="bf16 (default), fp16, fp32, w8a8, fp8 or w4a16")
    how.add_argument("--dtype", dest="scheme", help="the same: bfloat16, float16, float32")
    parser.add_argument("--kv-dtype", default="auto", help="auto (as the weights' 16 bits, default) or fp8")
    parser.add_argument("--batched-tokens", type=int, help="max_num_batched_tokens (vLLM's default for the GPU)")
    parser.add_argument("--max-num-seqs", type=int, help="max_num_seqs (vLLM's default for the GPU)")
    parser.add_argument("--utilization", type=float, default=UTILIZATION, help=f"share of memory ({UTILIZATION})")
    parser.add_argument("--overhead", type=float, default=OVERHEAD_GIB, metavar="GIB", help=f"({OVERHEAD_GIB})")
    parser.set_defaults(run=run_fit)


def run_fit(args: argparse.Namespace) -> int:
    from models.catalog import load_catalog
    from models.fit import Load, find_gpu, fit

    gpu = find_gpu(args.gpu) if args.gpu else None
    memory = gpu.memory_gib if gpu else args.memory
    load = Load(
        concurrency=args.concurrency,
        image=args.image,
        images=args.images,
        context=args.context,
        scheme=args.scheme,
        kv_dtype=args.kv_dtype,
        batched_tokens=args.batched_tokens,
        sequences=args.max_num_seqs,
        gpus=args.gpus,
        utilization=args.utilization,
        overhead_gib=args.overhead,
    )
    family, variant = load_catalog().find(args.name)
    if variant is None:
        return _fit_family(family, memory, load, gpu, args.json)
    result = fit(variant, memory, load, gpu=gpu)
    return _print_fit(variant, result, memory, load, gpu, args.json)


def _print_fit(variant: Variant, result: Fit, memory: float, load: Load, gpu: Gpu | None, as_json: bool) -> int:
    from models.fit import advice, gib

    would = [] if result.fits else advice(variant, memory, load, gpu=gpu)
    if as_json:
        print_json({**result.as_dict(), "would_fit": would})
        return 0 if result.fits else 1
    where = f"{load.gpus} x {gpu.name if gpu else f'{memory:g} GiB'}"
    print(f"{variant.name}, {result.scheme}, on {where}\n" + "\n".join(result.lines))
    print(f"{'sum':<12} {gib(result.needed):>11}")
    if result.fits:
        print(f"fits; {result.max_concurrency:,} such requests fit at once")
    elif result.max_concurrency:
        print(f"does not fit; only {result.max_concurrency:,} such requests fit at once")
    else:
        print("does not fit, not even with one request")
    if not result.fits:
        print(f"would fit: {', or '.join(would) if would else 'with none of the schemes and GPUs known here'}")
    for note in result.notes:
        print(f"note: {note}")
    return 0 if result.fits else 1


def _fit_family(family: Family, memory: float, load: Load, gpu: Gpu | None, as_json: bool) -> int:
    """One row a size; exit code 0 when at least one fits."""
    from models.fit import fit

    rows: list[dict[str, Any]] = []
    for variant in family.variants:
        try:
            rows.append(fit(variant, memory, load, gpu=gpu).as_dict())
        except UsageError as error:
            rows.append({"model": variant.name, "error": str(error)})
    if as_json:
        print_json({"family": family.family, "rows": rows})
    else:

        def size(row: dict[str, Any], key: str) -> str:
            return f"{row[key] / 2**30:.2f}"

        keys = ("budget", "weights", "activations", "overhead", "kv", "needed")
        table: list[list[object]] = [
            [row["model"], *(size(row, k) for k in keys), "yes" if row["fits"] else "no", row["max_concurrency"]]
            if "error" not in row
            else [row["model"], *[""] * len(keys), row["error"], ""]
            for row in rows
        ]
        print("GiB of one GPU; at once: such requests that fit together")
        print_table(["model", *keys, "fits", "at once"], table)
    return 0 if any(row.get("fits") for row in rows) else 1
