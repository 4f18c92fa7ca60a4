"""From a config to what each process has to send: schedules, users, sources, and the measured window."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loadtest.apis import Api, make_api
from loadtest.arrivals import make_times
from loadtest.client import Target
from loadtest.config import RunConfig, TrafficClass
from loadtest.dialogue import Dialogues
from loadtest.engine import Stream
from loadtest.source import Source
from loadtest.workloads import Workload, make_workload
from loadtest.workloads.base import Conversations
from models.support.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

STATIONARY = ("poisson", "constant", "gamma")


@dataclass
class Plan:
    """What one process does.  `window` is the measured part, in seconds from the start (its end may be infinite)."""

    streams: list[Stream]
    target: Target
    api: Api
    window: tuple[float, float]
    until: float | None
    connect_first: int


def schedule(config: RunConfig, number: int) -> NDArray[np.float64]:
    """Return the intended send times of an open-loop class over warm-up, measured part and cool-down.

    The same config gives the same times in every process.

    Raises:
        UsageError: the arrival process, its options or the trace are wrong.
    """
    traffic = config.classes[number]
    rng = np.random.default_rng([config.seed, number, 0xA1])
    if traffic.trace is not None:
        from loadtest.traces import read_trace

        times = read_trace(traffic.trace).times / traffic.trace_scale + traffic.begin_s
        end = min(traffic.end_s or math.inf, math.inf if config.duration_s is None else whole_run(config))
        return times[times < end]
    assert traffic.rate is not None
    name, options = traffic.arrival, traffic.arrival_options
    if config.duration_s is not None:
        length = min(traffic.end_s or math.inf, whole_run(config)) - traffic.begin_s
        return make_times(name, traffic.rate, length, rng, **options) + traffic.begin_s
    assert config.requests is not None
    wanted = config.requests / traffic.rate
    if name not in STATIONARY:
        return make_times(name, traffic.rate, config.warmup_s + wanted, rng, **options)
    ample = config.warmup_s + wanted * 1.5 + 50 / traffic.rate
    while True:
        times = make_times(name, traffic.rate, ample, rng, **options)
        before = int(np.searchsorted(times, config.warmup_s))
        if len(times) >= before + config.requests:
            return times[: before + config.requests]
        ample *= 2


def whole_run(config: RunConfig) -> float:
    """Return the length of warm-up, measured part and cool-down together, in seconds."""
    return config.warmup_s + (config.duration_s or 0.0) + config.cooldown_s


def window(config: RunConfig) -> tuple[float, float]:
    """Return the measured part of the run."""
    end = float("inf") if config.duration_s is None else config.warmup_s + config.duration_s
    return config.warmup_s, end


def load_workloads(config: RunConfig) -> list[Workload]:
    """Return each class's workload.  Raises UsageError when one is wrong."""
    return [make_workload(c.workload, seed=config.seed, **c.workload_options) for c in config.classes]


def _share(total: int, worker: int, workers: int) -> int:
    return total // workers + (worker < total % workers)


def api_key(config: RunConfig) -> str:
    """Return the key from the environment, an empty string when there is none."""
    return os.environ.get(key_name(config), "")


def key_name(config: RunConfig) -> str:
    """Return the environment variable that holds the key."""
    return config.api_key_env or make_api(config.api).key_env


def make_plan(config: RunConfig, workloads: list[Workload], worker: int = 0, workers: int = 1) -> Plan:
    """Return what process `worker` of `workers` does.

    Raises:
        UsageError: anything in the config that makes no sense.
    """
    target, api, key = Target.parse(config.url), make_api(config.api), api_key(config)
    streams = []
    first = 0
    for number, (traffic, workload) in enumerate(zip(config.classes, workloads, strict=True)):
        streams.append(_stream(config, number, traffic, workload, api, target, key, worker, workers))
        first += streams[-1].users or min(len(streams[-1].times) if streams[-1].times is not None else 0, 16)
    closed_until = whole_run(config) if config.duration_s is not None else None
    per_process = max(1, config.max_connections // workers)
    return Plan(streams, target, api, window(config), closed_until, min(first, per_process))


def _stream(
    config: RunConfig,
    number: int,
    traffic: TrafficClass,
    workload: Workload,
    api: Api,
    target: Target,
    key: str,
    worker: int,
    workers: int,
) -> Stream:
    def source(first: int | None) -> Source | Dialogues:
        if isinstance(workload, Conversations):
            return Dialogues(workload, config, traffic, api, target, key, worker, workers)
        return Source(workload, config, traffic, api, target, key, first, worker, workers)

    if traffic.open_loop:
        times = schedule(config, number)
        if not len(times):
            raise UsageError(
                "no request falls into the run",
                field="--rate",
                value=traffic.rate,
                fix="raise the rate or the duration",
            )
        return Stream(source(len(times)), times=times[worker::workers], numbers=(worker, workers))
    assert traffic.concurrency is not None
    limit = None if config.requests is None else _share(config.requests, worker, workers)
    first = None if config.requests is None or config.warmup_s else config.requests
    return Stream(
        source(first),
        users=_share(traffic.concurrency, worker, workers),
        think_s=traffic.think_s,
        limit=limit,
        numbers=(worker, workers),
    )
