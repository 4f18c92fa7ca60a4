"""Versions are immutable, stages follow the rules, writers do not lose each other, damage is found and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.evaluation import target
from models.registry import Policy, Registry, Version, open_registry
from models.registry.files import read_mark
from models.registry.gates import difference_low
from models.registry.schema import File, Requirement, version_digest
from models.registry.store import FolderStore, open_store
from models.registry_view_cli import diff
from models.stats import wilson
from models.support.errors import CheckFailed, UsageError
from tests.models.registry.conftest import checkpoint, report, to_live


def test_register_records_everything(registry: Registry, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a")
    (folder / "sub").mkdir()
    (folder / "sub" / "notes.txt").write_text("x")
    (folder / ".hidden").write_text("x")
    (folder / "training.pt").write_bytes(b"x")
    version = registry.register(folder, "m", by="ada", data={"set": "d1"}, licence="MIT", recipe={"steps": 3})
    assert version.ref == "m@1" and version.by == "ada" and version.data == {"set": "d1"}
    assert sorted(version.files) == ["config.json", "model.safetensors", "sub/notes.txt"]
    assert version.family is None  # two families of the catalog have this architecture
    assert registry.find("m") == registry.find("m@1") == version
    assert registry.register(folder, "m", by="bob", parent="m@1", family="qwen2.5-vl").parent == "m@1"
    assert registry.find("m@2").family == "qwen2.5-vl"
    assert registry.find("m@2").digest == version.digest


def test_resolve_gives_the_files_and_says_which_version_they_are(registry: Registry, one: Version) -> None:
    found = registry.resolve("m@1")
    assert found.stage == "candidate"
    assert json.loads((found.folder / "fovea-version.json").read_text()) == {
        "name": "m",
        "version": 1,
        "digest": one.digest,
    }
    for name, file in one.files.items():
        assert (found.folder / name).stat().st_size == file.bytes
    assert registry.resolve("m").folder == found.folder


def test_a_version_is_served_from_the_files_that_were_checked_out(
    registry: Registry, one: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`fovea models evaluate m@1`; that a folder is served and asked is seen in tests/e2e."""
    seen: list[tuple[dict[str, object] | None, str, str | None]] = []

    @contextmanager
    def served_folder(source: Path, name: str, *, shown: str | None = None) -> Iterator[str]:
        seen.append((read_mark(source), name, shown))
        yield "http://127.0.0.1:1/v1"

    monkeypatch.setattr(target, "served_folder", served_folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with target.served_version("m@1", str(tmp_path / "store")) as found:
        assert found == ("http://127.0.0.1:1/v1", "m")
    assert seen == [({"name": "m", "version": 1, "digest": one.digest}, "m", "m@1")]


def test_stages_follow_one_another(registry: Registry, one: Version) -> None:
    with pytest.raises(UsageError, match="m@1 is candidate"):
        registry.promote("m@1", "live", by="ada")
    to_live(registry, one)
    assert registry.find("m@live") == one
    with pytest.raises(UsageError, match="m@1 is live"):
        registry.promote("m@1", "canary", by="ada")
    registry.promote("m@1", "retired", by="ada")
    with pytest.raises(UsageError, match="no version is live"):
        registry.resolve("m@live")


def test_nothing_is_promoted_without_a_passing_report(registry: Registry, one: Version, tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="no report on set"):
        registry.promote("m@1", "canary", by="ada")
    registry.attach("m@1", report(one, 910), by="ada")  # 0.91, but its interval begins at 0.891
    with pytest.raises(CheckFailed, match=r"low end is 0\.89\d+, 0\.9 is needed"):
        registry.promote("m@1", "canary", by="ada")
    registry.attach("m@1", report(one, 50, n=50), by="ada")
    with pytest.raises(CheckFailed, match="50 items, 100 are needed"):
        registry.promote("m@1", "canary", by="ada")
    registry.attach("m@1", report(one, 950), by="ada")
    registry.promote("m@1", "canary", by="ada")
    other = registry.register(checkpoint(tmp_path / "other"), "no-policy", by="ada")
    registry.attach(other.ref, report(other, 1000), by="ada")
    with pytest.raises(CheckFailed, match="no policy"):
        registry.promote(other.ref, "canary", by="ada")


def test_a_worse_version_does_not_replace_the_live_one(registry: Registry, one: Version, tmp_path: Path) -> None:
    to_live(registry, one, right=990)
    two = registry.register(checkpoint(tmp_path / "b", b"12345678"), "m", by="ada", parent="m@1")
    registry.attach(two.ref, report(two, 940), by="ada")
    with pytest.raises(CheckFailed, match=r"may be 0\.06"):
        registry.promote(two.ref, "canary", by="ada")
    assert registry.find("m@live") == one
    registry.attach(two.ref, report(two, 985), by="ada")
    registry.promote(two.ref, "canary", by="ada")
    registry.promote(two.ref, "live", by="ada")
    assert registry.find("m@live") == two and registry.state("m").stages[1] == "retired"


def test_rollback_restores_the_version_before(registry: Registry, one: Version, tmp_path: Path) -> None:
    to_live(registry, one)
    with pytest.raises(UsageError, match="no version was live before"):
        registry.rollback("m", by="ada")
    two = registry.register(checkpoint(tmp_path / "b", b"12345678"), "m", by="ada")
    to_live(registry, two, right=970)
    event = registry.rollback("m", by="bob", note="p95 doubled")
    assert (event.version, event.replaces, event.rollback, event.by) == (1, 2, True, "bob")
    assert registry.find("m@live") == one
    assert [e.what for e in registry.events("m")].count("stage") == 5  # nothing is erased


def test_rollback_refuses_a_damaged_version(registry: Registry, one: Version, tmp_path: Path) -> None:
    to_live(registry, one)
    two = registry.register(checkpoint(tmp_path / "b", b"12345678"), "m", by="ada")
    to_live(registry, two, right=970)
    _damage(registry, one, "model.safetensors")
    with pytest.raises(CheckFailed, match=r"m@1 is damaged: m@1: model\.safetensors is corrupted"):
        registry.rollback("m", by="ada")
    assert registry.find("m@live") == two


def test_two_persons(registry: Registry, one: Version) -> None:
    rule = Requirement(golden="set", min_accuracy=0.9)
    registry.set_policy("m", Policy(require=[rule], two_person=True))
    registry.attach("m@1", report(one, 960), by="ada")
    registry.promote("m@1", "canary", by="ada")
    registry.approve("m@1", by="ada")
    with pytest.raises(CheckFailed, match="nobody but ada"):
        registry.promote("m@1", "live", by="bob")
    registry.approve("m@1", by="bob")
    registry.promote("m@1", "live", by="ada")


def test_a_report_belongs_to_the_version_it_was_made_of(registry: Registry, one: Version, tmp_path: Path) -> None:
    two = registry.register(checkpoint(tmp_path / "b", b"12345678"), "m", by="ada")
    with pytest.raises(UsageError, match="is not a report on m@1"):
        registry.attach("m@1", report(two, 960), by="ada")
    for broken in ({"kind": "loadtest"}, {"run": {"stopped": "spend limit"}}):
        with pytest.raises(UsageError, match="not a finished evaluation"):
            registry.attach("m@1", report(one, 960) | broken, by="ada")
    assert registry.events("m") == []


def _damage(registry: Registry, version: Version, name: str) -> None:
    assert isinstance(registry.store, FolderStore)
    digest = version.files[name].sha256
    path = registry.store.root / "blobs" / digest[:2] / digest
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")


def test_verify_names_the_corrupted_shard(registry: Registry, one: Version) -> None:
    assert registry.verify() == []
    _damage(registry, one, "model.safetensors")
    (problem,) = registry.verify(["m"])
    assert problem.startswith("m@1: model.safetensors is corrupted")
    with pytest.raises(CheckFailed, match=r"model\.safetensors is corrupted"):
        registry.resolve("m@1")
    assert not list(registry.cache.iterdir())  # no half checkout
    assert isinstance(registry.store, FolderStore)
    digest = one.files["config.json"].sha256
    registry.store.delete(f"blobs/{digest[:2]}/{digest}")
    assert "m@1: config.json is gone" in registry.verify()


def test_gc_removes_only_what_no_version_has(registry: Registry, one: Version, tmp_path: Path) -> None:
    orphan = tmp_path / "orphan"
    orphan.write_bytes(b"left over")
    registry.store.put_files({"blobs/ab/ab" + "0" * 62: orphan})
    assert registry.gc(dry=True) == ["ab" + "0" * 62] == registry.gc()
    assert registry.gc() == [] == registry.verify()


def test_concurrent_registrations_get_their_own_numbers(registry: Registry, tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path / str(i), bytes([i]) * 8) for i in range(12)]
    with ThreadPoolExecutor(12) as pool:
        made = list(pool.map(lambda f: registry.register(f, "m", by="ada"), folders))
    assert sorted(v.number for v in made) == list(range(1, 13))
    assert len({v.digest for v in registry.versions("m")}) == 12
    assert registry.verify() == []


