"""Where a training is, the points of its curve, and its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from distill.recipe.train import Stage


@dataclass
class Point:
    """One point of the curve: means over the steps since the last one; validation where it was looked at.

    `exact` is the share of validation rows of which every token of the answer is the likeliest: what greedy decoding
    would write word for word.
    """

    stage: int
    step: int
    loss: float
    rate: float
    seconds: float
    validation_loss: float | None = None
    exact: float | None = None


@dataclass
class State:
    """Where a training is; `step` counts over all stages."""

    step: int = 0
    seconds: float = 0.0
    best: float = math.inf
    best_step: int = 0
    poor: int = 0
    stopped: str | None = None
    tokens: int = 0
    total: float = 0.0
    since: int = 0
    curve: list[Point] = field(default_factory=list)


def rate_at(step: int, stage: Stage) -> float:
    """Return the learning rate at a step of a stage: linear warm-up, constant, cosine to the floor."""
    warm, hold = stage.warmup * stage.steps, stage.hold * stage.steps
    if step < warm:
        return stage.rate * (step + 1) / (math.floor(warm) + 1)
    if step < hold or stage.hold >= 1:
        return stage.rate
    falling = 0.5 * (1 + math.cos(math.pi * (step - hold) / (stage.steps - hold)))
    return stage.rate * (stage.floor + (1 - stage.floor) * falling)
