"""How many replicas a model has, by the requests inside them: Ray Serve's own counters do not see what HAProxy brings.

Ray Serve asks every replica for `record_autoscaling_stats` and hands the answers to a policy that a Serve config names:

    autoscaling_config:
      min_replicas: 1
      max_replicas: 8
      target_ongoing_requests: 8
      policy: {policy_function: serving.autoscale:policy}

Ray Serve applies the delays, bounds and factors of `autoscaling_config` to what the policy wants.  A model
without any replica is reached through Ray's own proxy on the head, which holds the requests and counts them as queued.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

INSIDE = "fovea_requests_inside"


def stats(own: int = 0) -> dict[str, float]:
    """Return what this process's replica reports: requests being read, waiting or answered.

    Args:
        own: how many of them are the replica's own canary, which must not keep a replica alive.
    """
    from serving.layers.admit import Admit  # Ray Serve's controller imports this module, and needs no layers

    return {INSIDE: float(max(0, Admit.gate.inside - own))}


def policy(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Return the wanted number of replicas, not rounded, and no state.

    Requests inside all replicas, and those that wait for a first one, over `target_ongoing_requests`.  While a running
    replica has not reported yet (it has just started, or the controller has), none is taken away.
    """
    reported = (context.aggregated_metrics or {}).get(INSIDE, {})
    requests = sum(reported.values()) + (context.total_queued_requests or 0)
    assert context.config is not None
    wanted = requests / context.config.target_ongoing_requests
    if len(reported) < context.current_num_replicas or (requests and not context.current_num_replicas):
        wanted = max(wanted, context.target_num_replicas)
    return wanted, {}
