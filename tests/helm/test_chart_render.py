"""What the chart renders: with both majors of helm, for every profile and many options, against strict schemas."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from referencing import Registry, Resource

from serving.affinity import BALANCE
from serving.affinity import environment as affinity_environment
from serving.app import expand
from serving.parts import front_part
from serving.runtime import HARD_DAYS, fast_path_environment
from serving.stack import parse_stack
from tests.helm.chart import (
    CHART,
    EVERYTHING,
    HELMS,
    PROFILES,
    ROOT,
    helm,
    merged,
    one,
    pods,
    render,
    serve_config,
    template,
    tool,
)

OWN_SCHEMAS = Path(__file__).parent / "schemas"
KUBERNETES = ("v1.35.0", "v1.36.0", "v1.37.0")


def closed(required: str = "", **properties: Any) -> dict[str, Any]:
    """Return the JSON Schema of an object that has these properties and no others."""
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": required.split()} if required else schema


TEXT = {"type": "string", "minLength": 1}
DURATION = {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"}
HTTP_ROUTE = closed(
    "apiVersion kind metadata spec",
    apiVersion={"const": "gateway.networking.k8s.io/v1"},
    kind={"const": "HTTPRoute"},
    metadata={"type": "object"},
    spec=closed(
        "parentRefs rules",
        parentRefs={"type": "array", "items": closed("name", name=TEXT, namespace=TEXT, sectionName=TEXT)},
        hostnames={"type": "array", "items": TEXT},
        rules={
            "type": "array",
            "items": closed(
                "matches backendRefs",
                matches={"type": "array", "maxItems": 64, "items": closed(
                    "path", path=closed("type value", type={"enum": ["PathPrefix"]}, value={"pattern": "^/"})
                )},
                timeouts=closed(request=DURATION, backendRequest=DURATION),
                backendRefs={"type": "array", "items": closed("name port", name=TEXT, port={"type": "integer"})},
            ),
        },
    ),
)  # fmt: skip
"""What the chart uses of the Gateway API's HTTPRoute; no package brings that one."""


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize("profile", [None, *PROFILES])
def test_lint_strict(version: str, profile: str | None) -> None:
    done = helm(
        "lint",
        "--strict",
        str(CHART),
        *(["-f", str(CHART / f"values-{profile}.yaml")] if profile else []),
        version=version,
    )
    assert done.returncode == 0 and "0 chart(s) failed" in done.stdout, done.stdout + done.stderr


