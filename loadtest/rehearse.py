"""Failure drills: something breaks while load runs, and each drill says whether what should happen did.

Every drill runs steady traffic in three equal parts: before, during and after the fault.  What must hold in general:
steady traffic is untouched before, comes back after (errors at most `tolerate`, P50 at most `slower` times that of
before), and what happens during the fault is the drill's own expectation.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from loadtest.client import Kind
from loadtest.config import RunConfig, make_config
from loadtest.measure import timeline
from loadtest.run import run_load

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from loadtest.faultproxy import FaultProxy

    Records = NDArray[np.void]


@dataclass(frozen=True)
class Setting:
    """What all drills share.

    Args:
        config: fields of the run, `url` included.
        steady: fields of the steady traffic class.
        part_s: length of each of the three parts, in seconds.
        bad_rate: broken requests per second in drills that send some.
        tolerate: share of steady requests that may fail where none should.
        slower: how many times the P50 of before is still the same speed.
        proxy: the proxy in front of the stack's upstream; None: a proxy in front of the server itself.
        commands: shell commands by name (`kill`, `cache-stop`, `cache-start`).
    """

    config: dict[str, Any]
    steady: dict[str, Any]
    part_s: float = 10.0
    bad_rate: float = 2.0
    tolerate: float = 0.01
    slower: float = 3.0
    proxy: FaultProxy | None = None
    commands: dict[str, str] = field(default_factory=dict)


@dataclass
class Verdict:
    """What a drill showed: `passed`, `failed` or `skipped`, and why.

    `timeline` is the steady traffic over the drill (`loadtest.measure.timeline`), `marks` when the fault began and
    ended, in seconds.
    """

    name: str
    expectation: str
    verdict: str
    evidence: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    timeline: list[dict[str, float | None]] = field(default_factory=list)
    marks: tuple[float, float] = (0.0, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict, JSON-ready."""
        return dict(self.__dict__)


class Drill(ABC):
    """One drill.

    Args:
        expectation: what should happen, in words.
    """

    def __init__(self, name: str, expectation: str):
        self.name, self.expectation = name, expectation

    def missing(self, setting: Setting) -> str:
        """Return why this drill cannot run, or an empty string."""
        return ""

    @abstractmethod
    def run(self, setting: Setting) -> Verdict:
        """Run the drill."""


class Parts:
    """The steady records of a drill, by part."""

    def __init__(self, records: Records, part_s: float):
        self.part_s = part_s
        self.steady = records[(records["cls"] == 0) & (records["kind"] != Kind.UNFINISHED)]
        edges = (0.0, part_s, 2 * part_s, 3 * part_s)
        inside = [(self.steady["intended"] >= a) & (self.steady["intended"] < b) for a, b in pairwise(edges)]
        self.before, self.during, self.after = (self.steady[i] for i in inside)
        # What had piled up during the fault takes a while to be worked off.
        self.settled = self.after[self.after["intended"] >= 2.5 * part_s]

    def verdict(self, drill: Drill, check: Check, **numbers: Any) -> Verdict:
        """Return the verdict of a drill with what these parts show."""
        word = "passed" if check.good else "failed"
        over_time = timeline(self.steady, (0.0, 3 * self.part_s))
        return Verdict(
            drill.name,
            drill.expectation,
            word,
            check.evidence,
            {**self.numbers(), **numbers},
            over_time,
            (self.part_s, 2 * self.part_s),
        )

    def numbers(self) -> dict[str, Any]:
        """Return requests, errors and P50 of each part."""
        return {
            name: {"requests": len(part), "errors": failed(part), "p50_ms": p50(part)}
            for name, part in (("before", self.before), ("during", self.during), ("after", self.after))
        }


def failed(records: Records) -> int:
    """Return how many requests failed."""
    return int((records["kind"] != Kind.OK).sum())


def p50(records: Records) -> float | None:
    """Return the median latency of successful requests, in ms."""
    ok = records[records["kind"] == Kind.OK]
    return round(float(np.median(ok["end"] - ok["intended"])) * 1e3, 2) if len(ok) else None


class Check:
    """Collects what holds and what does not."""

    def __init__(self) -> None:
        self.evidence: list[str] = []
        self.good = True

    def that(self, holds: bool, text: str) -> None:
        """Note one fact and whether it is as expected."""
        self.evidence.append(("ok: " if holds else "NOT: ") + text)
        self.good &= holds

    def usual(self, parts: Parts, setting: Setting) -> None:
        """Check that steady traffic was fine before, and is again after."""
        for name, part in (("before", parts.before), ("after", parts.after)):
            allowed = setting.tolerate * len(part)
            count = failed(part)
            self.that(len(part) > 0 and count <= allowed, f"{name}: {count} of {len(part)} steady requests failed")
        self.same_speed(parts.before, parts.settled, "after, second half", setting)

    def same_speed(self, base: Records, part: Records, name: str, setting: Setting) -> None:
        """Check that a part is about as fast as the one before the fault."""
        one, two = p50(base), p50(part)
        fine = one is not None and two is not None and two <= setting.slower * one + 5
        self.that(fine, f"{name}: P50 {two} ms, before the fault {one} ms")


def run_steady(setting: Setting, url: str, *more: dict[str, Any], at: Callable[[], Any] | None = None,
               back: Callable[[], Any] | None = None) -> Records:  # fmt: skip
    """Run the three parts; `at` is called when the fault begins, `back` when it ends.  Returns all records."""
    values = {**setting.config, "url": url, "duration_s": 3 * setting.part_s, "requests": None, "warmup_s": 0.0}
    config: RunConfig = make_config(**values, classes=({**setting.steady, "name": "steady"}, *more))
    timers: list[threading.Timer] = []
    problems: list[BaseException] = []

    def guarded(action: Callable[[], Any]) -> Callable[[], None]:
        def call() -> None:
            try:
                action()
            except BaseException as error:
                problems.append(error)

        return call

    def begin(start: float) -> None:
        for when, action in ((setting.part_s, at), (2 * setting.part_s, back)):
            if action is not None:
                timers.append(threading.Timer(start + when - perf_counter(), guarded(action)))
                timers[-1].start()

    try:
        report = run_load(config, progress=False, on_begin=begin)
    finally:
        for timer in timers:
            timer.cancel()
            timer.join()
    if problems:
        raise problems[0]
    if report.partial:
        raise KeyboardInterrupt
    return report.records
