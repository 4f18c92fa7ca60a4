"""What a Ray Serve config imports: `serving.app:build` makes the application of one model, or the front, from a stack.

    applications:
      - name: fovea-qwen
        route_prefix: /
        import_path: serving.app:build
        args: {stack: {...}, model: fovea-qwen}   # without `model`: the front of a stack with several models

`stack` is a stack file's content; with `model`, the other models may be left out, and for the front all of them.  Ray
Serve starts replicas anew when these arguments change, so the number of replicas belongs into the config's
`deployments`, where a change only adds or removes some, and so do the models of the front:

    deployments: [{name: front, user_config: {models: {fovea-qwen: /fovea-qwen}, adapters: {colours: /fovea-qwen}}}]

In strings of the stack, `$(NAME)` becomes the environment variable NAME of the Ray node that builds the application:
the way for a password from a Secret.
"""

from __future__ import annotations

import os
import re
from typing import Any
from urllib.parse import quote

from models.support.errors import UsageError
from serving.deployments import bind_replica
from serving.front import bind_front
from serving.parts import FRONT, own_part, routes_of
from serving.stack import parse_stack

_VARIABLE = re.compile(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)")


def build(args: dict[str, Any]) -> Any:
    """Return the Ray Serve application that `args` describes.

    Args:
        args: `stack`, and `model`, the name of one of its models; without it the front.

    Raises:
        UsageError: an unknown argument or model, a wrong stack, or a variable that is not set.
    """
    unknown = sorted(set(args) - {"stack", "model"})
    if unknown or not isinstance(args.get("stack"), dict):
        raise UsageError(
            "must have `stack` and may have `model`",
            field="args",
            value=", ".join(sorted(args)),
            fix="write args: {stack: {...}, model: NAME}",
        )
    data, name = expand(args["stack"]), args.get("model")
    if name is None:
        if "models" not in data:  # they come as the deployment's user_config
            whole = parse_stack({**data, "models": [{"name": FRONT, "source": FRONT}]}, "args.stack")
            return bind_front(whole, {"models": {}})
        stack = parse_stack(data, "args.stack")
        return bind_front(stack, routes_of(stack))
    part = own_part(data, name)
    if not part.get("models"):
        stack = parse_stack(data, "args.stack")
        known = ", ".join(model.name for model in stack.models)
        raise UsageError("the stack has no such model", field="args.model", value=name, fix=f"it has {known}")
    stack = parse_stack(part, "args.stack")
    return bind_replica(stack, stack.models[0])


def expand(value: Any) -> Any:
    """Return plain data with `$(NAME)` replaced in every string; in a URL the variable's value is percent-encoded.

    Raises:
        UsageError: a variable is not set.
    """
    if isinstance(value, dict):
        return {key: expand(one) for key, one in value.items()}
    if isinstance(value, list):
        return [expand(one) for one in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        found = os.environ.get(match.group(1))
        if found is None:
            raise UsageError(
                "environment variable is not set",
                field="args.stack",
                value=match.group(0),
                fix="set it on every node of the Ray cluster",
            )
        return quote(found, safe="") if "://" in value else found

    return _VARIABLE.sub(variable, value)
