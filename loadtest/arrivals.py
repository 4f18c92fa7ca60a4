"""When requests should be sent: one function per arrival process, registered by name.

Every process gives the intended send times of a whole run in advance, in seconds from its start, sorted.  The same
seed gives the same times.  `rate` is the mean rate in requests per second; where the rate changes over time,
requests follow a Poisson process with that changing rate (thinning by time change: the n-th arrival is where the
integral of the rate reaches the n-th arrival of a unit-rate process).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from models.support.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Times = NDArray[np.float64]

Arrival = Callable[..., "Times"]
ARRIVALS: dict[str, Arrival] = {}
MAX_REQUESTS = 50_000_000


def arrival(name: str) -> Callable[[Arrival], Arrival]:
    """Register an arrival process."""

    def register(function: Arrival) -> Arrival:
        ARRIVALS[name] = function
        return function

    return register


def make_times(name: str, rate: float, duration_s: float, rng: np.random.Generator, **options: float) -> Times:
    """Return the intended send times of a run, in seconds, sorted, all below `duration_s`.

    Args:
        name: a registered arrival process.
        rate: mean requests per second; above zero.
        options: the settings of that process.

    Raises:
        UsageError: unknown process or setting, or a rate, duration or setting that makes no sense.
    """
    if name not in ARRIVALS:
        raise UsageError("unknown arrival process", field="--arrival", value=name, fix=f"use {', '.join(ARRIVALS)}")
    if not (rate > 0 and np.isfinite(rate)):
        raise UsageError("the rate must be above zero", field="--rate", value=rate, fix="give requests per second")
    if not (duration_s > 0 and np.isfinite(duration_s)):
        raise UsageError("the duration must be above zero", field="--duration", value=duration_s, fix="give seconds")
    if rate * duration_s > MAX_REQUESTS:
        raise UsageError(
            f"more than {MAX_REQUESTS:,} requests", field="--rate", value=rate, fix="lower the rate or the duration"
        )
    try:
        return ARRIVALS[name](rate, duration_s, rng, **options)
    except TypeError as error:
        raise UsageError(
            f"wrong settings for {name}: {error}",
            field="--arrival",
            value=name,
            fix="docs/loadtest.md lists the options of each arrival process",
        ) from error


def _until(duration_s: float, rate: float, gaps: Callable[[int], Times]) -> Times:
    """Add up gaps until the duration is passed."""
    block = int(rate * duration_s * 1.05) + 64
    times = np.cumsum(gaps(block))
    while times[-1] < duration_s:
        times = np.concatenate([times, times[-1] + np.cumsum(gaps(block))])
    return times[times < duration_s]


@arrival("poisson")
def poisson(rate: float, duration_s: float, rng: np.random.Generator) -> Times:
    """Independent users: exponential gaps."""
    return _until(duration_s, rate, lambda n: rng.exponential(1 / rate, n))


@arrival("constant")
def constant(rate: float, duration_s: float, rng: np.random.Generator) -> Times:
    """Evenly spaced, the first at once."""
    return np.arange(max(1, int(np.ceil(rate * duration_s - 1e-9)))) / rate


@arrival("gamma")
def gamma(rate: float, duration_s: float, rng: np.random.Generator, cv: float = 2.0) -> Times:
    """Bursty: gamma-distributed gaps with coefficient of variation `cv` (1 is Poisson, above is burstier)."""
    _positive("cv", cv)
    shape = 1 / cv**2
    return _until(duration_s, rate, lambda n: rng.gamma(shape, 1 / (rate * shape), n))


def _by_rate(rate_at: Callable[[Times], Times], duration_s: float, rate: float, rng: np.random.Generator) -> Times:
    """Poisson arrivals with a changing rate whose mean over the run is scaled to `rate`."""
    grid = np.linspace(0, duration_s, 20_001)
    level = rate_at(grid)
    area = np.concatenate([[0.0], np.cumsum((level[1:] + level[:-1]) / 2 * np.diff(grid))])
    area *= rate * duration_s / area[-1]
    unit = _until(float(area[-1]), 1.0, lambda n: rng.exponential(1.0, n))
    return np.interp(unit, area, grid)


def _positive(name: str, value: float, zero: bool = False) -> None:
    if not np.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise UsageError(
            "must be above zero", field=f"--arrival-option {name}", value=value, fix="give a positive number"
        )


@arrival("ramp")
def ramp(rate: float, duration_s: float, rng: np.random.Generator, start: float = 0.1, end: float = 1.9) -> Times:
    """The rate goes in a straight line from `start` to `end` (shares of the mean rate)."""
    _positive("start", start, zero=True)
    _positive("end", end, zero=True)
    _positive("start + end", start + end)
    return _by_rate(lambda t: start + (end - start) * t / duration_s, duration_s, rate, rng)


@arrival("step")
def step(rate: float, duration_s: float, rng: np.random.Generator, steps: float = 5, start: float = 0.2) -> Times:
    """The rate climbs in `steps` equal steps, the first at `start` times the last."""
    count = max(1, int(steps))
    _positive("steps", steps)
    _positive("start", start)
    return _by_rate(
        lambda t: start + (1 - start) * np.minimum(np.floor(t / duration_s * count), count - 1) / max(1, count - 1),
        duration_s,
        rate,
        rng,
    )


@arrival("spike")
def spike(
    rate: float, duration_s: float, rng: np.random.Generator, factor: float = 5, at: float = 0.5, width: float = 0.1
) -> Times:
    """Steady, with one spike of `factor` times the base rate; `at` and `width` are shares of the duration."""
    _positive("factor", factor)
    _positive("width", width)
    return _by_rate(lambda t: np.where(np.abs(t / duration_s - at) <= width / 2, factor, 1.0), duration_s, rate, rng)


@arrival("soak")
def soak(rate: float, duration_s: float, rng: np.random.Generator, swing: float = 0.1, period_s: float = 600) -> Times:
    """For hours: Poisson whose rate sways by `swing` over `period_s`, so that no internal timer can stay in step."""
    _positive("period_s", period_s)
    _positive("swing", swing, zero=True)
    if swing > 1:
        raise UsageError(
            "must be at most 1", field="--arrival-option swing", value=swing, fix="give a share from 0 to 1"
        )
    return _by_rate(lambda t: 1 + swing * np.sin(2 * np.pi * t / period_s), duration_s, rate, rng)


@arrival("diurnal")
def diurnal(rate: float, duration_s: float, rng: np.random.Generator, peak: float = 3, days: float = 1) -> Times:
    """Day and night pressed into the run: `days` cycles, the peak hour `peak` times the quietest, starting at night."""
    _positive("peak", peak)
    _positive("days", days)
    middle, height = (peak + 1) / 2, (peak - 1) / 2
    return _by_rate(lambda t: middle - height * np.cos(2 * np.pi * days * t / duration_s), duration_s, rate, rng)
