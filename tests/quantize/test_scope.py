"""Scope: what is quantized in each architecture, from the files' headers alone."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.catalog import load_catalog
from models.support.errors import CheckFailed, UsageError
from quantize.scope import (
    bytes_by_part,
    check_touched,
    family_of,
    plan_scope,
    read_headers,
    scope_of,
    short_name,
)
from quantize.smoothing import SMOOTHING, check_pairs
from tests.quantize.checkpoints import EMBEDDED, change_config, change_weights, copy_of

LEAVES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "paligemma"])
def test_the_embedded_checkpoints(family: str) -> None:
    scope = plan_scope(EMBEDDED / family)
    assert set(scope.expected) == {f"layers.{i}.{leaf}" for i in range(4) for leaf in LEAVES + MLP}
    assert set(scope.kept.values()) == {"vision", "projector"}
    assert not set(scope.expected) & set(scope.kept)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "paligemma"])
def test_every_byte_belongs_to_a_part(tmp_path: Path, family: str) -> None:
    parts = bytes_by_part(EMBEDDED / family)
    assert sum(parts.values()) == sum(t.size for t in read_headers(EMBEDDED / family).values())
    assert min(parts[p] for p in ("vision", "projector", "embeddings", "language")) > 10_000
    assert parts.get("other", 0) < 10_000  # a norm or two
    folder = copy_of(family, tmp_path / "m")
    change_config(folder, quantization_config={"quant_method": "compressed-tensors"})
    assert bytes_by_part(folder) == parts  # a quantized checkpoint has parts, too


def test_the_vision_tower_only_when_asked_and_never_the_projector() -> None:
    scope = plan_scope(EMBEDDED / "qwen2_5_vl", vision=True)
    assert any(name.startswith("visual.blocks.") for name in scope.expected)
    assert all(not name.startswith("visual.merger") for name in scope.expected)
    assert set(scope.kept.values()) == {"projector"}
    assert r"re:.*visual\..*" not in scope.ignore


def test_names_of_every_generation_are_one() -> None:
    assert short_name("model.language_model.layers.3.mlp.up_proj") == "layers.3.mlp.up_proj"
    assert short_name("language_model.model.layers.3.mlp.up_proj") == "layers.3.mlp.up_proj"
    assert short_name("model.layers.3.mlp.up_proj") == "layers.3.mlp.up_proj"
    assert short_name("model.visual.blocks.0.attn.qkv") == "visual.blocks.0.attn.qkv"
    assert short_name("vision_tower.vision_model.encoder.layers.0.x") == "vision_tower.encoder.layers.0.x"


def test_families_that_share_an_architecture_are_told_apart_by_size() -> None:
    config = {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}
    small = {"text_config": {"hidden_size": 192, "num_hidden_layers": 4}}
    assert family_of(config | small, "x")[1].family == "qwen2-5-vl-embedded"
    assert family_of(config | {"hidden_size": 3584, "num_hidden_layers": 28}, "x")[1].family == "qwen2.5-vl"
    assert family_of(config | {"hidden_size": 7, "num_hidden_layers": 1}, "x")[1].family == "qwen2.5-vl"


def test_modules_of_the_vision_tower_share_names_and_are_left_out() -> None:
    _, family = family_of({"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, "x")
    modules: dict[str, tuple[int, ...]] = {f"model.layers.0.{leaf}": (64, 64) for leaf in LEAVES + MLP}
    modules |= {f"visual.blocks.0.{leaf}": (64, 64) for leaf in MLP} | {"lm_head": (100, 64)}
    scope = scope_of("q", family, modules)
    assert len(scope.expected) == 7
    assert scope.kept == {f"visual.blocks.0.{leaf}": "vision" for leaf in MLP} | {"lm_head": "embeddings"}


def test_no_family_of_the_catalog_targets_its_vision_tower() -> None:
    families = [f for f in load_catalog().families if f.quantize is not None]
    assert len(families) >= 4
    towers = ("visual.blocks.0", "vision_tower.encoder.layers.0", "vision_model.model.layers.0")
    for family in families:
        assert family.quantize is not None and family.quantize.targets
        for tower in towers:
            for leaf in LEAVES + MLP:
                name = f"model.{tower}.{leaf}"
                assert not any(re.search(p, name) for p in family.quantize.targets), (family.family, name)


def test_a_layer_that_lacks_a_module_is_refused() -> None:
    _, family = family_of({"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, "x")
    modules = {f"model.layers.{i}.{leaf}": (64, 64) for i in range(2) for leaf in LEAVES + MLP}
    del modules["model.layers.1.mlp.up_proj"]
    with pytest.raises(UsageError, match="layer 1 lacks up_proj"):
        scope_of("q", family, modules)


def test_a_linear_module_that_no_pattern_names_is_refused() -> None:
    _, family = family_of({"architectures": ["Qwen2_5_VLForConditionalGeneration"]}, "x")
    modules = {"model.layers.0.mlp.up_proj": (64, 64), "model.layers.0.mlp.router": (8, 64)}
    with pytest.raises(UsageError, match="no pattern names") as caught:
        scope_of("q", family, modules)
    assert caught.value.value == "layers.0.mlp.router"


def test_unsupported_and_quantized_checkpoints_are_refused(tmp_path: Path) -> None:
    folder = copy_of("qwen2_5_vl", tmp_path / "m")
    change_config(folder, architectures=["BertModel"])
    with pytest.raises(UsageError, match=r"no quantization scope for this architecture.*Qwen2_5_VL"):
        plan_scope(folder)
    change_config(folder, quantization_config={"quant_method": "gptq"})
    with pytest.raises(UsageError, match=r"quantized already .gptq.*16-bit parent"):
        plan_scope(folder)


def test_a_checkpoint_without_a_tensor_is_refused(tmp_path: Path) -> None:
    folder = copy_of("qwen2_5_vl", tmp_path / "m")
    change_weights(folder, lambda tensors: tensors.pop("model.layers.2.mlp.down_proj.weight"))
    with pytest.raises(UsageError, match="layer 2 lacks down_proj"):
        plan_scope(folder)


def test_what_was_touched_must_be_the_scope() -> None:
    expected, kept = ["layers.0.a", "layers.0.b"], {"visual.x": "vision"}
    check_touched(expected, kept, ["model.language_model.layers.0.a", "model.layers.0.b"])
    with pytest.raises(CheckFailed, match="1 modules outside the scope") as caught:
        check_touched(expected, kept, ["layers.0.a", "layers.0.b", "model.visual.x"])
    assert caught.value.field == "vision"
    with pytest.raises(CheckFailed, match="1 modules of the scope were not quantized"):
        check_touched(expected, kept, ["layers.0.a"])


def test_no_weights_and_no_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        plan_scope(tmp_path)
    with pytest.raises(UsageError, match=r"no \.safetensors"):
        read_headers(tmp_path)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200) | st.dictionaries(st.text(), st.none() | st.integers() | st.text()).map(
    lambda d: struct.pack("<Q", len(json.dumps(d).encode())) + json.dumps(d).encode()))  # fmt: skip
def test_any_bytes_are_headers_or_one_error(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "m.safetensors").write_bytes(data)
        try:
            found = read_headers(Path(name))
        except UsageError as error:
            assert error.field == "model"
        else:
            assert all(t.size >= 0 for t in found.values())


@pytest.mark.parametrize("family", [f.family for f in load_catalog().families if f.quantize is not None])
def test_the_scope_of_every_family_of_the_catalog_on_its_own_architecture(family: str) -> None:
    """The real architecture of the family's first checkpoint, on torch's meta device: names and shapes, no weights."""
    import torch

    from models.catalog.count import build

    found = load_catalog().find(family)[0]
    variant = found.variants[0]
    linear, every = torch.nn.Linear, dict(build(variant).named_modules())
    modules = {n: tuple(m.weight.shape) for n, m in every.items() if isinstance(m, linear)}
    scope = scope_of(found.engine.architecture, found, modules)
    assert len(scope.expected) >= 4 * variant.decoder.layers
    assert len(scope.expected) % variant.decoder.layers == 0
    assert "other" not in scope.kept.values()
    assert any(part in ("vision", "audio") for part in scope.kept.values())
    if found.engine.architecture in SMOOTHING:
        check_pairs(found.engine.architecture, every)


def test_a_file_cut_short_is_found_in_its_header(tmp_path: Path) -> None:
    folder = copy_of("qwen2_5_vl", tmp_path / "m")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UsageError, match="not a readable safetensors file"):
        read_headers(folder)
