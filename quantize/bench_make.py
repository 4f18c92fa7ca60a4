"""What all parts of the benchmark share: its voice, and checkpoints that are made once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from models.evaluation.context import versions
from quantize import artifact
from quantize.engine import Held
from quantize.run import RunSettings, quantize
from quantize.schemes import find_scheme


def say(text: str) -> None:
    """Print a line on stderr."""
    print(f"bench-quantize: {text}", file=sys.stderr, flush=True)


def known_rows(path: Path, field: str = "rows") -> list[dict[str, Any]]:
    """Return what an earlier, interrupted benchmark with the same versions measured: a field of its file."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return list(found[field]) if isinstance(found, dict) and found.get("versions") == versions() else []


def make(out: Path, model: str, scheme: str, method: str, held: Held | None = None, **more: Any) -> dict[str, Any]:
    """Return the manifest of a quantized checkpoint, made unless it is there; `held` as in `quantize`.

    `more`: other fields of `RunSettings`.  Raises UsageError and CheckFailed as `quantize`.
    """
    if artifact.is_artifact(out):
        return artifact.read_manifest(out)
    say(f"{scheme} by {method} of {model}{', tower too' if more.get('vision') else ''}")
    data = "easy-vqa-train" if find_scheme(scheme).needs_calibration(method) else None
    settings = RunSettings(model=model, out=out, scheme=scheme, method=method, calibration=data, **more)
    return quantize(settings, say, held)
