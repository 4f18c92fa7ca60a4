"""`fovea quantize advise`: which schemes run on a GPU, what fits, and which to choose; `schemes`: the kernel table."""

from __future__ import annotations

import argparse
import re
from typing import Any

from models.catalog import load_catalog
from models.fit import Gpu, Load, find_gpu, fit
from models.support.errors import UsageError
from quantize.hardware import Row, capability_machine, find_machine, load_table
from quantize.schemes import SCHEMES

GIB = 2**30
# Published recoveries, for the order of the choice; the gate decides on the user's own items.
EVIDENCE = {
    "bf16": "the parent itself",
    "fp8": "over 99 % recovery on five vision benchmarks (Neural Magic, March 2025)",
    "w8a8": "over 99 % recovery on five vision benchmarks (Neural Magic, March 2025)",
    "w4a16": "about 98 % recovery on five vision benchmarks (Neural Magic, March 2025); small models lose more",
}
PREFERENCE = ("fp8", "w8a8", "w4a16")  # at equal fit: least loss first; the hardware decides between the first two


def parse_image(text: str) -> tuple[int, int]:
    """Return (width, height) of `1024x768`.  Raises UsageError for anything else."""
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text.strip().casefold())
    if not found or not int(found.group(1)) or not int(found.group(2)):
        raise UsageError("must be WIDTHxHEIGHT in pixels", field="image", value=text, fix="write it like 1024x1024")
    return int(found.group(1)), int(found.group(2))


def advise(args: argparse.Namespace) -> dict[str, Any]:
    """Return what fits, by scheme, and the choice with its reasons (None when nothing fits).

    Raises:
        UsageError: unknown model or GPU, neither GPU nor memory, or a figure out of range.
    """
    variant = load_catalog().variant(args.model)
    gpu: Gpu | None = find_gpu(args.gpu) if args.gpu is not None else None
    if gpu is None and args.memory is None:
        raise UsageError("which GPU?", field="gpu", fix="give --gpu H100, or --memory GIB")
    memory = args.memory if args.memory is not None else gpu.memory_gib  # type: ignore[union-attr]
    machine = capability_machine(gpu.capability) if gpu is not None else None
    image = parse_image(args.image) if variant.image is not None else None
    rows = []
    for name in ("bf16", *(s.fit for s in SCHEMES.values() if s.fit)):
        if name is None:
            continue
        for kv in ("auto", "fp8"):
            load = Load(
                concurrency=args.concurrency,
                image=image,
                images=args.images,
                context=args.context,
                scheme=name,
                kv_dtype=kv,
            )
            rows.append(_row(name, kv, fit(variant, memory, load, gpu=gpu), machine))
    choice = choose(rows)
    return {
        "model": variant.name,
        "gpu": gpu.name if gpu else None,
        "memory_gib": memory,
        "concurrency": args.concurrency,
        "image": args.image if image else None,
        "rows": rows,
        "choice": choice,
        "reasons": reasons(rows, choice),
        "next": next_command(choice),
    }


def _row(name: str, kv: str, found: Any, machine: str | None) -> dict[str, Any]:
    kernel, verdict, note = "", "good", None
    if machine is not None and name != "bf16":
        row: Row = load_table().row(name, machine)
        kernel, verdict, note = row.kernel, row.verdict, row.note
    if kv == "fp8" and machine is not None:
        cache = load_table().row("kv-fp8", machine)
        if cache.verdict == "refused":
            verdict, note = "refused", cache.note
    return {
        "scheme": name,
        "kv_cache": "16 bits" if kv == "auto" else "fp8",
        "weights_gib": found.weights / GIB,
        "kv_gib": found.kv / GIB,
        "needed_gib": found.needed / GIB,
        "budget_gib": found.budget / GIB,
        "fits": found.fits,
        "max_concurrency": found.max_concurrency,
        "verdict": verdict,
        "kernel": kernel,
        "note": note,
    }


