"""`fovea cache`, and which model version it is."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

import fovea
from serving.recall.version import BLOCK, EDGE, SMALL, version_of
from serving.stack import Model
from tests.serving.test_recall import House


def cache(capsys: pytest.CaptureFixture[str], stack: Path, *args: str) -> Any:
    assert fovea.main(["cache", *args, "--stack", str(stack), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_purging_from_outside(location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "stack.yaml"
    file.write_text(
        yaml.safe_dump({"models": [{"name": "recall-test", "source": "x/y"}], "recall": {"store": location}})
    )

    async def states() -> list[str]:
        house = House(store=location)
        tag = (b"x-fovea-cache-tags", b"sku-1")
        found = [await house.state(tag), await house.state(seed=2)]
        await house.close()
        return found

    assert asyncio.run(states()) == ["miss", "miss"]
    stats = cache(capsys, file, "stats")
    assert stats["entries"] == 2 and stats["bytes"] > 100 and stats["purges"] == {}
    assert cache(capsys, file, "purge", "--tag", "sku-1") == {"purged": ["tag:sku-1"]}
    assert asyncio.run(states()) == ["miss", "hit"]
    assert cache(capsys, file, "purge", "--all", "--tenant", "a") == {"purged": ["all", "tenant:a"]}
    assert asyncio.run(states()) == ["miss", "miss"]
    assert cache(capsys, file, "stats")["purges"] == {"tag:sku-1": 1, "all": 1, "tenant:a": 1}


@pytest.mark.parametrize(
    ("section", "args", "says"),
    [
        (None, ["stats"], "add the section `recall`"),
        ({}, ["stats"], "own memory"),
        ({"store": "x.db"}, ["purge"], "say what to forget"),
    ],
)
def test_bad_usage(
    section: Any, args: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "stack.yaml"
    file.write_text(yaml.safe_dump({"models": [{"name": "m", "source": "x/y"}], "recall": section}))
    assert fovea.main(["cache", *args, "--stack", str(file)]) == 2
    assert says in capsys.readouterr().err


def test_a_server_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "stack.yaml"
    store = "valkey://user:hunter2@127.0.0.1:1/0"
    file.write_text(yaml.safe_dump({"models": [{"name": "m", "source": "x/y"}], "recall": {"store": store}}))
    assert fovea.main(["cache", "purge", "--all", "--stack", str(file)]) == 1
    said = capsys.readouterr().err
    assert "does not answer" in said and "hunter2" not in said


# versions


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "processor_config.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(SMALL + 8 * EDGE)
    return folder


def version(folder: Path, **more: Any) -> str:
    return version_of(Model(name="m", source=str(folder), **more))


def test_a_version_is_of_the_content(checkpoint: Path, tmp_path: Path) -> None:
    first = version(checkpoint)
    os.utime(checkpoint / "model.safetensors", (1, 1))
    copy = tmp_path / "copy"
    checkpoint.rename(copy)
    assert version(copy) == first
    assert version(copy, replicas=3) == first


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "chat_template.jinja"])
def test_small_files_count_whole(checkpoint: Path, name: str) -> None:
    first = version(checkpoint)
    (checkpoint / name).write_text("{ }")
    assert version(checkpoint) != first


@pytest.mark.parametrize("place", [0, EDGE - 1, (SMALL + 8 * EDGE) // 64 + BLOCK - 1, SMALL + 8 * EDGE - 1])
def test_weights_count(checkpoint: Path, place: int) -> None:
    first = version(checkpoint)
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.seek(place)
        file.write(b"x")
    assert version(checkpoint) != first


@pytest.mark.parametrize(
    "more", [{"dtype": "float32"}, {"quantization": "awq"}, {"max_model_len": 64}, {"engine_args": {"seed": 1}}]
)
def test_settings_count(checkpoint: Path, more: dict[str, Any]) -> None:
    assert version(checkpoint, **more) != version(checkpoint)


def test_a_hub_model_without_files_is_new_every_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = Model(name="m", source="nobody/nothing-of-this-name")
    assert version_of(model) != version_of(model)
