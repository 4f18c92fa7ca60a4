"""What the tests of the load tester share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from loadtest.config import RunConfig, make_config
from tests.loadtest.server import Decide, Plan, Server


class Addressed(Protocol):
    """What can be loaded: anything with a base URL."""

    @property
    def url(self) -> str: ...


@dataclass(frozen=True)
class At:
    """A base URL alone, for servers that are no `Server`."""

    url: str


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers that end with the test."""
    running: list[Server] = []

    def start(decide: Decide | Plan | None = None, **options: Any) -> Server:
        server = Server(decide, **options)
        running.append(server.__enter__())
        return server

    yield start
    for server in running:
        server.__exit__()


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    """A JSONL workload of 20 questions whose right answer is yes."""
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"id": f"q{i}", "prompt": f"Is {i} a number?", "expected": "yes"}) for i in range(20)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def config_for(server: Addressed, workload: str, **values: Any) -> RunConfig:
    """Return a config against `server`; fields of the traffic class may be given along with those of the run."""
    fields = (
        "rate",
        "concurrency",
        "think_s",
        "slo",
        "arrival",
        "arrival_options",
        "workload_options",
        "trace",
        "extra",
    )
    traffic = {k: values.pop(k) for k in fields if k in values}
    base: dict[str, Any] = {"url": server.url, "model": "m", "timeout_s": 5, "max_slip_ms": 5000}
    return make_config(**{**base, **values}, classes=[{"name": "main", "workload": workload, **traffic}])
