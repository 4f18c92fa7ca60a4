"""Adapters in the chart's stack: every application gets what `fovea serve` would give it."""

from __future__ import annotations

from typing import Any

from serving.parts import own_part, routes_of
from serving.stack import parse_stack
from tests.helm.chart import EVERYTHING, merged, render, serve_config


def test_adapters_reach_their_model_its_tenants_and_the_front() -> None:
    one, two = EVERYTHING["stack"]["models"]
    adapters = [{"name": "bent", "source": "/models/bent"}, {"name": "a-late-one", "source": "/models/late"}]
    tenants: list[dict[str, Any]] = [
        {"name": "all"}, {"name": "bent-only", "models": ["bent"]}, {"name": "both", "models": ["a-late-one", "two"]},
    ]  # fmt: skip
    changed = {"models": [{**one, "adapters": adapters}, two], "identify": {"tenants": tenants}}
    config = serve_config(render(merged(EVERYTHING, {"stack": merged(EVERYTHING["stack"], changed)})))
    first, second, front = config["applications"]
    assert [one["name"] for one in first["args"]["stack"]["models"][0]["adapters"]] == ["bent", "a-late-one"]

    def allowed(application: dict[str, Any]) -> list[Any]:
        return [tenant.get("models") for tenant in application["args"]["stack"]["identify"]["tenants"]]

    assert allowed(first) == [None, ["bent"], ["a-late-one"]] and allowed(second) == [None, ["-"], ["two"]]
    whole = first["args"]["stack"]
    assert own_part(whole, "one") == whole
    models = [*whole["models"], *second["args"]["stack"]["models"]]
    assert front["deployments"][0]["user_config"] == routes_of(parse_stack({"models": models}))


def test_without_adapters_the_front_is_told_of_none() -> None:
    *_, front = serve_config(render(EVERYTHING))["applications"]
    assert set(front["deployments"][0]["user_config"]) == {"models"}
