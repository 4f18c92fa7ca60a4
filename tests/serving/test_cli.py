"""`fovea serve --check` and `--schema`: nothing is started."""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import shlex
import sqlite3
import threading
from pathlib import Path

import pytest
from PIL import Image

from models.support.errors import UsageError
from serving import cli
from serving.keys import make_key
from serving.keys_sqlite import SqliteKeys
from serving.stack import Stack

GOOD = "models:\n  - {name: a, source: org/a}\n"


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    args = parser.parse_args(arguments)
    return int(args.run(args))


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    path = tmp_path / "stack.yaml"
    path.write_text(GOOD)
    return path


def test_schema_is_json_schema_and_needs_no_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("--schema", str(tmp_path / "absent.yaml")) == 0
    assert json.loads(capsys.readouterr().out) == Stack.model_json_schema()


def test_check_says_ok(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(stack), "--check") == 0
    assert capsys.readouterr().out == f"{stack}: 1 model(s), ok\n"


def test_check_as_json_is_the_whole_stack(stack: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(stack), "--check", "--json", "--port", "9000", "--host", "::1") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["listen"] == {"host": "::1", "port": 9000, "public": False}
    assert Stack.model_validate(data).models[0].name == "a"


@pytest.mark.parametrize("arguments", [["--port", "0"], ["--port", "65536"], ["--host", "0.0.0.0"]])
def test_overrides_are_checked_too(stack: Path, arguments: list[str]) -> None:
    with pytest.raises(UsageError, match="listen"):
        run(str(stack), "--check", *arguments)


def test_a_checkpoint_that_is_not_there_is_told_at_once(stack: Path) -> None:
    stack.write_text("models:\n  - {name: a, source: ./no/such/folder}\n")
    with pytest.raises(UsageError) as caught:
        run(str(stack), "--check")
    assert caught.value.field == "models.source" and caught.value.value == "./no/such/folder"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        run(str(tmp_path / "absent.yaml"), "--check")


def test_the_command_to_paste_holds_a_picture_and_survives_the_shell() -> None:
    words = shlex.split(cli.paste("http://127.0.0.1:8000/v1", "m"))
    assert words[0] == "curl" and "http://127.0.0.1:8000/v1/chat/completions" in words
    assert words[words.index("-H") + 1] == "content-type: application/json"
    body = json.loads(words[words.index("-d") + 1])
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        assert picture.convert("RGB").getpixel((32, 32)) == (255, 0, 0)


def test_events(capsys: pytest.CaptureFixture[str]) -> None:
    cli.Events(as_json=True).say("ready", url="u")
    line = json.loads(capsys.readouterr().out)
    assert (line["event"], line["url"]) == ("ready", "u") and line["seconds"] >= 0
    cli.Events(as_json=False).say("ready")
    told = capsys.readouterr()
    assert told.out == "" and told.err.endswith("s] ready\n")


def test_a_stack_with_keys_needs_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, keys = tmp_path / "stack.yaml", tmp_path / "keys.db"
    path.write_text(f"{GOOD}identify: {{keys: {keys}, tenants: [{{name: acme}}]}}\nlisten: {{host: 0.0.0.0}}\n")
    for _ in range(2):
        with pytest.raises(UsageError) as caught:  # no file, then a file without a key
            run(str(path), "--check")
        assert caught.value.field == "identify.keys" and "fovea keys create --tenant acme" in str(caught.value.fix)
        asyncio.run(SqliteKeys(str(keys)).put(make_key("acme")[1]))
        with sqlite3.connect(keys) as database:
            database.execute("DELETE FROM keys")
    asyncio.run(SqliteKeys(str(keys)).put(make_key("acme")[1]))
    assert run(str(path), "--check") == 0


def test_the_pasted_command_takes_the_key_from_the_environment() -> None:
    assert "$FOVEA_API_KEY" in cli.paste("http://x/v1", "m", key=True)
    assert "FOVEA_API_KEY" not in cli.paste("http://x/v1", "m")


@pytest.mark.parametrize("error", [UsageError("no such model"), RuntimeError("Ray is busy"), TimeoutError()])
def test_an_update_that_fails_leaves_what_serves(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def again() -> Stack:
        raise error

    old = Stack.model_validate({"models": [{"name": "a", "source": "x/y"}]})
    assert cli.reload(old, again, cli.Events(True), threading.Event()) is old
    (event,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert event["updated"] is False and (str(error) or "TimeoutError") in event["event"]
