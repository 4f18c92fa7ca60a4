"""What the events of one name add up to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from models.registry.schema import Event, Stage


@dataclass
class State:
    """Stages, reports, approvals and attestations by version number.

    `live`: the versions in the order in which they became live, rollbacks included; `seq`: number of the last event.
    """

    stages: dict[int, Stage] = field(default_factory=dict)
    live: list[int] = field(default_factory=list)
    reports: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    approvals: dict[int, list[str]] = field(default_factory=dict)
    attested: dict[int, dict[str, str]] = field(default_factory=dict)
    seq: int = 0

    def current(self) -> int | None:
        """Return the version that is live, if any."""
        return next((n for n, stage in self.stages.items() if stage == "live"), None)

    def apply(self, event: Event) -> None:
        """Take one event in."""
        self.seq = event.seq
        if event.what == "stage" and event.to is not None:
            if event.to == "live":
                self.stages |= {n: "retired" for n, stage in self.stages.items() if stage == "live"}
                self.live.append(event.version)
            self.stages[event.version] = event.to
        elif event.what == "attach" and event.report is not None:
            self.reports.setdefault(event.version, []).append(event.report)
        elif event.what == "approve":
            self.approvals.setdefault(event.version, []).append(event.by)
        elif event.what == "attest" and event.item is not None:
            self.attested.setdefault(event.version, {})[event.item] = event.by


def fold(numbers: Iterable[int], events: Iterable[Event]) -> State:
    """Return the state after all events; every version begins as a candidate."""
    state = State(stages=dict.fromkeys(numbers, "candidate"))
    for event in events:
        state.apply(event)
    return state
