"""The rendered Serve config: one that Ray Serve and serving/ take, and what a change of the values changes in it."""

from __future__ import annotations

import pytest
import yaml

from serving.app import expand
from serving.parts import front_part
from serving.stack import parse_stack
from tests.helm.cases import manifests
from tests.helm.chart import CHART, EVERYTHING, HELMS, PROFILES, merged, one, render, serve_config


@pytest.mark.parametrize("case", [*PROFILES, "everything"])
def test_the_serve_config_is_one_that_ray_serve_takes(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve.schema import ServeDeploySchema

    for name in ("VALKEY_PASSWORD", "PASSWORD"):
        monkeypatch.setenv(name, "p@ss/word")
    config = serve_config(manifests(case))
    ServeDeploySchema.model_validate(config)
    models = one(manifests(case), "RayService")
    groups = {g["groupName"] for g in models["spec"]["rayClusterConfig"]["workerGroupSpecs"]}
    fronts = [one for one in config["applications"] if one["name"] == "front"]
    routes = {}
    for application in config["applications"]:
        assert application["import_path"] == "serving.app:build"
        (deployment,) = application["deployments"]
        assert deployment["name"] == application["name"]
        if application in fronts:
            continue
        stack = parse_stack(expand(application["args"]["stack"]))
        (model,) = stack.models
        assert model.name == application["name"] == application["args"]["model"]
        assert application["route_prefix"] == (model.prefix if fronts else "/")
        routes[model.name] = model.prefix
        (resource,) = deployment["ray_actor_options"]["resources"]
        assert resource.removeprefix("group-") in groups
        assert deployment["ray_actor_options"]["num_gpus"] == model.gpus
    assert len(fronts) == (len(routes) > 1)
    for front in fronts:
        assert front["route_prefix"] == "/" and front["deployments"][0]["user_config"] == {"models": routes}
        assert "models" not in front["args"]["stack"] and "model" not in front["args"]


@pytest.mark.parametrize("case", [*PROFILES, "everything"])
def test_serving_builds_every_application_of_the_config(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function that the config names takes the arguments that the config gives it."""
    from serving import app

    for name in ("VALKEY_PASSWORD", "PASSWORD"):
        monkeypatch.setenv(name, "p")
    for application in serve_config(manifests(case))["applications"]:
        built = app.build(application["args"])
        assert built._bound_deployment.name == application["deployments"][0]["name"]


def test_a_change_of_one_model_is_in_no_other_models_arguments() -> None:
    """Ray Serve starts an application anew when its arguments change."""
    base = merged(EVERYTHING["stack"], {"identify": {"tenants": [{"name": "shop", "models": ["one"]}]}})
    changed = merged(base, {"models": [base["models"][0], {**base["models"][1], "max_model_len": 77}]})
    before, after = (serve_config(render(merged(EVERYTHING, {"stack": stack}))) for stack in (base, changed))
    one_, two, front = zip(before["applications"], after["applications"], strict=True)
    assert one_[0] == one_[1] and front[0] == front[1] and two[0] != two[1]
    tenants = [pair[0]["args"]["stack"]["identify"]["tenants"] for pair in (one_, two)]
    assert tenants == [[{"name": "shop", "models": ["one"]}], [{"name": "shop", "models": ["-"]}]]


def test_replicas_follow_requests_where_that_is_asked_for() -> None:
    found = {one["name"]: one["deployments"][0] for one in serve_config(manifests("everything"))["applications"]}
    fixed = found["one"]["autoscaling_config"]
    assert (fixed["min_replicas"], fixed["initial_replicas"], fixed["max_replicas"]) == (1, 1, 1)
    assert all("num_replicas" not in one for one in found.values())
    # Ray Serve starts an application anew when its policy changes: it must be the same, fixed or not
    assert fixed["policy"] == found["two"]["autoscaling_config"]["policy"]
    scaled = found["two"]["autoscaling_config"]
    assert (scaled["min_replicas"], scaled["initial_replicas"], scaled["max_replicas"]) == (1, 2, 3)
    assert scaled["policy"] == {"policy_function": "serving.autoscale:policy"}
    assert found["front"]["autoscaling_config"]["min_replicas"] == 2
    single = {"autoscaling": [{"model": "fovea-qwen", "minReplicas": 0, "maxReplicas": 2, "zeroSeconds": 0}]}
    manifest = one(render(single, "cpu"), "RayService")["spec"]
    (deployment,) = yaml.safe_load(manifest["serveConfigV2"])["applications"][0]["deployments"]
    assert deployment["autoscaling_config"]["min_replicas"] == 0
    assert deployment["autoscaling_config"]["downscale_to_zero_delay_s"] == 0
    assert manifest["excludeHeadPodFromServeSvc"] is False, "the head's proxy is the one that is left"
    assert one(manifests("everything"), "RayService")["spec"]["excludeHeadPodFromServeSvc"] is True


def test_the_front_gets_what_it_goes_by() -> None:
    """And nothing else: a change of what it does not use must not start it anew."""
    stack = merged(EVERYTHING["stack"], {"limits": {"concurrent": 7}, "drain_s": 5, "metrics": False, "affinity": {}})
    config = serve_config(render(merged(EVERYTHING, {"stack": stack})))
    (front,) = [one for one in config["applications"] if one["name"] == "front"]
    part = front["args"]["stack"]
    own = parse_stack({**part, "models": [{"name": "front", "source": "front"}]})
    wanted = front_part(parse_stack(expand({**stack, "identify": None, "listen": {**stack["listen"], "public": True}})))
    assert front_part(own) == wanted
    defaults = parse_stack({"models": [{"name": "front", "source": "front"}]})
    assert set(part) == {key for key in part if getattr(wanted, key) != getattr(defaults, key)}


ROOM = {
    "workerGroups": [
        {"name": "cpu", "models": ["fovea-qwen"], "cpusForReplicas": 4, "resources": {"limits": {"memory": "9Gi"}}}
    ]
}


def test_scaling_a_model_changes_only_the_number_of_replicas() -> None:
    """Ray Serve starts replicas anew when an application's arguments change."""
    from ray.serve._private.deploy_utils import get_app_code_version
    from ray.serve.schema import ServeApplicationSchema

    scaled = serve_config(render({"autoscaling": [{"model": "fovea-qwen", "maxReplicas": 4}], **ROOM}, "cpu"))
    base = yaml.safe_load((CHART / "values-cpu.yaml").read_text())["stack"]["models"][0]
    two, one_ = (serve_config(render({"stack": {"models": [{**base, "replicas": n}]}}, "cpu")) for n in (2, 1))
    assert two != one_
    (deployment,) = two["applications"][0]["deployments"]
    deployment["user_config"] = {"replicas": 1}  # it changes in place, and so do bounds
    deployment["autoscaling_config"] |= {"min_replicas": 1, "initial_replicas": 1, "max_replicas": 1}
    assert two == one_
    assert get_app_code_version(ServeApplicationSchema(**two["applications"][0])) == get_app_code_version(
        ServeApplicationSchema(**scaled["applications"][0])
    ), "nor does Ray Serve start replicas anew when their number begins to follow the requests"


def test_null_switches_a_layer_off() -> None:
    for version in HELMS:
        config = serve_config(render({"stack": {"limits": None}}, "cpu", version))
        assert config["applications"][0]["args"]["stack"]["limits"] is None
