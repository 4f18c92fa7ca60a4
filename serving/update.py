"""Change a stack while it serves: `fovea serve` reads its file again on SIGHUP.

Models that were added start beside the others, and the front learns of them when they answer; models that were removed
are first forgotten by the front, then their running requests finish (at most `drain_s`).  Models that stay as they are
keep their replicas.  A file that cannot be served changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from models.support.errors import CheckFailed, UsageError
from serving import deployments, runtime
from serving.parts import FRONT
from serving.stack import Model, Stack


def update(old: Stack, new: Stack, say: Callable[[str], None], stop: threading.Event) -> bool:
    """Make the running `old` stack the `new` one; return False when `stop` was set before it was done.

    Raises:
        UsageError: the change is one that needs a restart.  Nothing was changed.
        CheckFailed: an added or changed model cannot be started.  Added models are taken away again.
    """
    from ray import serve

    check_update(old, new)
    had, names = {model.name for model in old.models}, {model.name for model in new.models}
    added, gone = sorted(names - had), sorted(had - names)
    targets = {target.name: target for target in deployments.targets_of(new)}
    front = targets.pop(FRONT, None)
    if added:
        say(f"adding {', '.join(added)}")
    deployments.run(list(targets.values()))
    try:
        if not runtime.wait_until_running(new, say, stop):
            return False
        for model in (one for one in new.models if one.name in added):
            runtime.wait_until_answering(new, stop, path=_probe(new, model))
    except CheckFailed:
        for name in added:
            serve.delete(name)
        raise
    if front is not None:
        deployments.run([front])
        runtime.wait_until_told(new, stop)
    if gone:
        say(f"removing {', '.join(gone)}")
        runtime.drain(old.model_copy(update={"models": [one for one in old.models if one.name in gone]}), say)
        for name in gone:
            serve.delete(name)
    return True


def check_update(old: Stack, new: Stack) -> None:
    """Refuse what cannot change while the stack serves.

    Raises:
        UsageError: address or port, how the proxy balances, or whether there is a front.
    """
    fix = "stop the stack and start it again"
    if old.listen != new.listen:
        raise UsageError("cannot change while the stack serves", field="listen", fix=fix)
    if old.affinity != new.affinity:
        raise UsageError("cannot change while the stack serves", field="affinity", fix=fix)
    if old.single != new.single:
        fix += "; with `front: always` models can be added to a single one"
        raise UsageError("the paths of one model and of several differ", field="models", fix=fix)
    if old.single and old.models[0].name != new.models[0].name:
        raise UsageError("the only model cannot be another one", field="models[0].name", fix=fix)


def _probe(stack: Stack, model: Model) -> str:
    return "/ready" if stack.single else f"{model.prefix}/ready"
