"""Every test has the simulators' key in the environment."""

from __future__ import annotations

import pytest

from tests.distill.simulator import KEY, KEY_VARIABLE


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
