"""What Ray Serve is told to run: one application per model, and the front."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving.parts import FRONT, own_part, routes_of, version_of
from serving.stack import REGISTRY

if TYPE_CHECKING:
    from serving.stack import Model, Stack


def run(targets: list[Any]) -> None:
    """Start deploying applications, or change those that are there; returns at once."""
    from ray import serve

    serve.run_many(targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)


def targets_of(stack: Stack) -> list[Any]:
    """Return the applications of a stack, with their routes."""
    from ray.serve.api import RunTarget

    from serving.front import bind_front

    found = [
        RunTarget(bind_replica(stack, model), name=model.name, route_prefix="/" if stack.single else model.prefix)
        for model in stack.models
    ]
    if not stack.single:
        found.append(RunTarget(bind_front(stack, routes_of(stack)), name=FRONT, route_prefix="/"))
    return found


def bind_replica(stack: Stack, model: Model) -> Any:
    """Return the Ray Serve application of one model."""
    from ray import serve

    from serving.engine import engine_environment
    from serving.replica import Deployed

    if model.source.startswith(REGISTRY):  # resolved once: every replica serves the same version
        model = model.model_copy(update={"source": model.path})
    # how many there are is told apart from the arguments: a change of that must not start the others anew
    plain = model.model_copy(update={"replicas": 1}).model_dump(mode="json")
    part = own_part({**stack.model_dump(mode="json"), "models": [plain]}, model.name)
    options = {"num_cpus": 1, "num_gpus": model.gpus, "runtime_env": {"env_vars": engine_environment(model)}}

    deployment: Any = serve.deployment(serve.ingress()(Deployed))
    return deployment.options(
        name=model.name,
        version=version_of(part, options),
        num_replicas=model.replicas,
        user_config={"replicas": model.replicas},
        max_ongoing_requests=100_000,  # the layer `admit` limits, with a 503 that says so
        graceful_shutdown_timeout_s=stack.drain_s,
        health_check_period_s=2,  # a dead replica is replaced so soon
        health_check_timeout_s=30,
        ray_actor_options=options,
        _internal=True,
    ).bind(part, model.name)
