"""The stack file: what is wrong is named with its place and its fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from models.registry import open_registry
from models.support.errors import UsageError
from serving.stack import EMBEDDED_NAMES, Stack, load_stack, parse_stack
from tests.models.registry.conftest import checkpoint

NO_HOSTS = ("https://x.org", "x.org/y", "x.org:80", "*.x.org", "", "a b", "bücher.example", "x..y", "[::1]")
NO_PREFIXES = ("", "/", "x", "/x/", "/x//y", "/-/x", "/x?y", "/../x", "/.")
ROOT = Path(__file__).resolve().parents[2]


def models(*names: str, **more: Any) -> dict[str, Any]:
    return {"models": [{"name": name, "source": "org/model", **more} for name in names or ("m",)]}


def refused(data: dict[str, Any]) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse_stack(data, "stack.yaml")
    assert caught.value.field and caught.value.field.startswith("stack.yaml")
    return caught.value


def test_the_smallest_stack() -> None:
    stack = parse_stack(models())
    assert stack.listen.host == "127.0.0.1" and stack.models[0].prefix == "/m" and stack.models[0].path == "org/model"
    assert parse_stack(stack.model_dump(mode="json")) == stack  # it crosses process borders this way


@pytest.mark.parametrize(
    "path", [ROOT / "stack.yaml", *sorted((ROOT / "examples").glob("*.yaml"))], ids=lambda p: p.name
)
def test_the_files_that_come_with_the_project(path: Path) -> None:
    assert load_stack(path).models


@pytest.mark.parametrize(
    ("data", "field", "suggestion"),
    [
        ({**models(), "lissten": {}}, "lissten", "listen"),
        ({**models(), "listen": {"prot": 1}}, "listen.prot", "port"),
        ({**models(), "limits": {"concurent": 1}}, "limits.concurent", "concurrent"),
        ({**models(), "media": {"image_pixel": 1}}, "media.image_pixel", "image_pixels"),
        (models(replica=2), "models.0.replica", "replicas"),
    ],
)
def test_a_typo_gets_a_suggestion(data: dict[str, Any], field: str, suggestion: str) -> None:
    error = refused(data)
    assert error.field == f"stack.yaml: {field}" and error.fix == f"did you mean {suggestion!r}?"


def test_a_version_of_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = open_registry(tmp_path / "store")
    version = registry.register(checkpoint(tmp_path / "weights"), "vqa", by="ada")
    monkeypatch.setenv("FOVEA_REGISTRY", str(tmp_path / "store"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = Path(parse_stack(models(source="registry:vqa@1")).models[0].path)
    assert folder.name == version.digest and (folder / "model.safetensors").exists()
    for source in ("registry:vqa@2", "registry:vqa@live", "registry:other@1", "registry:"):
        with pytest.raises(UsageError):
            _ = parse_stack(models(source=source)).models[0].path


def test_a_key_that_is_like_none_is_told_where_the_keys_are() -> None:
    assert "--schema" in (refused({**models(), "zzzzzz": 1}).fix or "")


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({}, "models"),
        ({"models": []}, "models"),
        ({"models": "m"}, "models"),
        ({"models": [5]}, "models.0"),
        ({"models": [{"name": "m"}]}, "models.0.source"),
        (models(source=""), "models.0.source"),
        (models("has space"), "models.0.name"),
        (models("../x"), "models.0.name"),
        (models(""), "models.0.name"),
        (models("a" * 64), "models.0.name"),
        (models('m"} 1'), "models.0.name"),
        (models(replicas=0), "models.0.replicas"),
        (models(dtype="float8"), "models.0.dtype"),
        (models(max_model_len=1), "models.0.max_model_len"),
        (models(gpus=-1), "models.0.gpus"),
        (models(gpus=float("inf")), "models.0.gpus"),
        ({**models(), "listen": {"port": 0}}, "listen.port"),
        ({**models(), "listen": {"port": 65536}}, "listen.port"),
        ({**models(), "listen": {"port": "http"}}, "listen.port"),
        ({**models(), "limits": {"body_bytes": 0}}, "limits.body_bytes"),
        ({**models(), "limits": {"body_timeout_s": 0}}, "limits.body_timeout_s"),
        ({**models(), "limits": {"body_timeout_s": float("inf")}}, "limits.body_timeout_s"),
        ({**models(), "limits": {"choices": 1000}}, "limits.choices"),
        ({**models(), "media": {"image_pixels": 200_000_000}}, "media.image_pixels"),
        ({**models(), "media": {"aspect_ratio": 0.5}}, "media.aspect_ratio"),
        ({**models(), "ready": {"within_s": 0}}, "ready.within_s"),
        ({**models(), "drain_s": float("nan")}, "drain_s"),
        ({**models(), "drain_s": -1}, "drain_s"),
        *(({**models(), "media": {"url_hosts": [host]}}, "media.url_hosts") for host in NO_HOSTS),
        *((models(route_prefix=prefix), "models.0.route_prefix") for prefix in NO_PREFIXES),
    ],
)
def test_values_out_of_range_are_named(data: dict[str, Any], field: str) -> None:
    assert refused(data).field == f"stack.yaml: {field}"


def test_several_errors_are_counted() -> None:
    assert "(and 1 more)" in refused({**models(replicas=0), "drain_s": 0}).message


def test_sections_can_be_switched_off() -> None:
    stack = parse_stack({**models(), "limits": None, "media": None, "metrics": False})
    assert stack.limits is None and stack.media is None


def test_names_and_prefixes_are_distinct() -> None:
    assert "'a' is used twice" in refused(models("a", "a")).message
    data = models("a", "b")
    data["models"][1]["route_prefix"] = "/a"
    assert "'/a' is used twice" in refused(data).message
    data["models"][1]["route_prefix"] = "/a/b"
    assert "lies inside" in refused(data).message
    data["models"][1]["route_prefix"] = "/ab"
    assert [model.prefix for model in parse_stack(data).models] == ["/a", "/ab"]


@pytest.mark.parametrize("name", ["v1", "health", "ready", "metrics", "front"])
def test_what_the_front_answers_itself_is_no_models_prefix(name: str) -> None:
    assert "taken by the stack" in refused(models("a", name)).message
    assert parse_stack(models(name)).models[0].name == name  # alone it has no front


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_loopback_needs_nothing(host: str) -> None:
    assert parse_stack({**models(), "listen": {"host": host}}).listen.host == host


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "", "localhost.evil.org", "127.0.0.1.nip.io"]
)
def test_any_other_address_needs_public(host: str) -> None:
    error = refused({**models(), "listen": {"host": host}})
    assert "public: true" in error.message
    assert parse_stack({**models(), "listen": {"host": host, "public": True}}).listen.host == host


def test_url_hosts_are_compared_without_case() -> None:
    stack = parse_stack({**models(), "media": {"url_hosts": ["Images.Example.ORG"]}})
    assert stack.media is not None and stack.media.url_hosts == ["images.example.org"]


def test_where_models_come_from(tmp_path: Path) -> None:
    for source in ("embedded:nobody", str(tmp_path), "./no/such/folder", "~/no/such/folder"):
        with pytest.raises(UsageError) as caught:
            _ = parse_stack(models(source=source)).models[0].path
        assert caught.value.field == "models.source" and caught.value.value == source and caught.value.fix
    (tmp_path / "config.json").write_text("{}")
    assert parse_stack(models(source=str(tmp_path))).models[0].path == str(tmp_path.resolve())
    assert EMBEDDED_NAMES[0] in str(caught.value) or caught.value.fix == "name a checkpoint folder"


# the file


def test_every_key_is_described_in_the_schema() -> None:
    schema = Stack.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    assert len(sections) == 18
    for section in sections:
        assert section["additionalProperties"] is False
        for name, field in section["properties"].items():
            assert len(field.get("description", "")) > 10, f"{section['title']}.{name}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"models: [", "not YAML"),
        (b"a: b: c", "not YAML"),
        (b"\tmodels:", "not YAML"),
        (b"models: \xff", "not YAML"),
        (b"models: \x00", "not YAML"),
        (b"models: !!python/object/apply:os.system ['true']", "not YAML"),
        (b"[" * 5000, "not YAML"),
        (b"metrics: true\nmetrics: false\nmodels: []", "stands twice"),
        (b"models: [{name: a, name: b}]", "stands twice"),
        (b"", "mapping"),
        (b"- a", "mapping"),
        (b"text", "mapping"),
        (b"1: 2\nmodels: [{name: a, source: b}]", "string"),
    ],
)
def test_files_that_are_no_stack(tmp_path: Path, text: bytes, says: str) -> None:
    path = tmp_path / "stack.yaml"
    path.write_bytes(text)
    with pytest.raises(UsageError) as caught:
        load_stack(path)
    assert says in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(UsageError) as caught:
            load_stack(path)
        assert caught.value.field == str(path) and caught.value.fix


def test_anchors_and_merges_work(tmp_path: Path) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text("models:\n  - &a {name: a, source: org/a, dtype: float32}\n  - {<<: *a, name: b}\n")
    assert [model.dtype for model in load_stack(path).models] == ["float32", "float32"]
