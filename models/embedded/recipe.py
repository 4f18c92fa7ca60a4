"""What decides the embedded models: one frozen record per run, and the schedules of each family."""

from __future__ import annotations

from dataclasses import dataclass

# the second stage of each family; PaliGemma also learns to find boxes
SCHEDULES = {
    "qwen2_5_vl": {
        "answer_steps": 2800,
        "warm_steps": 60,
        "hold_steps": 1800,
        "dense_steps": 1000,
        "answer_stop": 2000,
        "verify_steps": 1400,
        "verify_hold": 1000,
    },
    "paligemma": {
        "answer_steps": 3500,
        "warm_steps": 105,
        "hold_steps": 2100,
        "dense_steps": 1750,
        "answer_stop": 3500,
        "verify_steps": 0,
    },
}
# ten minutes on two cores: the tower learns as long as in the whole recipe, and what it sees is put into words
QUICK = {
    "look_steps": 2400,
    "answer_steps": 260,
    "warm_steps": 20,
    "hold_steps": 160,
    "dense_steps": 200,
    "answer_stop": 260,
    "verify_steps": 0,
}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result; written to the manifest.

    `warm_steps`, `hold_steps` and `dense_steps` are of the second stage: linear warm-up of the learning rate, where its
    decay begins, and over how many steps the share of naming questions falls from 0.9 to 0.3; `answer_stop` is where
    the second stage ends, before or at the end of its schedule.  The third has no negation in its first `plain_steps`.
    """

    family: str
    seed: int = 1
    look_steps: int = 2500
    answer_steps: int = 2800
    warm_steps: int = 60
    hold_steps: int = 1800
    dense_steps: int = 1000
    answer_stop: int = 2000
    verify_steps: int = 1400
    verify_hold: int = 1000
    plain_steps: int = 500
    verify_rate: float = 1.0e-3
    pictures: int = 24
    questions: int = 8
    look_rate: float = 1.5e-3
    answer_rate: float = 1.2e-3
    weight_decay: float = 0.05
    published_share: float = 0.5
    varied_share: float = 0.4
