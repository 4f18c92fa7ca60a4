"""The registry on stores that are not a folder: S3 (moto's server), GCS and the hub (simulators of their wires)."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

import fovea
from models.registry import Policy, Registry
from models.registry.schema import Requirement
from models.registry.store import open_store
from models.support.errors import CheckFailed, UsageError
from tests.models.registry.bucket_simulator import BucketSimulator
from tests.models.registry.conftest import checkpoint, report, to_live
from tests.models.registry.hub_simulator import LFS_FROM, HubSimulator


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """An S3 server of this process; returns a bucket's URL."""
    for name in ("s3fs", "moto", "flask", "flask_cors"):
        pytest.importorskip(name, reason=f"no {name} here: pip install s3fs 'moto[s3]' flask flask-cors")
    import s3fs
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *args: object, **more: object) -> None:
            """Keep quiet."""

    one_at_a_time, app = threading.Lock(), DomainDispatcherApplication(create_backend_app)

    def serve(environ: Any, start: Any) -> Any:
        with one_at_a_time:  # S3's conditional write is atomic; moto looks, and then writes
            return list(app(environ, start))

    server = make_server("127.0.0.1", 0, serve, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}"), ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"), ("AWS_DEFAULT_REGION", "us-east-1"), ("AWS_MAX_ATTEMPTS", "1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ):  # fmt: skip
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir("versions-of-a-test")
        yield "s3://versions-of-a-test"
        s3fs.S3FileSystem.clear_instance_cache()
    server.shutdown()


@pytest.fixture(scope="module")
def gcs() -> Iterator[BucketSimulator]:
    """A simulator of GCS that gcsfs turns to."""
    with BucketSimulator() as simulator, pytest.MonkeyPatch.context() as patch:
        # what kind of bucket it is gcsfs asks by gRPC, of Google alone; read when gcsfs is imported
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        pytest.importorskip("gcsfs", reason="no gcsfs here: pip install gcsfs")
        import fsspec

        patch.setenv("STORAGE_EMULATOR_HOST", simulator.url)
        patch.setenv("FSSPEC_GS_TOKEN", "anon")  # for other processes; this one has read the environment already
        for name in ("gs", "gcs"):
            patch.setitem(fsspec.config.conf, name, {"token": "anon"})
        fsspec.get_filesystem_class("gs").clear_instance_cache()
        yield simulator
        fsspec.get_filesystem_class("gs").clear_instance_cache()


@pytest.fixture
def gs(gcs: BucketSimulator) -> str:
    """A bucket's URL."""
    return f"gs://{gcs.bucket}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubSimulator]:
    with HubSimulator() as simulator:
        monkeypatch.setenv("HF_ENDPOINT", simulator.url)
        monkeypatch.setenv("HF_TOKEN", simulator.token)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        # Xet, the hub's own storage, has no simulator: large files go as Git LFS, which the hub takes too
        monkeypatch.setattr("huggingface_hub._commit_api.is_xet_available", lambda: False)
        yield simulator


BUCKETS = ("s3", "gs")


@pytest.fixture(params=BUCKETS)
def bucket(request: pytest.FixtureRequest) -> str:
    """A bucket's URL."""
    return str(request.getfixturevalue(request.param))


@pytest.fixture(params=[*BUCKETS, "hub"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place in a store."""
    if request.param in BUCKETS:
        return f"{request.getfixturevalue(request.param)}/{tmp_path.name}"
    request.getfixturevalue("hub")
    return "hf://ada/registry/some/folder"


def test_the_life_of_a_version(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry = Registry(open_store(url), tmp_path / "cache")
    assert registry.names() == []
    registry.set_policy("m", Policy(require=[Requirement(golden="set", min_accuracy=0.9)]))
    one = registry.register(checkpoint(tmp_path / "a", bytes(range(256)) * 8), "m", by="ada")
    to_live(registry, one)
    two = registry.register(checkpoint(tmp_path / "b", b"12345678"), "m", by="ada", parent="m@1")
    to_live(registry, two, right=970)
    registry.rollback("m", by="bob")
    again = Registry(open_store(url), tmp_path / "other-cache")  # somebody else, who has nothing but the store
    found = again.resolve("m@live")
    assert found.version == one and (found.folder / "model.safetensors").stat().st_size > LFS_FROM
    assert again.verify() == [] == again.gc(dry=True)
    assert not again.store.create("versions/m/000001.json", b"other") and again.find("m@1") == one
    orphan = tmp_path / "orphan"
    orphan.write_bytes(b"left over")
    again.store.put_files({"blobs/ab/ab" + "0" * 62: orphan})
    assert again.gc() == ["ab" + "0" * 62] and again.gc() == []
    assert fovea.main(["models", "registry", "list", "--store", url, "--json"]) == 0
    stages = {row["version"]: row["stage"] for row in json.loads(capsys.readouterr().out)["versions"]}
    assert stages == {"m@1": "live", "m@2": "retired"}
    with pytest.raises(FileNotFoundError):
        again.store.read("versions/m/000009.json")


def test_what_was_changed_in_the_store_is_found(url: str, tmp_path: Path) -> None:
    registry = Registry(open_store(url), tmp_path / "cache")
    one = registry.register(checkpoint(tmp_path / "a"), "m", by="ada")
    digest = one.files["model.safetensors"].sha256
    other = tmp_path / "other"
    other.write_bytes(b"something else")
    registry.store.put_files({f"blobs/{digest[:2]}/{digest}": other})
    (problem,) = registry.verify()
    assert problem.startswith("m@1: model.safetensors is corrupted")
    registry.store.delete(f"blobs/{digest[:2]}/{digest}")
    assert registry.verify() == ["m@1: model.safetensors is gone"]


def test_writers_at_the_same_time_lose_nothing(url: str, tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path / str(i), bytes([i]) * 8) for i in range(5)]

    def register(folder: Path) -> int:
        return Registry(open_store(url), tmp_path / "cache").register(folder, "m", by="ada").number

    with ThreadPoolExecutor(5) as pool:
        assert sorted(pool.map(register, folders)) == [1, 2, 3, 4, 5]
    registry = Registry(open_store(url), tmp_path / "cache")
    assert len({v.digest for v in registry.versions("m")}) == 5 and registry.verify() == []

    def approve(who: str) -> None:
        Registry(open_store(url), tmp_path / "cache").approve("m@1", by=who)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(approve, "abcd"))
    assert [e.seq for e in registry.events("m")] == [1, 2, 3, 4]
    assert sorted(registry.state("m").approvals[1]) == list("abcd")


def test_what_another_writer_added_is_there_at_once(url: str, tmp_path: Path) -> None:
    """A package that keeps listings would not find a file that came after it had looked."""
    mine = open_store(url)
    if (scheme := url.partition(":")[0]) in BUCKETS:  # somebody else's process has nothing in common with ours
        import fsspec

        fsspec.get_filesystem_class(scheme).clear_instance_cache()
    theirs = open_store(url)
    assert mine.create("blobs/ab/one", b"1") and mine.names("blobs/ab") == ["one"]
    other = tmp_path / "other"
    other.write_bytes(b"x" * 6_000_000)  # in pieces, where the store takes large files so
    theirs.put_files({"blobs/ab/two": other})
    with mine.open("blobs/ab/two") as file:
        assert file.read() == other.read_bytes()
    assert mine.names("blobs/ab") == ["one", "two"] and mine.read("blobs/ab/one") == b"1"
    assert mine.create("blobs/ab/two", b"2") is False
    for name in ("three", "four", "five", "six"):
        assert theirs.create(f"blobs/{name}/x", b"")
    assert mine.names("blobs") == ["ab", "five", "four", "six", "three"], "more than one page, folders once"


def _approve(url: str, who: str, cache: Path) -> None:
    registry = Registry(open_store(url), cache)
    for _ in range(4):
        registry.approve("m@1", by=who)


def test_processes_do_not_lose_each_others_events(bucket: str, tmp_path: Path) -> None:
    """What the conditional write is for: nobody shares a lock, a clock or a cache here."""
    url = f"{bucket}/{tmp_path.name}"
    registry = Registry(open_store(url), tmp_path / "cache")
    registry.register(checkpoint(tmp_path / "a"), "m", by="ada")
    with get_context("spawn").Pool(3) as pool:
        pool.starmap(_approve, [(url, who, tmp_path / who) for who in "abc"])
    assert [e.seq for e in registry.events("m")] == list(range(1, 13))
    assert sorted(registry.state("m").approvals[1]) == sorted("abc" * 4)


def test_two_promotions_at_once_leave_one_live(url: str, tmp_path: Path) -> None:
    registry = Registry(open_store(url), tmp_path / "cache")
    registry.set_policy("m", Policy(require=[Requirement(golden="set", min_accuracy=0.9)]))
    both = [registry.register(checkpoint(tmp_path / name, name.encode() * 8), "m", by="ada") for name in "ab"]
    for version in both:
        registry.attach(version.ref, report(version, 960), by="ada")
        registry.promote(version.ref, "canary", by="ada")
    with ThreadPoolExecutor(2) as pool:
        events = list(pool.map(lambda v: registry.promote(v.ref, "live", by="ada"), both))
    first, second = sorted(events, key=lambda e: e.seq)
    assert first.replaces is None and second.replaces == first.version
    assert list(registry.state("m").stages.values()).count("live") == 1


def test_a_store_that_goes_away_is_one_error_and_nothing_is_registered(
    url: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(open_store(url), tmp_path / "cache")
    one = registry.register(checkpoint(tmp_path / "a"), "m", by="ada")
    put: Callable[..., None] = registry.store.put_files
    back = _break(url, request, monkeypatch)

    def dies_after_the_files(files: Any) -> None:
        put(files)
        back(False)

    back(True)
    monkeypatch.setattr(registry.store, "put_files", dies_after_the_files)
    with pytest.raises(CheckFailed, match=r"the store failed: .*nothing was registered"):
        registry.register(checkpoint(tmp_path / "b", b"12345678"), "m", by="ada")
    with pytest.raises(CheckFailed, match="the store failed"):
        registry.versions("m")
    back(True)
    assert [v.ref for v in registry.versions("m")] == [one.ref] and len(registry.gc()) == 1


def _break(url: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Return what takes the store away (False) and brings it back (True)."""
    if url.startswith("hf://"):
        simulator = request.getfixturevalue("hub")

        def hub_there(there: bool) -> None:
            simulator.down = not there

        return hub_there
    import aiohttp
    import fsspec
    from botocore.exceptions import EndpointConnectionError

    # what both packages raise when they have given up to try again
    kind, call, error = {
        "s3": ("s3", "_call_s3", EndpointConnectionError(endpoint_url="http://gone")),
        "gs": ("gs", "_call", aiohttp.ClientConnectionError("gone")),
    }[url.partition(":")[0]]
    system = fsspec.get_filesystem_class(kind)
    whole = getattr(system, call)

    async def refused(self: Any, *args: Any, **more: Any) -> Any:
        raise error

    def there_or_not(there: bool) -> None:
        monkeypatch.setattr(system, call, whole if there else refused)

    return there_or_not


def test_gcs_refuses_what_is_there(gcs: BucketSimulator, gs: str, tmp_path: Path) -> None:
    """What makes two writers safe there, past the look beforehand, which two may take at once."""
    store = open_store(f"{gs}/{tmp_path.name}")
    refused = gcs.refused
    store.fs.exists = lambda path: False  # type: ignore[attr-defined]
    try:
        assert store.create("a/1.json", b"ours") is True
        assert store.create("a/1.json", b"theirs") is False
    finally:
        del store.fs.exists  # type: ignore[attr-defined]
    assert gcs.refused == refused + 1 and store.read("a/1.json") == b"ours"


def test_the_hub_refuses_a_commit_on_a_state_that_is_gone(hub: HubSimulator, tmp_path: Path) -> None:
    """What makes two writers safe there: the second's commit names a parent that is not the newest any more."""
    store = open_store("hf://ada/registry")
    commit = hub.commit
    meanwhile = [True]

    def somebody_else_first(lines: list[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
        if meanwhile.pop() if meanwhile else False:
            other = {"path": "a/1.json", "content": "eA==", "encoding": "base64"}
            commit([{"key": "header", "value": {"summary": "theirs"}}, {"key": "file", "value": other}])
        return commit(lines)

    hub.commit = somebody_else_first  # type: ignore[method-assign]
    assert store.create("a/1.json", b"ours") is False
    assert hub.refused == 1 and hub.files["a/1.json"] == b"x"
    assert store.create("a/2.json", b"ours") and hub.files["a/2.json"] == b"ours"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hf://ada", "names no repository"),
        ("hf://datasets/ada", "names no repository"),
        ("hf://ada/registry@v1", "names no repository"),
        ("hf://ada/other", "no such repository, or no access"),
        ("hf://datasets/ada/registry", "no such repository, or no access"),
    ],
)
def test_addresses_on_the_hub_that_are_wrong(hub: HubSimulator, tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Registry(open_store(url), tmp_path).register(checkpoint(tmp_path / "a"), "m", by="ada")
    assert len(hub.commits) == 1


def test_a_dataset_repository_is_a_store_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hub: HubSimulator
) -> None:
    hub.kind = "datasets"
    registry = Registry(open_store("hf://datasets/ada/registry"), tmp_path / "cache")
    one = registry.register(checkpoint(tmp_path / "a"), "m", by="ada")
    assert registry.resolve("m@1").version == one


def test_a_key_that_may_not_write_is_one_error(
    hub: HubSimulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(CheckFailed, match=r"the store failed: .*401"):
        Registry(open_store("hf://ada/registry"), tmp_path).register(checkpoint(tmp_path / "a"), "m", by="ada")
    assert len(hub.commits) == 1


def test_a_bucket_that_is_not_there(bucket: str, tmp_path: Path) -> None:
    registry = Registry(open_store(f"{bucket.partition(':')[0]}://no-such-bucket-here/x"), tmp_path)
    with pytest.raises(CheckFailed, match="the store failed"):
        registry.register(checkpoint(tmp_path / "a"), "m", by="ada")
    # nor was it made: a slip must not become a bucket
    assert not registry.store.fs.exists("no-such-bucket-here")  # type: ignore[attr-defined]


def test_nothing_listens_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(CheckFailed, match="the store failed"):
        Registry(open_store("hf://ada/registry"), tmp_path).names()
