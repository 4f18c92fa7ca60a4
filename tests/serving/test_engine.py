"""What the engine is told about a model of the stack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models.support.errors import UsageError
from serving.engine import quantization_method
from serving.stack import Model


def model(folder: Path, scheme: str | None, bits: int | None, kind: str = "int") -> Model:
    config: dict[str, Any] = {}
    if bits is not None:
        groups = {"group_0": {"weights": {"num_bits": bits, "type": kind}}}
        config = {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}
    (folder / "config.json").write_text(json.dumps(config))
    return Model(name="m", source=str(folder), quantization=scheme)


@pytest.mark.parametrize(
    ("scheme", "bits", "method"),
    [
        (None, 8, None),
        ("w8a8", 8, "compressed-tensors"),
        ("w4a16", 4, "compressed-tensors"),
        ("compressed-tensors", 4, "compressed-tensors"),
        ("nf4", None, "bitsandbytes"),
        ("bnb-int8", None, "bitsandbytes"),
        ("awq", None, "awq"),
        ("fp8", None, "fp8"),
    ],
)
def test_a_scheme_has_the_engines_name(
    tmp_path: Path, scheme: str | None, bits: int | None, method: str | None
) -> None:
    assert quantization_method(model(tmp_path, scheme, bits)) == method


def test_fp8_is_what_the_checkpoint_is(tmp_path: Path) -> None:
    assert quantization_method(model(tmp_path, "fp8", 8, "float")) == "compressed-tensors"
    for scheme, kind, said in (("fp8", "int", "8-bit int"), ("w8a8", "float", "8-bit float")):
        with pytest.raises(UsageError, match=said):
            quantization_method(model(tmp_path, scheme, 8, kind))


@pytest.mark.parametrize(("scheme", "bits", "said"), [("w8a8", 4, "4-bit"), ("w4a16", None, "not quantized")])
def test_another_scheme_than_the_checkpoints_is_refused(
    tmp_path: Path, scheme: str, bits: int | None, said: str
) -> None:
    with pytest.raises(UsageError, match=said) as error:
        quantization_method(model(tmp_path, scheme, bits))
    assert error.value.field == "models.m.quantization" and error.value.value == scheme


def test_a_checkpoint_of_the_hub_is_left_to_the_engine() -> None:
    assert quantization_method(Model(name="m", source="org/name-w8a8", quantization="w8a8")) == "compressed-tensors"
