"""LoRA modules beside their base: what the stack file may say, what is refused, what the parts of a stack are told."""

from __future__ import annotations

import argparse
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.support.errors import UsageError
from serving import cli
from serving.adapters import RANKS, check_adapters
from serving.parts import NO_MODEL, own_part, routes_of
from serving.stack import Model, parse_stack
from tests.serving.lora import write_adapter

ADAPTERS = [{"name": "one", "source": "a/one"}, {"name": "two", "source": "a/two"}]
BASE = {"name": "base", "source": "x/y", "adapters": ADAPTERS}
OTHER = {"name": "other", "source": "x/z", "adapters": [{"name": "three", "source": "a/three"}]}


def stack(**more: Any) -> dict[str, Any]:
    return {"models": [BASE, OTHER], **more}


# the stack file


def test_names() -> None:
    parsed = parse_stack(stack())
    assert parsed.names == ["base", "one", "two", "other", "three"] and parsed.models[0].names == ["base", "one", "two"]
    assert parse_stack(parsed.model_dump(mode="json")) == parsed


@pytest.mark.parametrize("twin", ["base", "other", "three", "one"])
def test_a_name_is_used_once(twin: str) -> None:
    adapters = [{"name": "one", "source": "a/one"}, {"name": twin, "source": "a/two"}]
    with pytest.raises(UsageError, match=f"name '{twin}' is used twice"):
        parse_stack({"models": [{**BASE, "adapters": adapters}, OTHER]})


def test_a_tenant_may_be_allowed_an_adapter_that_there_is() -> None:
    def keys(*names: str) -> dict[str, Any]:
        return {"identify": {"tenants": [{"name": "t", "models": list(names)}]}}

    assert parse_stack(stack(**keys("one", "other"))).identify
    with pytest.raises(UsageError, match=r"'t' may use 'four', which .*it serves base, one, two"):
        parse_stack(stack(**keys("four")))


def test_a_folder_is_meant_from_where_the_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = {**BASE, "adapters": [{"name": "one", "source": "./runs/adapter"}]}
    (adapter,) = parse_stack({"models": [data]}).models[0].adapters
    assert adapter.source == str(tmp_path / "runs" / "adapter") and adapter.folder == tmp_path / "runs" / "adapter"


def model(folder: Path, **more: Any) -> Model:
    return Model.model_validate(
        {"name": "m", "source": "x/y", "adapters": [{"name": "a", "source": str(folder)}], **more}
    )


@pytest.mark.parametrize("rank", [1, 4, 16, 512])
def test_one_that_vllm_serves(tmp_path: Path, rank: int) -> None:
    assert check_adapters(model(write_adapter(tmp_path, rank=rank))) == rank


def no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def half_the_weights(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:50])


def no_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def list_for_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[]")


@pytest.mark.parametrize("harm", [no_config, list_for_config])
def test_a_folder_without_a_module(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    harm(write_adapter(tmp_path))
    with pytest.raises(UsageError, match="no LoRA module") as caught:
        check_adapters(model(tmp_path))
    assert caught.value.field == "models.adapters.a.source" and caught.value.value == str(tmp_path)
    assert "train/adapter" in str(caught.value.fix)


@pytest.mark.parametrize("harm", [no_weights, half_the_weights])
def test_damaged_weights(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    harm(write_adapter(tmp_path))
    with pytest.raises(UsageError, match="no weights"):
        check_adapters(model(tmp_path))


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "IA3"}, {"r": 0}, {"r": 513}, {"r": "8"}, {"use_dora": True}, {"bias": "all"},
        {"modules_to_save": ["lm_head"]}, {"rank_pattern": {"q_proj": 8}}, {"alpha_pattern": {"q_proj": 8}},
        {"layer_replication": [[0, 2]]},
    ],
)  # fmt: skip
def test_what_vllm_would_compute_otherwise_is_refused(tmp_path: Path, config: dict[str, Any]) -> None:
    write_adapter(tmp_path, **{"rank": 4, **config})
    with pytest.raises(UsageError) as caught:
        check_adapters(model(tmp_path))
    (key,) = config
    assert key in str(caught.value) or str(config[key]) in str(caught.value)


