"""The layers between a client and the engine, outermost first.

A layer is a pure-ASGI class `Layer(app, stack, model)`; `build_layers` leaves out the ones whose section is absent.
`identify`, `recall`, `lane` and `route` will take their places in this list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from serving.layers.admit import Admit
from serving.layers.money import Count
from serving.layers.record import Record
from serving.layers.screen import Screen

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from serving.stack import Model, Stack

LAYERS: tuple[tuple[Callable[[Stack], object], Callable[..., ASGIApp]], ...] = (
    (lambda stack: True, Record),
    (lambda stack: True, Admit),
    (lambda stack: stack.money, Count),
    (lambda stack: stack.media, Screen),
)


def build_layers(app: ASGIApp, stack: Stack, model: Model) -> ASGIApp:
    """Return `app` behind every layer that `stack` has a section for."""
    for enabled, layer in reversed(LAYERS):
        if enabled(stack):
            app = layer(app, stack, model)
    return app
