"""`serving.app:build`: what a Ray Serve config imports."""

from __future__ import annotations

from typing import Any

import pytest

from models.support.errors import UsageError
from serving.app import build, expand

STACK: dict[str, Any] = {
    "models": [
        {"name": "a", "source": "embedded:qwen2_5_vl", "replicas": 3},
        {"name": "b", "source": "embedded:paligemma"},
    ]
}


def test_a_model_becomes_its_deployment() -> None:
    deployment = build({"stack": STACK, "model": "a"})._bound_deployment
    assert deployment.name == "a" and deployment.num_replicas == 3
    stack, name = deployment.init_args
    assert name == "a" and [one["name"] for one in stack["models"]] == ["a"]


def test_what_becomes_of_other_models_starts_nothing_anew() -> None:
    def version(models: list[dict[str, Any]], **more: Any) -> str:
        return str(build({"stack": {"models": models, **more}, "model": "a"})._bound_deployment.version)

    a, b = STACK["models"]
    keys = {"keys": "k.db", "tenants": [{"name": "t", "models": ["a"]}, {"name": "u", "models": ["b"]}]}
    more = {**keys, "tenants": [{"name": "t", "models": ["a", "c"]}, {"name": "u", "models": ["c"]}]}
    c = {**b, "name": "c"}
    assert version([a, b]) == version([a]) == version([{**a, "replicas": 1}, c])
    assert version([a, b], identify=keys) == version([a, c], identify=more)
    assert len({version([a]), version([{**a, "max_model_len": 64}]), version([a], lane={}), version([a, b])}) == 3
    fronts = [build({"stack": {"models": models}})._bound_deployment for models in ([a, b], [a, c])]
    assert fronts[0].version == fronts[1].version and fronts[0].user_config["models"] == {"a": "/a", "b": "/b"}


def test_the_front_needs_no_models_in_its_arguments() -> None:
    deployment = build({"stack": {"limits": {"concurrent": 7}}})._bound_deployment
    assert deployment.name == "front" and deployment.init_args[0]["limits"]["concurrent"] == 7


def test_a_tenant_of_other_models_may_not_use_this_one() -> None:
    stack = {**STACK, "identify": {"keys": "k.db", "tenants": [{"name": "u", "models": ["b"]}]}}
    part, _ = build({"stack": stack, "model": "a"})._bound_deployment.init_args
    assert part["identify"]["tenants"][0]["models"] == ["-"]


def test_without_a_model_it_is_the_front() -> None:
    assert build({"stack": STACK})._bound_deployment.name == "front"


@pytest.mark.parametrize(
    ("args", "texts"),
    [
        ({}, ["args", "stack"]),
        ({"stack": "stack.yaml"}, ["args", "stack"]),
        ({"stack": STACK, "modle": "a"}, ["args", "modle"]),
        ({"stack": STACK, "model": "c"}, ["args.model", "'c'", "a, b"]),
        ({"stack": {"models": [], "limts": {}}}, ["args.stack"]),
        ({"stack": {**STACK, "limts": {}}}, ["args.stack: limts", "did you mean 'limits'"]),
    ],
)
def test_bad_arguments_are_named(args: dict[str, Any], texts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        build(args)
    assert [text for text in texts if text not in str(caught.value)] == []


def test_variables_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "p@ss/w:rd%")
    given = {"url": "valkey://:$(PASSWORD)@host:6379/0", "plain": ["$(PASSWORD)", 1, None, True], "cost": "$5 (or 6)"}
    assert expand(given) == {
        "url": "valkey://:p%40ss%2Fw%3Ard%25@host:6379/0",
        "plain": ["p@ss/w:rd%", 1, None, True],
        "cost": "$5 (or 6)",
    }
    assert given["url"] == "valkey://:$(PASSWORD)@host:6379/0"


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PASSWORD", raising=False)
    with pytest.raises(UsageError, match=r"environment variable is not set.*\$\(PASSWORD\)"):
        expand({"a": ["$(PASSWORD)"]})
