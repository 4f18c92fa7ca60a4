"""The curve as one HTML page, written anew at every look: reload it to watch a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.support.html import Axis, Page, Series, line
from models.support.progress import format_seconds

if TYPE_CHECKING:
    from distill.train.state import State


def curve_page(name: str, state: State, steps: int) -> str:
    """Return the page."""
    page = Page(f"Training: {name}", f"step {state.step:,} of {steps:,}, {format_seconds(state.seconds)} so far")
    last = state.curve[-1]
    page.tiles(
        [
            ("loss", f"{last.loss:.4f}", "mean over an answer's tokens"),
            ("validation loss", "-" if last.validation_loss is None else f"{last.validation_loss:.4f}",
             f"best at step {state.best_step:,}" if state.best_step else ""),
            ("word for word", "-" if last.exact is None else f"{last.exact:.1%}", "of the validation rows"),
            ("tokens seen", f"{state.tokens:,}", ""),
        ]
    )  # fmt: skip
    page.add(*curves(state))
    if state.stopped is not None:
        page.text(f"Ended early: {state.stopped}.")
    return page.render()


def curves(state: State) -> list[str]:
    """Return the plots: loss over steps, and share of validation rows word for word where there are any."""
    steps = [float(p.step) for p in state.curve]
    series = [Series("training", steps, [p.loss for p in state.curve])]
    seen = [p for p in state.curve if p.validation_loss is not None]
    if seen:
        series.append(Series("validation", [float(p.step) for p in seen], [p.validation_loss or 0.0 for p in seen]))
    found = [line(series, title="Loss over steps", x=Axis("step"), y=Axis("loss", log=True))]
    if seen:
        exact = Series("word for word", [float(p.step) for p in seen], [p.exact or 0.0 for p in seen])
        axis = Axis("share", lowest=0, highest=1)
        found.append(line([exact], title="Validation rows answered word for word", x=Axis("step"), y=axis))
    return found
