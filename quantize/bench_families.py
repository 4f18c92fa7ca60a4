"""Every catalog family through `fovea quantize run`: its architecture, tiny and with random weights.

Random weights show that the scope, the pairs of layers, the processor, the file and vLLM fit one another; they say
nothing about accuracy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from models.evaluation.context import versions
from models.support.errors import FoveaError
from models.support.files import write_json
from quantize.bench_make import known_rows, make, say
from quantize.engine import EngineSettings

# AWQ needs pairs of layers, GPTQ Hessians of every layer; INT4 and INT8 have different kernels
TRIED = (("w4a16", "awq"), ("w8a8", "gptq"))
ITEMS = 32
CONTEXT = 4096


def variants(results: Path | None = None) -> list[str]:
    """Return a variant of each architecture that vLLM ran on a picture here and that the catalog says how to quantize.

    `results`: of `fovea models prove`, by default those that are kept in models/proof.
    """
    from models.catalog import load_catalog
    from models.proof.run import RESULTS

    found: dict[str, str] = {}
    for row in json.loads((results or RESULTS).read_text("utf-8"))["rows"]:
        family, _ = load_catalog().find(row["variant"])
        if family.quantize is not None and row["result"] == "ran" and row["asked"] == "an image":
            found.setdefault(family.engine.architecture, row["variant"])
    return list(found.values())


def engine_of(args: dict[str, Any]) -> EngineSettings:
    """Return the engine's settings for the arguments of a recipe of models/proof; nothing is compiled."""
    words = ["--enforce-eager", "--max-num-seqs", "2"]
    for name, value in args.items():
        if name != "max_model_len":
            words += [f"--{name.replace('_', '-')}", value if isinstance(value, str) else json.dumps(value)]
    return EngineSettings(max_model_len=args.get("max_model_len", CONTEXT), arguments=tuple(words))


def families(out: Path) -> list[dict[str, Any]]:
    """Return a row per family and scheme: what was quantized and answered, or why not; earlier rows are kept."""
    import models.proof.families  # noqa: F401  fills RECIPES
    from models.proof.tiny import RECIPES

    kept = out / "families.json"
    rows = known_rows(kept)
    for variant in variants():
        for scheme, method in TRIED:
            name = f"{scheme}-{method}"
            if any((r["variant"], r["scheme"]) == (variant, name) for r in rows):
                continue
            one = RECIPES[variant]
            parent = out / "families" / variant / "bf16"
            if not (parent / "config.json").exists():
                one.build(one, parent)
            rows.append({"variant": variant, "scheme": name, **_try(one.args, parent, scheme, method)})
            write_json(kept, {"versions": versions(), "rows": rows})
    return rows


def _try(args: Any, parent: Path, scheme: str, method: str) -> dict[str, Any]:
    settings = engine_of(dict(args))
    try:
        made = make(
            parent.with_name(f"{scheme}-{method}"),
            str(parent),
            scheme,
            method,
            engine=settings,
            samples=ITEMS,
            max_tokens=settings.max_model_len,
        )
    except FoveaError as error:
        say(str(error))
        return {"result": "failed", "reason": str(error)[:400]}
    return {
        "result": "ran",
        "architecture": made["architecture"],
        "group": made["group"],
        "quantized": sum(m["quantized"] for m in made["modules"]),
        "kept": sum(not m["quantized"] for m in made["modules"]),
        "smoothed": len(made["smoothed"]),
        "kernels": sorted(set(made["accepted"]["kernels"].values())),
        "prompt_tokens": made["accepted"]["prompt_tokens"],
        "seconds": made["seconds"]["total"],
    }


def print_families(rows: list[dict[str, Any]]) -> None:
    """Print the table as Markdown."""
    head = "made small from | scheme | linear modules quantized, kept | norms rescaled | prompt tokens | kernel"
    print(f"\n| {head} |\n{'|---' * 6}|")
    for r in rows:
        if r["result"] != "ran":
            print(f"| {r['variant']} | {r['scheme']} | {r['reason']} | | | |")
            continue
        group = f", groups of {r['group']}" if r["group"] else ""
        cells = [r["variant"], f"{r['scheme']}{group}", f"{r['quantized']}, {r['kept']}", r["smoothed"]]
        print(f"| {' | '.join(map(str, cells))} | {r['prompt_tokens']} | {', '.join(r['kernels'])} |")