def choose(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the row to take: one that fits and computes well, 16-bit cache before an FP8 one, least loss first.

    Bf16 comes last: the smaller ones serve more requests on the same GPU.
    """
    able = [r for r in rows if r["fits"] and r["verdict"] != "refused"]
    rank = {name: place for place, name in enumerate((*PREFERENCE, "bf16"))}
    return min(
        able,
        key=lambda r: (r["verdict"] != "good", r["kv_cache"] != "16 bits", rank[r["scheme"]]),
        default=None,
    )


def reasons(rows: list[dict[str, Any]], choice: dict[str, Any] | None) -> list[str]:
    """Return why: what the choice brings, and why the others were not taken."""
    told = []
    if choice is None:
        told.append(
            "nothing fits: a larger GPU, more GPUs (fovea models fit --gpus), fewer requests or smaller pictures"
        )
    else:
        base = next(r for r in rows if r["scheme"] == "bf16" and r["kv_cache"] == "16 bits")
        told.append(f"{choice['scheme']}: {EVIDENCE[choice['scheme']]}; {choice['kernel'] or '16-bit products'}")
        if choice["scheme"] != "bf16":
            more = f"{choice['max_concurrency']:,} requests at a time instead of {base['max_concurrency']:,} in bf16"
            told.append(f"room for {more}")
    for row in rows:
        if row["kv_cache"] == "16 bits" and row is not choice and row["verdict"] != "good":
            told.append(f"{row['scheme']} not taken: {row['verdict']}, {row['note'] or row['kernel']}")
    return told


def next_command(choice: dict[str, Any] | None) -> str | None:
    """Return the command that makes what was chosen; None where nothing is to be made."""
    if choice is None or choice["scheme"] == "bf16":
        return None
    scheme = SCHEMES[choice["scheme"]]
    data = " --calibration YOUR_SET" if scheme.needs_calibration(scheme.methods[0]) else ""
    return f"fovea quantize run FOLDER --scheme {scheme.name}{data} --golden YOUR_TEST_SET --out FOLDER-{scheme.name}"


def print_advice(found: dict[str, Any]) -> None:
    """Print the table, the choice and the reasons."""
    from models.cli import print_table

    where = found["gpu"] or "a GPU"
    picture = f", one {found['image']} picture each" if found["image"] else ""
    print(f"{found['model']} on {where} with {found['memory_gib']:g} GiB, {found['concurrency']} requests{picture}\n")
    rows = [
        [r["scheme"], r["kv_cache"], f"{r['weights_gib']:.2f}", f"{r['kv_gib']:.2f}", f"{r['needed_gib']:.2f}",
         "yes" if r["fits"] else "no", f"{r['max_concurrency']:,}", r["verdict"], r["kernel"]]
        for r in found["rows"]
    ]  # fmt: skip
    print_table(["scheme", "KV cache", "weights GiB", "KV GiB", "needed", "fits", "most at once", "", "kernel"], rows)
    choice = found["choice"]
    print(f"\nchoice    {'none' if choice is None else choice['scheme'] + ', KV cache ' + choice['kv_cache']}")
    for line in found["reasons"]:
        print(f"          {line}")
    if found["next"]:
        print(f"next      {found['next']}")


def scheme_table(target: str | None) -> list[dict[str, Any]]:
    """Return every scheme (the KV cache too) on every machine, or on one."""
    table = load_table()
    machines = [m.name for m in table.machines] if target is None else [find_machine(target)]
    titles = {m.name: m.title for m in table.machines}
    return [
        {
            "machine": name,
            "title": titles[name],
            **row.model_dump(exclude={"machines"}),
            "source": table.sources[row.source],
        }
        for name in machines
        for row in table.rows
        if name in row.machines
    ]


def print_schemes(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    from models.cli import print_table

    head = ["machine", "scheme", "", "kernel", "seen here", "note"]
    print_table(
        head,
        [
            [r["machine"], r["scheme"], r["verdict"], r["kernel"], "yes" if r["seen"] else "", r["note"] or ""]
            for r in rows
        ],
    )
