"""What all tests have in common."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# how long an example takes says something about the machine, not about the code
settings.register_profile("fovea", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fovea")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what starts an engine first and on one worker of `make test`, one stack at a time; the rest goes by file."""
    for item in items:
        file = item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group("engine" if "/e2e/" in file else file))
    items.sort(key=lambda item: "/e2e/" not in item.nodeid)
