"""What stands between a version and its next stage."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from models.registry.schema import Requirement, Stage, Version
from models.registry.state import State

if TYPE_CHECKING:
    from models.registry.registry import Registry


def problems(registry: Registry, version: Version, state: State, to: Stage) -> list[str]:
    """Return every reason why `version` may not become `to`; empty when it may.

    Models need a passing report for canary and for live.  The other kinds (prompts, golden sets) have no report of
    their own; for them the person rules alone hold.
    """
    policy = registry.policy(version.name)
    found: list[str] = []
    if version.kind == "model":
        if policy is None or not policy.require:
            return ["no policy says what a passing report is (`fovea models registry policy`)"]
        found += [p for one in policy.require for p in requirement_problems(one, version, state)]
    if to == "live" and policy is not None:
        if policy.two_person and not any(person != version.by for person in state.approvals.get(version.number, [])):
            found.append(f"nobody but {version.by}, who registered it, has approved it")
        if policy.governance:
            from models.registry.governance import checklist

            found += [f"governance: {row['item']}" for row in checklist(registry, version) if not row["holds"]]
    return found


def requirement_problems(one: Requirement, version: Version, state: State) -> list[str]:
    """Return what the newest report on the requirement's golden set lacks."""
    report = newest(state, version.number, one.golden)
    if report is None:
        return [f"no report on {one.golden}"]
    found = []
    accuracy = report["accuracy"]
    if accuracy["n"] < one.min_items:
        found.append(f"{one.golden}: {accuracy['n']} items, {one.min_items} are needed")
    if accuracy["value"] is None or accuracy["low"] < one.min_accuracy:
        shown = "unknown" if accuracy["value"] is None else f"{accuracy['low']:.4f}"
        found.append(f"{one.golden}: the interval's low end is {shown}, {one.min_accuracy} is needed")
    live = state.current()
    if one.max_drop is not None and live is not None and live != version.number:
        before = newest(state, live, one.golden)
        if before is None or before["golden"]["digest"] != report["golden"]["digest"]:
            found.append(f"{one.golden}: the live version has no report on the same set to compare with")
        elif (low := difference_low(accuracy, before["accuracy"])) < -one.max_drop:
            found.append(f"{one.golden}: may be {-low:.4f} below the live version, {one.max_drop} is allowed")
    return found


def newest(state: State, number: int, golden: str) -> dict[str, Any] | None:
    """Return the last report of a version on a golden set, by the set's name or digest."""
    of_set = [r for r in state.reports.get(number, []) if golden in (r["golden"]["name"], r["golden"]["digest"])]
    return of_set[-1] if of_set else None


def difference_low(new: dict[str, Any], old: dict[str, Any]) -> float:
    """Return the low end of the 95 % interval of new - old accuracy (Newcombe 1998, method 10, unpaired).

    Wider than a paired interval: what passes here passes `fovea models compare --max-drop` too, as a rule; the answers
    themselves are not kept in the registry.  -1 where a figure is missing.
    """
    if new["value"] is None or old["value"] is None:
        return -1.0
    spread = math.hypot(new["value"] - new["low"], old["high"] - old["value"])
    return float(new["value"] - old["value"] - spread)