def _approve(where: str, who: str) -> None:
    registry = open_registry(where)
    for _ in range(5):
        registry.approve("m@1", by=who)


def test_processes_do_not_lose_each_others_events(registry: Registry, one: Version) -> None:
    with get_context("spawn").Pool(3) as pool:
        pool.starmap(_approve, [(registry.store.where, who) for who in ("a", "b", "c")])
    assert [e.seq for e in registry.events("m")] == list(range(1, 16))
    assert sorted(registry.state("m").approvals[1]) == ["a"] * 5 + ["b"] * 5 + ["c"] * 5


def test_only_one_of_two_promotions_to_live_starts_from_a_state_that_is_gone(
    registry: Registry, one: Version, tmp_path: Path
) -> None:
    registry.set_policy("m", Policy(require=[Requirement(golden="set", min_accuracy=0.9)]))
    two = registry.register(checkpoint(tmp_path / "b", b"12345678"), "m", by="ada")
    for version in (one, two):
        registry.attach(version.ref, report(version, 960), by="ada")
        registry.promote(version.ref, "canary", by="ada")
    with pytest.raises(UsageError, match="versions 1, 2 are canary"):
        registry.find("m@canary")
    with ThreadPoolExecutor(2) as pool:
        events = list(pool.map(lambda v: registry.promote(v.ref, "live", by="ada"), (one, two)))
    first, second = sorted(events, key=lambda e: e.seq)
    assert first.replaces is None and second.replaces == first.version
    assert list(registry.state("m").stages.values()).count("live") == 1


