"""A registry in a folder and small checkpoints to put into it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from models.registry import Policy, Registry, Version
from models.registry.schema import Requirement
from models.registry.store import open_store

QWEN = "Qwen2_5_VLForConditionalGeneration"


def checkpoint(folder: Path, content: bytes = b"\x00" * 8, architecture: str = QWEN) -> Path:
    """Write a checkpoint of one tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    tensor = {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": tensor}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + content)
    return folder


def report(version: Version, right: int, n: int = 1000, golden: str = "set", **more: Any) -> dict[str, Any]:
    """Return an evaluation report of `version` with that many right answers."""
    from models.stats import wilson

    return {
        "kind": "evaluation",
        "golden": {"name": golden, "digest": "d" * 64, "items": n, "asked": n},
        "accuracy": wilson(right, n).as_dict(),
        "by_tag": {},
        "latency_ms": {"p95": {"value": 40.0, "low": 39.0, "high": 41.0, "n": n}},
        "calibration": {"ece": {"value": 0.02, "low": 0.01, "high": 0.03, "n": n}},
        "run": {"stopped": None},
        "target": {"name": version.name, "version": version.number, "digest": version.digest},
        **more,
    }


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(open_store(tmp_path / "store"), tmp_path / "cache")


@pytest.fixture
def one(registry: Registry, tmp_path: Path) -> Version:
    """The first version of `m`, with a policy: 0.9 on `set`, no drop above 0.03."""
    registry.set_policy("m", Policy(require=[Requirement(golden="set", min_accuracy=0.9, max_drop=0.03)]))
    return registry.register(checkpoint(tmp_path / "a"), "m", by="ada")


def to_live(registry: Registry, version: Version, right: int = 960, **more: Any) -> None:
    """Attach a passing report and promote to live."""
    registry.attach(version.ref, report(version, right, **more), by="ada")
    registry.promote(version.ref, "canary", by="ada")
    registry.promote(version.ref, "live", by="ada")
