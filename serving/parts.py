"""What one application of a stack has to know: nothing of the others, so that they can change without it.

Ray Serve starts the replicas of an application anew when its arguments change.  So a model's replicas get a stack with
that model alone, and the front gets none of the models: which there are is its `user_config`, which changes in place.
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson

from serving.stack import NO_MODEL, Model, Stack

FRONT = "front"


def own_part(stack: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a stack (plain data) with one model, and tenants that know of no other.

    What is not of the right shape stays as it is: validation has the better words for it.
    """
    models = stack.get("models")
    if not isinstance(models, list):
        return stack
    own = [one for one in models if isinstance(one, dict) and one.get("name") == name]
    part = {**stack, "models": own}
    identify = stack.get("identify")
    if isinstance(identify, dict) and isinstance(identify.get("tenants"), list):
        names = {name, *(adapter for model in own for adapter in _adapters(model))}
        part["identify"] = {**identify, "tenants": [_tenant(one, names) for one in identify["tenants"]]}
    return part


def _adapters(model: dict[str, Any]) -> list[Any]:
    found = model.get("adapters")
    entries = found if isinstance(found, list) else []
    return [one["name"] for one in entries if isinstance(one, dict) and isinstance(one.get("name"), str)]


def _tenant(tenant: Any, names: set[Any]) -> Any:
    allowed = tenant.get("models") if isinstance(tenant, dict) else None
    if not isinstance(allowed, list):
        return tenant
    return {**tenant, "models": [one for one in allowed if isinstance(one, str) and one in names] or [NO_MODEL]}


def front_part(stack: Stack) -> Stack:
    """Return what the front goes by: address and limits.  It asks for no keys; the models behind it do."""
    return Stack(
        listen=stack.listen.model_copy(update={"public": True}),
        models=[Model(name=FRONT, source=FRONT)],
        limits=stack.limits,
        media=None,
        affinity=stack.affinity,
        metrics=stack.metrics,
        traces=stack.traces,
        drain_s=stack.drain_s,
    )


def routes_of(stack: Stack) -> dict[str, dict[str, str]]:
    """Return what the front is told (its `user_config`).

    `models`: name -> route prefix; `adapters`, where there are any: name -> route prefix of its model.
    """
    routes = {"models": {model.name: model.prefix for model in stack.models}}
    if any(model.adapters for model in stack.models):
        routes["adapters"] = {adapter.name: model.prefix for model in stack.models for adapter in model.adapters}
    return routes


def version_of(*arguments: Any) -> str:
    """Return a deployment's version: the same for the same arguments, so that deploying it again changes nothing."""
    return hashlib.blake2b(orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS), digest_size=12).hexdigest()
