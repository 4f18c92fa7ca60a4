"""The number of replicas by the requests inside them: what is reported, and what the policy makes of it."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import autoscale
from serving.front import Front
from serving.layers.admit import Admit
from serving.replica import Canary, Replica
from serving.stack import parse_stack

STACK = parse_stack({"models": [{"name": "m", "source": "embedded:qwen2_5_vl"}]}).model_dump(mode="json")


def context(
    inside: dict[str, float] | None, queued: float | None = 0.0, current: int = 1, target: int | None = None
) -> Any:
    """Return what Ray Serve's controller gives a policy; eight requests for each replica."""
    metrics = None if inside is None else {autoscale.INSIDE: inside}
    return SimpleNamespace(
        aggregated_metrics=metrics,
        total_queued_requests=queued,
        current_num_replicas=current,
        target_num_replicas=current if target is None else target,
        config=SimpleNamespace(target_ongoing_requests=8.0),
    )


@pytest.mark.parametrize(
    ("given_", "wanted"),
    [
        (context({"a": 24.0}), 3.0),
        (context({"a": 4.0, "b": 4.0}, current=2), 1.0),
        (context({"a": 0.0}), 0.0),
        (context({"a": 8.0}, queued=8.0), 2.0),
        (context({}, queued=1.0, current=0, target=1), 1.0),
        (context({}, queued=None, current=0), 0.0),
        (context(None, current=0), 0.0),
    ],
)
def test_wanted(given_: Any, wanted: float) -> None:
    assert autoscale.policy(given_) == (wanted, {})


@pytest.mark.parametrize("inside", [None, {}, {"a": 1.0}])
def test_nothing_is_taken_away_while_a_replica_has_not_reported(inside: dict[str, float] | None) -> None:
    assert autoscale.policy(context(inside, current=3)) == (3, {})
    assert autoscale.policy(context({"a": 80.0}, current=3))[0] == 10, "but more may be added"


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.floats(0, 1e6), max_size=8), st.floats(0, 1e6))
def test_all_requests_count_once(inside: dict[str, float], queued: float) -> None:
    wanted, state = autoscale.policy(context(inside, queued, current=len(inside), target=0))
    assert wanted == pytest.approx((sum(inside.values()) + queued) / 8) and state == {}


async def test_replica_and_front_report_the_requests_inside() -> None:
    replica, front = Replica(STACK, "m"), Front(STACK)
    for one in (replica, front):
        assert await one.record_autoscaling_stats() == {autoscale.INSIDE: 0.0}
    Admit.gate.enter()
    Admit.gate.enter()
    for one in (replica, front):
        assert await one.record_autoscaling_stats() == {autoscale.INSIDE: 2.0}
    Admit.gate.leave()
    Admit.gate.leave()


async def test_a_replicas_own_canary_does_not_count() -> None:
    replica, seen = Replica(STACK, "m"), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        Admit.gate.enter()
        seen.append(await replica.record_autoscaling_stats())
        Admit.gate.leave()
        raise RuntimeError("the engine")

    canary = Canary(app, "m", 30.0, image=False)
    replica.router = SimpleNamespace(canary=canary)  # type: ignore[assignment]
    await canary._ask()
    assert seen == [{autoscale.INSIDE: 0.0}] and canary.asking is False
    Admit.gate.enter()
    assert await replica.record_autoscaling_stats() == {autoscale.INSIDE: 1.0}
    Admit.gate.leave()


def test_ray_serve_takes_the_policy_by_its_name() -> None:
    """And applies its own delays and bounds to what the policy wants (Ray's code, with a controller's own types)."""
    from ray.serve._private.autoscaling_state import _resolve_policy_callable
    from ray.serve.config import AutoscalingConfig

    config = AutoscalingConfig.model_validate(
        {"min_replicas": 0, "max_replicas": 4, "policy": {"policy_function": "serving.autoscale:policy"}}
    )
    assert _resolve_policy_callable(config.policy)(context({"a": 16.0})) == (2.0, {})


def test_the_controller_imports_no_layers_for_it() -> None:
    code = "import sys, serving.autoscale; sys.exit(any(name.startswith('serving.layers') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
