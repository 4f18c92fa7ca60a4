"""API keys: their form, what is kept, both stores, and `fovea keys`."""

from __future__ import annotations

import asyncio
import json
import re
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import fovea
from serving.errors import StoreDown
from serving.keys import Key, hash_secret, make_key, open_keys, revoked_at, split_key
from serving.keys_cli import seconds_of
from serving.runtime import free_port


def test_a_key_matches_itself_and_nothing_else() -> None:
    text, key = make_key("acme")
    parts = split_key(text)
    assert parts and parts[0] == key.id and key.matches(parts[1])
    assert parts[1] not in repr(key)
    other, another = make_key("acme")
    assert another.id != key.id and another.salt != key.salt and another.hash != key.hash
    assert not key.matches(split_key(other)[1])  # type: ignore[index]
    assert hash_secret(parts[1], another.salt) != key.hash


@given(st.text())
def test_no_text_breaks_the_reading_of_a_key(text: str) -> None:
    found = split_key(text)
    assert found is None or f"fovea_{found[0]}_{found[1]}" == text


@given(st.text(alphabet="ab_-Z9", min_size=43, max_size=43), st.integers(0, 42))
def test_one_other_character_is_another_key(secret: str, place: int) -> None:
    key = Key("i" * 12, "0" * 32, hash_secret(secret, "0" * 32), "acme")
    changed = secret[:place] + ("x" if secret[place] != "x" else "y") + secret[place + 1 :]
    assert key.matches(secret) and not key.matches(changed)


def test_states() -> None:
    _, key = make_key("acme", expires=100)
    assert [key.state(now) for now in (99.9, 100)] == ["active", "expired"]
    assert revoked_at(key, 50).state(50) == "revoked" and revoked_at(key, 50).state(49) == "active"
    assert revoked_at(revoked_at(key, 50), 70).revoked == 50  # a rotation does not revive a revoked key


async def test_a_store_keeps_keys_and_tells_only_changes(location: str) -> None:
    store = open_keys(location)
    _, key = make_key("acme", role="auditor", label="Jürgens Schlüssel", lane="batch", expires=2e9)
    await store.put(key)
    version, keys = await store.snapshot(None) or (0, {})
    assert keys == {key.id: key}
    assert await store.snapshot(version) is None
    other = open_keys(location)  # another process
    await other.put(replace(key, revoked=5.0))
    changed = await store.snapshot(version)
    assert changed and changed[0] > version and changed[1][key.id].revoked == 5.0
    for one in (store, other):
        await one.close()


async def test_the_secret_is_not_in_the_store(location: str, request: pytest.FixtureRequest) -> None:
    store = open_keys(location)
    text, key = make_key("acme")
    await store.put(key)
    await store.close()
    if location.startswith("valkey"):
        client = request.getfixturevalue("valkey_server").client()
        held = b"".join(part for pair in client.hgetall("fovea:keys").items() for part in pair)
    else:
        file = Path(location)
        held = b"".join(path.read_bytes() for path in file.parent.iterdir())
        assert stat.S_IMODE(file.stat().st_mode) == 0o600  # noqa: ASYNC240
    assert key.id.encode() in held and text.split("_", 2)[2].encode() not in held and text.encode() not in held


async def test_many_at_once_lose_nothing(location: str) -> None:
    keys = [make_key("acme")[1] for _ in range(30)]
    stores = [open_keys(location) for _ in range(3)]
    await asyncio.gather(*(stores[number % 3].put(key) for number, key in enumerate(keys)))
    version, found = await stores[0].snapshot(None) or (0, {})
    assert found == {key.id: key for key in keys} and version == 30
    for store in stores:
        await store.close()


async def test_a_store_that_is_not_there_says_so(tmp_path: Path) -> None:
    (tmp_path / "other.db").write_text("this is no database, but a long enough text to be read as one" * 20)
    (tmp_path / "folder").mkdir()
    url = f"valkey://user:hunter2@127.0.0.1:{free_port()}/0"
    for location in (str(tmp_path / "absent.db"), str(tmp_path / "other.db"), str(tmp_path / "folder"), url):
        store = open_keys(location)
        with pytest.raises(StoreDown) as caught:
            await store.snapshot(None)
        assert "hunter2" not in str(caught.value)
        await store.close()
    assert not (tmp_path / "absent.db").exists()


