"""Changing a stack while it serves: what is refused before anything is touched.  The rest is in tests/e2e."""

from __future__ import annotations

from typing import Any

import pytest

from models.support.errors import UsageError
from serving.stack import Stack
from serving.update import check_update

A, B = {"name": "a", "source": "x/a"}, {"name": "b", "source": "x/b"}


def stack(*models: dict[str, Any], **more: Any) -> Stack:
    return Stack.model_validate({"models": list(models), **more})


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (stack(A), stack(A, listen={"port": 9000}), "listen"),
        (stack(A), stack(A, B), "front: always"),
        (stack(A, B), stack(A), "front: always"),
        (stack(A), stack(B), "models[0].name"),
        (stack(A), stack(A, affinity={}), "affinity"),
    ],
)
def test_what_needs_a_restart(old: Stack, new: Stack, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_update(old, new)
    assert says in str(caught.value) and "start it again" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (stack(A, B), stack(B, {**A, "name": "c"})),
        (stack(A, front="always"), stack(A, B)),
        (stack(A), stack({**A, "replicas": 2})),
        (stack(A), stack(A, limits=None)),
    ],
)
def test_what_may_change(old: Stack, new: Stack) -> None:
    check_update(old, new)
