"""The layers between a client and the engine, outermost first.

A layer is a pure-ASGI class `Layer(app, stack, model)`; `build_layers` leaves out the ones whose section is absent.
`route` will take its place in this list.  A layer may have `async start()` and `async stop()`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serving.layers.adapters import Choose
from serving.layers.admit import Admit
from serving.layers.batches import BatchesApi
from serving.layers.boxes import Boxes
from serving.layers.identify import Identify
from serving.layers.lane import InLane
from serving.layers.money import Count
from serving.layers.quota import Quota
from serving.layers.recall import Recall
from serving.layers.record import Record
from serving.layers.screen import Look, Screen
from serving.tracing import Entry, Span, Tracing

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from serving.stack import Model, Stack

LAYERS: tuple[tuple[Callable[[Stack], object], type[Any]], ...] = (
    (lambda stack: True, Record),
    (lambda stack: stack.identify, Identify),
    (lambda stack: stack.batches, BatchesApi),
    (lambda stack: True, Admit),
    (lambda stack: any(model.adapters for model in stack.models), Choose),
    (lambda stack: stack.money, Count),
    (lambda stack: stack.media, Look),
    (lambda stack: stack.admit, Quota),
    (lambda stack: stack.media, Screen),
    (lambda stack: stack.recall, Recall),
    (lambda stack: stack.lane, InLane),
    (lambda stack: any(model.boxes for model in stack.models), Boxes),
)


def build_layers(app: ASGIApp, stack: Stack, model: Model) -> ASGIApp:
    """Return `app` behind every layer that `stack` has a section for, each in a span of its own if it is traced."""
    tracing = Tracing(stack.traces, model.name) if stack.traces else None
    if tracing:
        app = tracing.layer(app, "engine")
    for enabled, layer in reversed(LAYERS):
        if enabled(stack):
            app = layer(app, stack, model)
            if tracing:
                app = tracing.entry(app) if layer is Record else tracing.layer(app, layer.__name__.lower())
    return app


def layers_of(app: ASGIApp) -> list[Any]:
    """Return the layers that `build_layers` put around an app, outermost first."""
    kinds: tuple[type[Any], ...] = (*(layer for _, layer in LAYERS), Entry, Span)
    found: list[Any] = []
    inner: Any = app
    while isinstance(inner, kinds):
        found.append(inner)
        inner = inner.app
    return found


async def start_layers(app: ASGIApp) -> None:
    """Let every layer open what it needs, innermost first.

    Raises:
        UsageError: one cannot work; the replica must not start.
    """
    for layer in reversed(layers_of(app)):
        if hasattr(layer, "start"):
            await layer.start()


async def stop_layers(app: ASGIApp) -> None:
    """Let every layer close what it opened, outermost first."""
    for layer in layers_of(app):
        if hasattr(layer, "stop"):
            await layer.stop()