@pytest.mark.parametrize(
    "layer",
    [
        "base_model.model.model.visual.blocks.0.mlp.down_proj",
        "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj",
        "base_model.model.model.multi_modal_projector.linear",
    ],
)
def test_one_for_the_vision_part_is_not_served_in_part(tmp_path: Path, layer: str) -> None:
    """vLLM leaves such layers alone without a word."""
    write_adapter(tmp_path, layer=layer)
    with pytest.raises(UsageError, match="adapts the vision part") as caught:
        check_adapters(model(tmp_path))
    assert "enable_tower_connector_lora" in str(caught.value.fix)
    assert check_adapters(model(tmp_path, engine_args={"enable_tower_connector_lora": True})) == 4


def test_it_is_told_before_anything_is_started(tmp_path: Path) -> None:
    file = tmp_path / "stack.yaml"
    models = [{"name": "m", "source": "x/y", "adapters": [{"name": "a", "source": str(tmp_path / "absent")}]}]
    file.write_text(json.dumps({"models": models}))
    with pytest.raises(UsageError, match="no LoRA module"):
        cli.read_stack(argparse.Namespace(stack=str(file), host=None, port=None))
    models[0]["adapters"] = [{"name": "a", "source": "org/on-the-hub"}]
    file.write_text(json.dumps({"models": models}))
    assert cli.read_stack(argparse.Namespace(stack=str(file), host=None, port=None)).names == ["m", "a"]


def test_one_of_the_hub_that_cannot_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="cannot be fetched") as caught:
        check_adapters(parse_stack({"models": [BASE]}).models[0])
    assert (caught.value.field, caught.value.value) == ("models.adapters.one.source", "a/one")


def test_ranks_are_vllms() -> None:
    from vllm.config.lora import MaxLoRARanks

    assert typing.get_args(MaxLoRARanks) == RANKS


@pytest.mark.parametrize(("ranks", "most", "together"), [((4,), 8, 1), ((1, 16), 16, 2), ((9, 33, 2), 64, 3)])
def test_what_the_engine_is_told(tmp_path: Path, ranks: tuple[int, ...], most: int, together: int) -> None:
    from serving.engine import engine_args

    adapters = [
        {"name": f"a{n}", "source": str(write_adapter(tmp_path / f"a{n}", rank=rank))} for n, rank in enumerate(ranks)
    ]
    data = {"name": "m", "source": "embedded:qwen2_5_vl", "adapters": adapters}
    args = engine_args(Model.model_validate(data))
    assert args.enable_lora and (args.max_lora_rank, args.max_loras) == (most, together)
    assert [(one.name, one.path) for one in args.lora_modules] == [(one["name"], one["source"]) for one in adapters]
    assert args.max_cpu_loras == len(ranks)
    args = engine_args(Model.model_validate({**data, "engine_args": {"max_loras": 5, "max_cpu_loras": 7}}))
    assert (args.max_loras, args.max_cpu_loras) == (5, 7)
    assert not engine_args(Model.model_validate({**data, "adapters": []})).enable_lora


# what the parts of a stack know


def test_the_front_is_told_where_each_adapter_is() -> None:
    assert routes_of(parse_stack(stack())) == {
        "models": {"base": "/base", "other": "/other"},
        "adapters": {"one": "/base", "two": "/base", "three": "/other"},
    }
    assert routes_of(parse_stack({"models": [{**BASE, "adapters": []}]})) == {"models": {"base": "/base"}}


def test_a_models_part_keeps_its_own_adapters_for_its_tenants() -> None:
    tenants = [{"name": "t", "models": ["two", "three"]}, {"name": "u", "models": ["other"]}, {"name": "v"}]
    data = parse_stack(stack(identify={"tenants": tenants})).model_dump(mode="json")
    allowed = {
        name: [tenant["models"] for tenant in own_part(data, name)["identify"]["tenants"]] for name in ("base", "other")
    }
    assert allowed == {"base": [["two"], [NO_MODEL], None], "other": [["three"], ["other"], None]}


@pytest.mark.parametrize("odd", [None, 3, "one", [None, 3, {}, {"name": 4}]])
def test_what_is_no_list_of_adapters_is_left_to_validation(odd: Any) -> None:
    tenants = [{"name": "t", "models": [["base"], "base"]}]
    part = own_part({"models": [{**BASE, "adapters": odd}], "identify": {"tenants": tenants}}, "base")
    assert part["models"][0]["adapters"] == odd and part["identify"]["tenants"][0]["models"] == ["base"]