class FailingStore(FolderStore):
    """A disk that is full after so many bytes."""

    def __init__(self, root: Path, files: int):
        super().__init__(root)
        self.left = files

    def put_file(self, path: str, source: Path) -> None:
        self.left -= 1
        if self.left < 0:
            raise CheckFailed("the store failed: No space left on device", field="store", value=self.where)
        super().put_file(path, source)


def test_a_store_that_fails_midway_registers_nothing(tmp_path: Path) -> None:
    store = FailingStore(tmp_path / "store", files=1)
    registry = Registry(store, tmp_path / "cache")
    folder = checkpoint(tmp_path / "a")
    with pytest.raises(CheckFailed, match="No space left"):
        registry.register(folder, "m", by="ada")
    assert registry.names() == []
    store.left = 99
    assert registry.register(folder, "m", by="ada").number == 1 and registry.verify() == []


def test_a_store_that_disappears_is_one_error(registry: Registry, one: Version, tmp_path: Path) -> None:
    assert isinstance(registry.store, FolderStore)
    shutil.rmtree(registry.store.root)
    registry.store.root.write_text("a file in its place")
    with pytest.raises(CheckFailed, match="the store failed: Not a directory"):
        registry.register(checkpoint(tmp_path / "b"), "m", by="ada")


def test_memory_file_system_as_the_store(tmp_path: Path) -> None:
    """The same through fsspec, where folders are URLs."""
    registry = Registry(open_store(f"memory://{tmp_path.name}/registry"), tmp_path / "cache")
    registry.set_policy("m", Policy(require=[Requirement(golden="set", min_accuracy=0.9)]))
    one = registry.register(checkpoint(tmp_path / "a"), "m", by="ada")
    to_live(registry, one)
    assert registry.resolve("m@live").version == one and registry.verify() == []
    assert not registry.store.create("versions/m/000001.json", b"other")
    assert registry.find("m@1") == one


