"""What all tests have in common."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# how long an example takes says something about the machine, not about the code
settings.register_profile("fovea", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fovea")


class ByEngine(LoadScopeScheduling):
    """Shares tests out by file, but all that start an engine go to one worker, so that one stack runs at a time."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "engine" if "/e2e/" in file else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByEngine:
    """Return what gives `make test`'s workers their tests (xdist's own groups do nothing under pytest 9.2)."""
    return ByEngine(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what starts an engine: it takes longest."""
    items.sort(key=lambda item: "/e2e/" not in item.nodeid)
