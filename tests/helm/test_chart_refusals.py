"""Bad values fail `helm install` with the field, the arithmetic where there is one, and the fix."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from models.catalog.load import load_catalog
from models.fit import Load, find_gpu, fit
from models.support.errors import UsageError
from tests.helm.chart import CHART, EVERYTHING, HELMS, merged, template

LIMITS = {"limits": {"memory": "200Gi"}}


def gpu(
    source: str = "Qwen/Qwen2.5-VL-7B-Instruct", group: dict[str, Any] | None = None, **model: Any
) -> dict[str, Any]:
    """Return values with one model on one GPU."""
    return {
        "stack": {"models": [{"name": "m", "source": source, "gpus": 1, "max_model_len": 8192, **model}]},
        "workerGroups": [
            {"name": "g", "models": ["m"], "gpus": 1, "gpuType": "L4", "resources": LIMITS, **(group or {})}
        ],
        "modelCache": {"enabled": True, "download": {"enabled": True}},
    }


def change(values: dict[str, Any]) -> dict[str, Any]:
    """Return the everything-on values with a change."""
    return merged(EVERYTHING, values)


TWO = [
    {"name": "a", "source": "embedded:paligemma"},
    {"name": "b", "source": "embedded:qwen2_5_vl", "route_prefix": "/a"},
]
GROUP = {"name": "cpu", "models": ["a", "b"], "resources": LIMITS}
REFUSED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "loopback": ({"stack": {"listen": {"host": "127.0.0.1"}}}, ["stack.listen.host", "0.0.0.0"]),
    "one address": ({"stack": {"listen": {"host": "10.0.0.7"}}}, ["stack.listen.host", "each pod has its own"]),
    "open to all": ({"stack": {"listen": {"public": False}}}, ["stack.identify", "public: true"]),
    "same route": (
        {"stack": {"models": TWO}, "workerGroups": [GROUP]},
        ["stack.models[1].route_prefix", '"/a"', "each"],
    ),
    "same name": ({"stack": {"models": [TWO[0], TWO[0]]}, "workerGroups": [GROUP]}, ["stack.models[1].name", "twice"]),
    "unknown scheme": (
        {"stack": {"models": [{"name": "fovea-qwen", "source": "gs://bucket/x"}]}},
        ["stack.models[0].source", "gs://", "hub id"],
    ),
    "model in no group": (
        {"stack": {"models": [{"name": "x", "source": "embedded:paligemma"}]}},
        ["workerGroups", '"x"', "0 groups"],
    ),
    "group of no model": (
        {"workerGroups": [{"name": "cpu", "models": ["fovea-qwen", "nobody"], "resources": LIMITS}]},
        ["workerGroups[0].models[1]", '"nobody"', "fovea-qwen"],
    ),
    "group twice": (
        {"stack": {"models": TWO[:1]}, "workerGroups": [{**GROUP, "models": ["a"]}, {**GROUP, "models": ["a"]}]},
        ["2 groups"],
    ),
    "negative replicas": ({"workerGroups": [{**GROUP, "models": ["fovea-qwen"], "replicas": -1}]}, ["replicas", "0"]),
    "negative model replicas": ({"stack": {"models": [{**TWO[0], "replicas": -2}]}}, ["replicas", "1"]),
    "too few cpus": (
        {"workerGroups": [{"name": "cpu", "models": ["fovea-qwen"], "cpusForReplicas": 1, "resources": LIMITS}]},
        ["workerGroups[0].cpusForReplicas", "2 replicas", "room for 1"],
    ),
    "no room for the front": (
        {
            "stack": {"models": [TWO[0], {"name": "b", "source": "embedded:qwen2_5_vl"}]},
            "workerGroups": [{**GROUP, "cpusForReplicas": 2}],
        },
        ["cpusForReplicas", "front"],
    ),
    "no gpu in the group": (gpu(group={"gpus": 0, "gpuType": ""}), ["workerGroups[0].gpus", "needs 1"]),
    "gpu type nobody knows": (
        gpu(group={"gpuType": "L5"}),
        ["workerGroups[0].gpuType", '"L5"', "l40s", "gpuMemoryGiB"],
    ),
    "gpu type without gpus": (
        {"workerGroups": [{"name": "c", "models": ["fovea-qwen"], "gpuType": "L4", "resources": LIMITS}]},
        ["workerGroups[0].gpuType", "set gpus"],
    ),
    "too few gpus": (gpu(replicas=3), ["workerGroups[0]", "need 3 GPUs", "1 pods of 1 GPUs have 1"]),
    "gpus reserved but not used": (
        gpu(group={"gpus": 2}, **{"gpus": 2}),  # type: ignore[arg-type]
        ["reserves 2 GPUs", "tensor_parallel_size: 2"],
    ),
    "model too large": (
        gpu("Qwen/Qwen2.5-VL-72B-Instruct"),
        [
            "does not fit on 1 x L4",
            "weights 136",
            "KV cache of one request of 8192 tokens",
            "21.96 GiB x 0.92 = 20.20 GiB",
        ],
    ),
    "context too long": (
        gpu(max_model_len=128000),
        ["does not fit", "KV cache of one request of 128000 tokens 6.84 GiB"],
    ),
    "haproxy's memory": (
        {"proxy": {"bufferBytes": 8388608}},
        ["proxy", "2 buffers x 8.388608e+06 B x 4096 connections = 64.00 GiB", "lower bufferBytes"],
    ),
    "no memory limit": (
        {"head": {"resources": {"limits": {"memory": None}}}},
        ["head: resources.limits.memory", "set it"],
    ),
    "ingress without host": ({"ingress": {"enabled": True}}, ["ingress.host", "missing"]),
    "route without gateway": ({"gateway": {"enabled": True}}, ["gateway.parents", "empty"]),
    "incremental without gateway": (
        {"upgrade": {"strategy": "NewClusterWithIncrementalUpgrade"}},
        ["upgrade.gatewayClassName", "missing"],
    ),
    "unknown strategy": ({"upgrade": {"strategy": "BlueGreen"}}, ["strategy", "NewCluster"]),
    "redis without port": (
        {"gcsFaultTolerance": {"enabled": True, "redisAddress": "redis://valkey"}},
        ["gcsFaultTolerance.redisAddress", "HOST:PORT"],
    ),
    "offline without cache": (
        {**gpu(), "modelCache": {"enabled": False}},
        ["modelCache.enabled", "Qwen/Qwen2.5-VL-7B-Instruct", "offline: false"],
    ),
    "download without cache": ({"modelCache": {"download": {"enabled": True}}}, ["modelCache.download.enabled"]),
    "alerts nobody feeds": (change({"observability": {"pushgateway": ""}}), ["observability.pushgateway", "missing"]),
    "evaluation of no model": (change({"evaluation": {"model": "three"}}), ["evaluation.model", '"three"', "one, two"]),
    "gate that forgets": (change({"loadTestGate": {"reports": {"enabled": False}}}), ["loadTestGate.reports.enabled"]),
    "jobs without a key": (change({"clients": {"keySecret": {"name": ""}}}), ["clients.keySecret.name", "key"]),
    "scraping without a key": (
        change({"observability": {"podMonitor": {"keySecret": {"name": ""}}}}),
        ["observability.podMonitor.keySecret.name", "open_metrics"],
    ),
    "keys in a file": (
        change({"stack": {"identify": {"keys": "keys.db"}}}),
        ["stack.identify.keys", '"keys.db"', "valkey"],
    ),
    "counters in one replica": (change({"stack": {"admit": {}}}), ["stack.admit.store", '"memory"', "the stack has 4"]),
    "kept answers in a file": (
        change({"stack": {"recall": {"store": "answers.db"}}}),
        ["stack.recall.store", "memory"],
    ),
    "batches nowhere": (
        change({"stack": {"batches": {"folder": "batches"}}}),
        ["stack.batches.folder", '"batches"', "/data/"],
    ),
    "journal without volume": (
        change(
            {
                "dataVolume": {"enabled": False},
                "registry": "",
                "jobs": {"quantize": [], "distill": []},
                "stack": {"batches": None},
            }
        ),
        ["stack.money.journal", "dataVolume"],
    ),
    "valkey without password": (change({"valkey": {"password": {"name": ""}}}), ["valkey.password.name", "missing"]),
    "source of an unknown scheme": (
        change({"modelCache": {"download": {"sources": [{"from": "ftp://x/y", "name": "a"}]}}}),
        ["modelCache.download.sources[0].from", '"ftp://x/y"', "s3://BUCKET/FOLDER", "pvc://CLAIM/FOLDER"],
    ),
    "source without a folder": (
        change({"modelCache": {"download": {"sources": [{"from": "s3://bucket", "name": "a"}]}}}),
        ["modelCache.download.sources[0].from", "s3://BUCKET/FOLDER"],
    ),
    "two sources in one folder": (
        change({"modelCache": {"download": {"sources": [{"from": "s3://b/x", "name": "a"}] * 2}}}),
        ["modelCache.download.sources[1].name", '"a"', "its own folder"],
    ),
    "sources that nobody fetches": (
        change({"modelCache": {"download": {"enabled": False}}}),
        ["modelCache.download.enabled", "sources"],
    ),
    "a folder in a cache that is off": (
        {"stack": {"models": [{"name": "fovea-qwen", "source": "/models/x"}]}},
        ["stack.models[0].source", '"/models/x"', "modelCache.enabled"],
    ),
    "a version of no registry": (
        {"stack": {"models": [{"name": "fovea-qwen", "source": "registry:a@live"}]}},
        ["registry", '"registry:a@live"', "folder"],
    ),
    "a registry on a volume that is off": ({"registry": "/data/registry"}, ["registry", "dataVolume.enabled"]),
    "autoscaling of no model": (
        change({"autoscaling": [{"model": "three", "maxReplicas": 2}]}),
        ["autoscaling[0].model", '"three"', "one, two, front"],
    ),
    "autoscaling of a front that is not there": (
        {"autoscaling": [{"model": "front", "maxReplicas": 2}]},
        ["autoscaling[0].model", '"front"', "fovea-qwen"],
    ),
    "autoscaling twice": (
        change({"autoscaling": [{"model": "one", "maxReplicas": 2}] * 2}),
        ["autoscaling[1].model", '"one"', "twice"],
    ),
    "autoscaling that starts outside its bounds": (
        change({"autoscaling": [{"model": "two", "minReplicas": 3, "maxReplicas": 3}]}),
        ["autoscaling[0]", "2 replicas", "minReplicas 3 to maxReplicas 3"],
    ),
    "autoscaling beyond the pods": (
        change({"autoscaling": [{"model": "two", "maxReplicas": 9}]}),
        ["workerGroups[1]", "need 9 GPUs", "raise replicas or gpus"],
    ),
    "a front that may be gone": (
        change({"frontReplicas": 1, "autoscaling": [{"model": "front", "minReplicas": 0, "maxReplicas": 2}]}),
        ["autoscaling[0].minReplicas", "front"],
    ),
    "a model that every scrape would wake": (
        change({"autoscaling": [{"model": "one", "minReplicas": 0, "maxReplicas": 1}]}),
        ["autoscaling[0].minReplicas", "every scrape would wake it", "podMonitor.enabled: false"],
    ),
    "negative replicas of autoscaling": (
        change({"autoscaling": [{"model": "one", "minReplicas": -1, "maxReplicas": 1}]}),
        ["minReplicas"],
    ),
    "jobs without a place for results": (
        change({"dataVolume": {"enabled": False}, "registry": "", "stack": {"money": {"journal": None}}}),
        ["jobs", "dataVolume.enabled"],
    ),
    "two jobs of one name": (
        change({"jobs": {"distill": [{**EVERYTHING["jobs"]["distill"][0], "name": "two-int4"}]}}),
        ["jobs.distill[0].name", '"two-int4"', "its own"],
    ),
    "a job without a memory limit": (
        change({"jobs": {"distill": [{**EVERYTHING["jobs"]["distill"][0], "resources": {}}]}}),
        ["jobs.distill[0].resources.limits.memory", "set it"],
    ),
    "a job that registers what nothing judged": (
        change({"jobs": {"quantize": [{**EVERYTHING["jobs"]["quantize"][0], "golden": ""}]}}),
        ["jobs.quantize[0].golden", '"two"'],
    ),
    "a job that registers nowhere": (change({"registry": ""}), ["registry", "jobs.quantize[0].register"]),
    "a job of the wrong scheme": (
        change({"jobs": {"quantize": [{**EVERYTHING["jobs"]["quantize"][0], "scheme": "int3"}]}}),
        ["scheme", "w4a16"],
    ),
    "quantization in an image by another one's digest": (
        change({"image": {"digest": "sha256:" + "0" * 64}}),
        ["jobs.image.digest", "missing"],
    ),
    "traces to nowhere": (
        change({"stack": {"traces": {"endpoint": "collector:4318"}}}),
        ["endpoint", "https?://"],
    ),
    "autoscaling bounds": (
        {
            "nodeAutoscaling": {"enabled": True},
            "workerGroups": [{**GROUP, "models": ["fovea-qwen"], "replicas": 5, "maxReplicas": 2}],
        },
        ["workerGroups[0].replicas", "5 is not from", "maxReplicas 2"],
    ),
}


@pytest.mark.parametrize("version", HELMS)
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, version: str) -> None:
    values, texts = REFUSED[case]
    done = template(values, version=version)
    assert done.returncode != 0 and done.stdout == ""
    missing = [text for text in texts if text not in done.stderr]
    assert missing == [], done.stderr


def test_what_is_refused_starts_from_what_is_not() -> None:
    for values in ({}, EVERYTHING, gpu()):
        assert template(values).returncode == 0


FITS = [
    (hub, name, scheme)
    for hub in ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "google/gemma-3-27b-it")
    for name in ("T4", "L4", "A100-40", "H100")
    for scheme in ("bf16", "w4a16")
]


@pytest.mark.parametrize(("hub", "name", "scheme"), FITS)
def test_the_templates_arithmetic_is_that_of_models_fit(hub: str, name: str, scheme: str) -> None:
    """What the chart refuses, `fovea models fit` refuses; the chart leaves activations out, so it may let more pass."""
    variant = next(v for family in load_catalog().families for v in family.variants if v.hub == hub)
    gpu_ = find_gpu(name)
    found = fit(variant, gpu_.memory_gib, Load(context=8192, scheme=scheme), gpu=gpu_)
    source = hub + ("-AWQ" if scheme == "w4a16" else "")
    done = template(gpu(source, {"gpuType": name}))
    refused = done.returncode != 0
    assert not refused or "does not fit" in done.stderr, done.stderr
    least = (found.weights + found.kv_per_request + found.overhead) / found.budget
    assert refused is (least > 1) or abs(least - 1) < 0.001, (least, done.stderr)
    if refused:
        assert not found.fits
        assert f"weights {found.weights / 2**30:.2f} GiB ({scheme})" in done.stderr


def test_the_stack_file_of_the_project_is_a_stack_section() -> None:
    """The very file that `fovea serve` reads, put under `stack`, renders; only the address is the cluster's."""
    stack = yaml.safe_load((CHART.parents[1] / "stack.yaml").read_text())
    stack["listen"] = {"host": "0.0.0.0", "public": True}
    names = [model["name"] for model in stack["models"]]
    done = template(
        {"stack": stack, "workerGroups": [{"name": "cpu", "models": names, "resources": {"limits": {"memory": "8Gi"}}}]}
    )
    assert done.returncode == 0, done.stderr


def test_unknown_gpu_has_the_same_words_as_the_command() -> None:
    with pytest.raises(UsageError):
        find_gpu("L5")