@pytest.mark.parametrize("name", ["", "../m", "a/b", ".m", "x" * 64, "ä"])
def test_names_stay_inside_the_store(registry: Registry, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is not a name"):
        registry.register(checkpoint(tmp_path / "a"), name, by="ada")
    with pytest.raises(UsageError, match="is not a name"):
        registry.find(f"{name}@1")


def test_unknown_names_and_versions(registry: Registry, one: Version) -> None:
    for ref, message in (("n@1", "is not in the registry"), ("m@7", "no such version"), ("m@first", "no such version")):
        with pytest.raises(UsageError, match=message):
            registry.find(ref)


def test_content_that_is_not_what_it_says(registry: Registry, tmp_path: Path) -> None:
    cases: list[tuple[Path, dict[str, Any], str]] = []
    empty = tmp_path / "empty"
    empty.mkdir()
    cases.append((empty, {}, "no such folder, or it is empty"))
    cut = checkpoint(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-3])
    cases.append((cut, {}, "corrupted shard: .* where its header says"))
    noise = checkpoint(tmp_path / "noise")
    (noise / "model.safetensors").write_bytes(b"\xff" * 40)
    cases.append((noise, {}, "corrupted shard: its header cannot be read"))
    shard = checkpoint(tmp_path / "shard")
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (shard / "model.safetensors.index.json").write_text(json.dumps(index))
    cases.append((shard, {}, r"shard model-00002\.safetensors is missing"))
    cases.append((checkpoint(tmp_path / "other"), {"family": "whisper"}, "the checkpoint is Qwen2_5_VL"))
    cases.append((checkpoint(tmp_path / "who"), {"family": "qwen2.5-lv"}, "unknown model"))
    cases.append((checkpoint(tmp_path / "bundle"), {"kind": "prompts"}, "is not a prompt file"))
    cases.append((checkpoint(tmp_path / "gold"), {"kind": "golden"}, r"has no golden\.jsonl"))
    for folder, more, message in cases:
        with pytest.raises(UsageError, match=message):
            registry.register(folder, "m", by="ada", **more)
    assert registry.names() == []


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_for_a_shard_give_one_typed_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    from models.registry.content import check_safetensors

    path = tmp_path_factory.mktemp("x") / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(UsageError, match="corrupted shard"):
        check_safetensors(path)


def test_prompts_and_golden_sets_are_versioned_too(registry: Registry, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "answer.jinja").write_text("{{ question }}")
    bundle = registry.register(prompts, "prompts", by="ada", kind="prompts")
    registry.promote(bundle.ref, "canary", by="ada")
    registry.promote(bundle.ref, "live", by="ada")
    assert (registry.resolve("prompts@live").folder / "answer.jinja").read_text() == "{{ question }}"
    from models.golden import load_golden
    from models.golden.sets import export

    export(load_golden("modems"), tmp_path / "golden")
    golden = registry.register(tmp_path / "golden", "modems", by="ada", kind="golden")
    assert load_golden(registry.resolve(golden.ref).folder).digest == load_golden("modems").digest


def test_diff(registry: Registry, one: Version, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "b", b"12345678")
    (folder / "README.md").write_text("card")
    two = registry.register(folder, "m", by="bob", parent="m@1", licence="MIT")
    registry.attach("m@2", report(two, 960), by="bob")
    found = diff(registry, one, two)
    assert (found["added"], found["removed"], found["changed"]) == (["README.md"], [], ["model.safetensors"])
    assert found["fields"] == {"parent": [None, "m@1"], "licence": [None, "MIT"], "by": ["ada", "bob"]}
    assert found["accuracy"]["set"]["m@2"]["value"] == 0.96


@given(
    st.dictionaries(st.text("ab/", min_size=1, max_size=4), st.sampled_from(["0" * 64, "1" * 64]), min_size=1),
    st.text("ab/", min_size=1, max_size=4),
)
def test_the_digest_depends_on_every_path_and_content(files: dict[str, str], path: str) -> None:
    made = {name: File(sha256=digest, bytes=1) for name, digest in files.items()}
    again = dict(reversed(made.items()))
    assert version_digest(made) == version_digest(again)
    changed = made | {path: File(sha256="2" * 64, bytes=1)}
    assert version_digest(changed) != version_digest(made)


def test_difference_low_is_newcombes() -> None:
    # Newcombe 1998, table II, case (a): 56/70 against 48/80: 0.0524 to 0.3339 by method 10
    new, old = wilson(56, 70).as_dict(), wilson(48, 80).as_dict()
    assert difference_low(new, old) == pytest.approx(0.0524, abs=5e-5)
    assert difference_low(wilson(0, 0).as_dict(), old) == -1
