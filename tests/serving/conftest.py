"""What all serving tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from serving.layers.admit import Admit, Gate
from serving.layers.screen import Screen
from serving.middleware import Straight


@pytest.fixture(autouse=True)
def fresh_process_state(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a replica keeps per process starts anew for every test, and nothing is left inside after it."""
    monkeypatch.setattr(Admit, "gate", Gate())
    monkeypatch.setattr(Straight, "target", None)
    monkeypatch.setattr(Straight, "prefix", "")
    monkeypatch.setattr(Screen, "held", 0)
    yield
    assert Admit.gate.inside == 0 and Admit.gate.empty.is_set()
