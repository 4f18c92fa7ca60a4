"""How `make test` shares the tests out over its two workers."""

from __future__ import annotations

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what starts an engine first and on one worker, one stack at a time; the rest goes file by file."""
    for item in items:
        file = item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group("engine" if "/e2e/" in file else file))
    items.sort(key=lambda item: "/e2e/" not in item.nodeid)
