"""The proof of the written file: what must have changed has, and nothing else has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.support.errors import CheckFailed
from quantize.job_files import Tensors, _prove
from quantize.job_tools import Done, two_bits
from quantize.request import JobRequest
from quantize.scope import plan_scope, read_headers
from quantize.smoothing import smooth_layers
from tests.quantize.checkpoints import EMBEDDED, change_weights, copy_of


def proven(tmp_path: Path, change: Callable[[dict[str, Any]], None], smoothed: list[str] | None = None) -> Any:
    """Round the scope of a copy of the embedded PaliGemma to two bits, change it further, and prove it."""
    parent = EMBEDDED / "paligemma"
    staged = copy_of("paligemma", tmp_path / "staged")
    scope = plan_scope(parent)

    def both(tensors: dict[str, Any]) -> None:
        for name in tensors:
            if ".layers." in name and name.startswith("language_model") and name.endswith("_proj.weight"):
                tensors[name] = two_bits(tensors[name])
        change(tensors)

    change_weights(staged, both)
    request = JobRequest(
        model=parent, staging=staged, architecture=scope.architecture, scheme="w2-trial", tool="llmcompressor",
        method="rtn", expected=sorted(scope.expected), kept=scope.kept, ignore=[],
    )  # fmt: skip
    return _prove(request, Done({}, smoothed=smoothed or []))


def test_a_file_in_which_only_the_scope_changed_is_proven(tmp_path: Path) -> None:
    saved = proven(tmp_path, lambda tensors: None)
    done = [m for m in saved.modules if m.quantized]
    assert len(done) == 28 and all(m.error is not None and m.error > 0.1 for m in done)
    assert len(saved.modules) - len(done) == 25 and saved.changed == []
    assert all(m.error == 0.0 for m in saved.modules if not m.quantized)


NORM = "language_model.model.layers.1.input_layernorm.weight"
TOWER = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("change", "words", "value"),
    [
        (lambda t: t[TOWER].view(-1).__setitem__(3, 1.0), "outside the scope was changed", TOWER),
        (lambda t: t[NORM].add_(0.25), "outside the scope was changed", NORM),
        (lambda t: t[NORM].view(-1).__setitem__(0, float("nan")), "NaN or infinite", NORM),
        (lambda t: t.pop(NORM), "missing in the file", NORM),
        (lambda t: t.update({"extra.weight": torch.ones(2, 2)}), "nothing asked for", "extra.weight"),
        (lambda t: t.pop("language_model.model.layers.1.mlp.up_proj.weight"), "weight is missing", None),
    ],
)
def test_any_other_change_is_found_and_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str, value: str | None
) -> None:
    with pytest.raises(CheckFailed, match=words) as caught:
        proven(tmp_path, change)
    assert value is None or caught.value.value == value


def test_smoothing_may_change_its_own_layers(tmp_path: Path) -> None:
    patterns = smooth_layers("awq", "PaliGemmaForConditionalGeneration")
    saved = proven(tmp_path, lambda t: t[NORM].add_(0.25), patterns)
    assert saved.changed == [NORM]
    assert all(m.error is None for m in saved.modules if m.quantized)


def test_tensors_are_read_one_by_one() -> None:
    tensors = Tensors(EMBEDDED / "paligemma")
    headers = read_headers(EMBEDDED / "paligemma")
    assert set(tensors) == set(headers) and len(tensors) == len(headers)
    assert tuple(tensors[NORM].shape) == headers[NORM].shape
