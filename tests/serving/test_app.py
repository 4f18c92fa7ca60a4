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
    assert name == "a" and stack["models"][1]["name"] == "b"


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
