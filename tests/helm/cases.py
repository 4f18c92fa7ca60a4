"""Every case that is rendered and checked: the profiles, everything at once, and options by ones and twos."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from tests.helm.chart import EVERYTHING, PROFILES, merged, render


def matrix() -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Yield (id, profile, values) of everything that is rendered and checked."""
    yield "defaults", None, {}
    for profile in PROFILES:
        yield profile, profile, {}
    yield "everything", None, EVERYTHING
    options = {
        "eyes": {key: EVERYTHING[key] for key in ("observability", "evaluation")},
        "routes": {key: EVERYTHING[key] for key in ("ingress", "gateway")},
        "gate": {key: EVERYTHING[key] for key in ("loadTestGate",)},
        "autoscaled": {"nodeAutoscaling": {"enabled": True}},
        "open": {"networkPolicy": {"enabled": False}, "serviceAccount": {"create": False}},
    }
    keys = {"clients": EVERYTHING["clients"]}
    for names in itertools.chain(itertools.combinations(options, 1), itertools.combinations(options, 2)):
        values: dict[str, Any] = dict(keys)
        for name in names:
            values = merged(values, options[name])
        if "observability" in values:
            values = merged(values, {"observability": {"podMonitor": {"keySecret": {"name": "metrics"}}}})
        yield "+".join(names), None, values
        yield "gpu-prod+" + "+".join(names), "gpu-prod", values


CASES = {name: (profile, values) for name, profile, values in matrix()}


@lru_cache(maxsize=64)
def manifests(case: str, version: str = "helm4") -> list[dict[str, Any]]:
    """Render a case once."""
    profile, values = CASES[case]
    return render(values, profile, version)