def matrix() -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Yield (id, profile, values) of everything that is rendered and checked."""
    yield "defaults", None, {}
    for profile in PROFILES:
        yield profile, profile, {}
    yield "everything", None, EVERYTHING
    options = {
        "eyes": {key: EVERYTHING[key] for key in ("observability", "evaluation")},
        "routes": {key: EVERYTHING[key] for key in ("ingress", "gateway")},
        "gate": {key: EVERYTHING[key] for key in ("loadTestGate",)},
        "autoscaled": {"nodeAutoscaling": {"enabled": True}},
        "open": {"networkPolicy": {"enabled": False}, "serviceAccount": {"create": False}},
    }
    keys = {"clients": EVERYTHING["clients"]}
    for names in itertools.chain(itertools.combinations(options, 1), itertools.combinations(options, 2)):
        values: dict[str, Any] = dict(keys)
        for name in names:
            values = merged(values, options[name])
        if "observability" in values:
            values = merged(values, {"observability": {"podMonitor": {"keySecret": {"name": "metrics"}}}})
        yield "+".join(names), None, values
        yield "gpu-prod+" + "+".join(names), "gpu-prod", values


CASES = {name: (profile, values) for name, profile, values in matrix()}


@lru_cache(maxsize=64)
def manifests(case: str, version: str = "helm4") -> list[dict[str, Any]]:
    """Render a case once."""
    profile, values = CASES[case]
    return render(values, profile, version)


@lru_cache(maxsize=256)
def validator(version: str, kind: str, api: str) -> Any:
    """Return the strict validator of a built-in kind, None for a kind that Kubernetes does not know."""
    folder = Path(tool("schemas")) / "kubernetes-json-schema" / f"{version}-local-strict"
    group, _, level = api.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.split(".")[0], level)))
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    definitions = _definitions(folder / "_definitions.json")
    schema = json.loads(path.read_text())
    registry: Registry[Any] = Resource.from_contents(schema) @ Registry()
    return jsonschema.Draft202012Validator(schema, registry=definitions @ registry)


@lru_cache
def _definitions(path: Path) -> Any:
    return Resource.from_contents(json.loads(path.read_text()))


def problems(manifest: dict[str, Any], version: str) -> list[str]:
    """Return what a strict schema says about a manifest."""
    check = validator(version, manifest["kind"], manifest["apiVersion"])
    if manifest["kind"] == "HTTPRoute":
        check = jsonschema.Draft202012Validator(HTTP_ROUTE)
    if check is None:
        path = OWN_SCHEMAS / f"{manifest['kind'].lower()}_{manifest['apiVersion'].split('/')[-1]}.json"
        if not path.exists():
            return ["no schema"]
        check = jsonschema.Draft7Validator(json.loads(path.read_text()))
    name = f"{manifest['kind']}/{manifest['metadata']['name']}"
    return [f"{name} {error.json_path}: {error.message[:200]}" for error in check.iter_errors(manifest)]


@pytest.mark.parametrize("version", KUBERNETES)
def test_strict_schemas_find_planted_mistakes(version: str) -> None:
    """The check itself can fail."""
    account = one(manifests("defaults"), "ServiceAccount")
    assert problems(account, version) == []
    assert problems({**account, "automountToken": True}, version)
    route = one(manifests("everything"), "HTTPRoute")
    assert problems(route, version) == []
    assert problems({**route, "spec": {**route["spec"], "timeout": "1s"}}, version)
    policy = one(manifests("defaults"), "NetworkPolicy", "deny")
    assert problems({**policy, "spec": {**policy["spec"], "podSelectr": {}}}, version)


@pytest.mark.parametrize("case", CASES)
def test_manifests_pass_strict_schemas(case: str) -> None:
    found = [problem for version in KUBERNETES for one in manifests(case) for problem in problems(one, version)]
    templates = {"apiVersion": "v1", "kind": "Pod"}
    for name, pod in pods(manifests(case)).items():
        whole = {**templates, "metadata": {**pod["metadata"], "name": "x"}, "spec": pod["spec"]}
        found += [f"{name}: {problem}" for problem in problems(whole, KUBERNETES[-1])]
    assert found == []


def test_custom_resources_are_checked_too() -> None:
    for kind in ("RayService", "RayJob", "PodMonitor", "PrometheusRule"):
        found = next(one for one in manifests("everything") if one["kind"] == kind)
        assert problems(found, KUBERNETES[-1]) == []
        assert problems({**found, "spec": {**found["spec"], "planted": ""}}, KUBERNETES[-1])


@pytest.mark.parametrize("case", ["defaults", *PROFILES, "everything"])
def test_both_majors_of_helm_render_the_same(case: str) -> None:
    def sort(found: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps(one, sort_keys=True) for one in found)

    assert sort(manifests(case)) == sort(manifests(case, "helm3"))


@pytest.mark.parametrize("case", [*PROFILES, "everything"])
def test_golden_snapshot(case: str) -> None:
    """A change of what is rendered is seen in review.  FOVEA_GOLDEN=write writes the snapshots anew."""
    path = Path(__file__).parent / "golden" / f"{case}.yaml"
    shown = [one for one in manifests(case) if one["kind"] != "ConfigMap"]
    text = yaml.safe_dump_all(sorted(shown, key=lambda m: (m["kind"], m["metadata"]["name"])), width=140)
    if os.environ.get("FOVEA_GOLDEN") == "write":
        path.write_text(text)
    assert path.read_text() == text, "if it is meant: FOVEA_GOLDEN=write pytest tests/helm/test_chart_render.py"


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


LEFT_OUT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "keeps a single machine's Ray on loopback; a cluster's pods must meet",
    **dict.fromkeys(
        (
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC", "RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_SERVER_STATE_BASE",
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE", "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH",
            "RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT", "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
        ),
        "one stack per pod: Ray's own places do",
    ),
}  # fmt: skip
OWN_PLACE = {"RAY_SERVE_HAPROXY_BINARY_PATH", "FOVEA_HAPROXY"}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_ray_container_has_the_fast_path(profile: str, tmp_path: Path) -> None:
    wanted = fast_path_environment(tmp_path, 1, 2, 3) | HARD_DAYS
    assert set(LEFT_OUT) <= set(wanted)
    ray = {name: pod for name, pod in pods(manifests(profile)).items() if name.startswith("RayService/")}
    assert len(ray) > 1
    for name, pod in ray.items():
        (container,) = pod["spec"]["containers"]
        environment = {one["name"]: one.get("value") for one in container["env"]}
        for key in set(wanted) - set(LEFT_OUT):
            assert environment.get(key) == wanted[key] or key in OWN_PLACE, (name, key)
        assert set(environment) >= OWN_PLACE


@pytest.mark.parametrize("load", [None, 1.5, 1.29, 2])
def test_image_affinity_is_in_every_ray_containers_environment(load: float | None) -> None:
    section = {} if load is None else {"load": load}
    stack = parse_stack({"models": [{"name": "m", "source": "x"}], "affinity": section})
    found = [pod for name, pod in pods(render({"stack": {"affinity": section}}, "cpu")).items() if "RayService" in name]
    for pod in found:
        environment = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
        assert environment[BALANCE] == affinity_environment(stack)[BALANCE]
    assert len(found) == 2 and BALANCE not in str(manifests("cpu"))


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


def test_the_charts_version_is_in_no_pod(tmp_path: Path) -> None:
    """A new chart with the same content must not make KubeRay start a new cluster."""
    copy = tmp_path / "fovea"
    shutil.copytree(CHART, copy)
    text = (copy / "Chart.yaml").read_text()
    (copy / "Chart.yaml").write_text(re.sub(r"(?m)^version: .*$", "version: 9.9.9", text))
    before, after = (one(render({}, "cpu", chart=path), "RayService") for path in (CHART, copy))
    assert before["metadata"]["labels"] != after["metadata"]["labels"]
    assert before["spec"] == after["spec"]


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


@pytest.mark.parametrize("case", ["defaults", *PROFILES, "everything"])
def test_notes_are_right_for_the_profile(case: str) -> None:
    """NOTES.txt names the models, how to wait, test and call, and whether keys are needed."""
    profile, values = CASES[case]
    arguments = ["install", "x", str(CHART), "--namespace", "vision", "--dry-run=client"]
    arguments += ["-f", str(CHART / f"values-{profile}.yaml")] if profile else []
    done = helm(*arguments, "-f", "-", stdin=json.dumps(values))
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    stack = one(manifests(case), "RayService")
    name = stack["metadata"]["name"]
    assert f"wait rayservice/{name} " in notes and "helm -n vision test x" in notes
    for application in serve_config(manifests(case))["applications"]:
        assert application["name"] in notes or application["name"] == "front"
    keys = case in ("gpu-prod", "everything")
    assert ("Authorization: Bearer KEY" in notes) is keys and ("Nobody needs a key" in notes) is not keys
    route = {"gpu-prod": "https://vision.example.com/v1", "everything": "https://vision.example.com/v1"}
    assert route.get(case, f"port-forward service/{name}-serve-svc 8000:8000") in notes
    download = [m["metadata"]["name"] for m in manifests(case) if "-download-" in m["metadata"]["name"]]
    assert (f"wait for the job {download[0]} " in notes) if download else ("wait for the job" not in notes)
    assert ("Nobody is paged" in notes) is (case not in ("gpu-prod", "everything"))
    assert ("--rollback-on-failure" in notes) is (case in ("gpu-prod", "everything"))


def test_rendering_needs_no_cluster_and_says_nothing_else() -> None:
    done = template({}, "cpu")
    assert done.returncode == 0 and done.stderr == ""


def test_the_documented_commands_and_values_render() -> None:
    text = (ROOT / "docs" / "helm.md").read_text()
    commands = [line.split() for line in text.splitlines() if line.startswith("helm ") and " install " in line]
    ours = [words for words in commands if "helm/fovea" in words]
    assert len(ours) == 2
    for words in ours:
        rest = [word.replace("helm/fovea", str(CHART)) for word in words[words.index("install") + 1 :]]
        done = helm("template", *rest)
        assert done.returncode == 0, done.stderr
    snippets = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert snippets
    for snippet in snippets:
        assert render(yaml.safe_load(snippet))


def test_the_stack_file_in_the_head_is_the_values_section() -> None:
    """`fovea keys --stack /chart/stack.yaml` works on what is served."""
    data = one(manifests("everything"), "ConfigMap", "-files")["data"]
    assert yaml.safe_load(data["stack.yaml"]) == merged(EVERYTHING["stack"], {"listen": {"port": 8000}})
    head = pods(manifests("everything"))["RayService/x-fovea/head"]["spec"]
    assert {"name": "chart", "mountPath": "/chart", "readOnly": True} in head["containers"][0]["volumeMounts"]
