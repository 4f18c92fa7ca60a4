"""Workloads by name: `make_workload("easy-vqa")`, `make_workload("my-prompts.jsonl")`."""

from __future__ import annotations

from typing import Any

from loadtest.workloads.base import WORKLOADS, Item, Workload
from models.support.errors import UsageError

__all__ = ["WORKLOADS", "Item", "Workload", "make_workload"]


def make_workload(name: str, seed: int = 0, **options: Any) -> Workload:
    """Return the workload of that name, or the one in the JSONL file of that name.

    Raises:
        UsageError: there is none, its options are wrong, or its file is.
    """
    from loadtest.workloads import broken, golden, jsonl, synthetic  # noqa: F401  (they register themselves)

    if name.endswith((".jsonl", ".ndjson")):
        name, options = "jsonl", {"path": name, **options}
    if name not in WORKLOADS:
        fix = f"use {', '.join(sorted(WORKLOADS))} or a .jsonl file"
        raise UsageError("unknown workload", field="--workload", value=name, fix=fix)
    try:
        made = WORKLOADS[name](seed=seed, **options)
    except TypeError as error:
        raise UsageError(
            f"wrong options for {name}: {error}",
            field="--workload-option",
            fix="docs/loadtest.md lists the options of each workload",
        ) from error
    if len(made) == 0:
        raise UsageError("the workload is empty", field="--workload", value=name, fix="give it at least one item")
    return made