# fovea keys


@pytest.fixture
def stack_file(tmp_path: Path, location: str) -> Path:
    path = tmp_path / "stack.yaml"
    tenants = [{"name": "acme"}, {"name": "other"}]
    stack = {"models": [{"name": "m", "source": "org/m"}], "identify": {"keys": location, "tenants": tenants}}
    path.write_text(yaml.safe_dump(stack))
    return path


def keys(capsys: pytest.CaptureFixture[str], stack: Path, *args: str) -> Any:
    """Run `fovea keys ... --json` and return what it printed."""
    assert fovea.main(["keys", *args, "--stack", str(stack), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_keys_life_on_the_command_line(stack_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = keys(capsys, stack_file, "create", "--tenant", "acme", "--role", "operator", "--expires", "2h")
    assert split_key(made["key"]) and abs(made["expires"] - time.time() - 7200) < 60
    (row,) = keys(capsys, stack_file, "list")
    assert row == {name: value for name, value in made.items() if name != "key"}
    successor = keys(capsys, stack_file, "rotate", made["id"], "--grace", "1h")
    rows = {row["id"]: row for row in keys(capsys, stack_file, "list")}
    assert rows[made["id"]]["state"] == "active" and abs(rows[made["id"]]["revoked"] - time.time() - 3600) < 60
    assert rows[successor["id"]]["role"] == "operator" and rows[successor["id"]]["expires"] == made["expires"]
    assert keys(capsys, stack_file, "revoke", made["id"])["state"] == "revoked"
    assert keys(capsys, stack_file, "list", "--tenant", "other") == []
    assert fovea.main(["keys", "rotate", made["id"], "--stack", str(stack_file)]) == 2
    assert "revoked" in capsys.readouterr().err


def test_a_new_key_alone_is_on_standard_output(stack_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fovea.main(["keys", "create", "--tenant", "acme", "--stack", str(stack_file)]) == 0
    shown = capsys.readouterr()
    assert re.fullmatch(r"fovea_\w{12}_[\w-]{43}\n", shown.out) and shown.out.strip() not in shown.err
    assert fovea.main(["keys", "list", "--stack", str(stack_file)]) == 0
    assert "active" in (listed := capsys.readouterr().out) and shown.out.split("_", 2)[2].strip() not in listed


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["create", "--tenant", "nobody"], "no such tenant"),
        (["create", "--tenant", "acme", "--expires", "soon"], "not a time"),
        (["create", "--tenant", "acme", "--expires", "-1d"], "not a time"),
        (["list", "--tenant", "nobody"], "no such tenant"),
    ],
)
def test_bad_usage_is_refused(stack_file: Path, capsys: pytest.CaptureFixture[str], args: list[str], says: str) -> None:
    if args[-2:] == ["--expires", "-1d"]:
        args = [*args[:-2], "--expires=-1d"]
    assert fovea.main(["keys", *args, "--stack", str(stack_file)]) == 2
    assert says in capsys.readouterr().err


def test_an_unknown_key_is_refused(stack_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys(capsys, stack_file, "create", "--tenant", "acme")
    assert fovea.main(["keys", "revoke", "x" * 12, "--stack", str(stack_file)]) == 2
    assert "no such key" in capsys.readouterr().err


def test_a_stack_without_keys_has_none_to_make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "stack.yaml"
    path.write_text("models: [{name: m, source: org/m}]")
    assert fovea.main(["keys", "create", "--tenant", "acme", "--stack", str(path)]) == 2
    assert "identify" in capsys.readouterr().err


def test_times() -> None:
    assert [seconds_of(text, "x") for text in ("5m", "12h", "90d")] == [300, 43_200, 7_776_000]
