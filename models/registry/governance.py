"""Governance readiness: a checklist, each item checked by the machine or attested by a named person."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from models.registry.files import damage
from models.registry.schema import Version
from models.registry.state import State

if TYPE_CHECKING:
    from models.registry.registry import Registry

Check = Callable[["Registry", Version, "State"], str | None]
"""Returns the evidence, or None where the item does not hold."""


def _reports(version: Version, state: State) -> list[dict[str, Any]]:
    return state.reports.get(version.number, [])


def _intact(registry: Registry, version: Version, state: State) -> str | None:
    return (
        None if list(damage(registry.store, version)) else f"{len(version.files)} files hashed, {version.digest[:12]}"
    )


def _lineage(registry: Registry, version: Version, state: State) -> str | None:
    origin = version.parent or ("a recipe" if version.recipe else None)
    return f"from {origin}; data: {', '.join(version.data)}" if origin and version.data else None


def _licence(registry: Registry, version: Version, state: State) -> str | None:
    return version.licence


def _card(registry: Registry, version: Version, state: State) -> str | None:
    return "README.md" if "README.md" in version.files else None


def _evaluated(registry: Registry, version: Version, state: State) -> str | None:
    from models.registry.gates import requirement_problems

    policy = registry.policy(version.name)
    if policy is None or not policy.require or any(requirement_problems(r, version, state) for r in policy.require):
        return None
    return f"meets {len(policy.require)} requirements of the policy"


def _calibrated(registry: Registry, version: Version, state: State) -> str | None:
    figures = [r["ece"] for r in _reports(version, state) if r.get("ece") and r["ece"]["value"] is not None]
    return f"calibration error {figures[-1]['value']:.4f}, n = {figures[-1]['n']}" if figures else None


def _tag(prefix: str) -> Check:
    def check(registry: Registry, version: Version, state: State) -> str | None:
        tags = sorted({t for r in _reports(version, state) for t in r.get("by_tag", {}) if t.startswith(f"{prefix}=")})
        return f"{len(tags)} slices: {', '.join(tags)}" if len(tags) > 1 else None

    return check


def _latency(registry: Registry, version: Version, state: State) -> str | None:
    figures = [r["latency_ms"]["p95"] for r in _reports(version, state) if r["latency_ms"]["p95"]["value"] is not None]
    return f"p95 {figures[-1]['value']:.0f} ms at the evaluation's concurrency" if figures else None


def _rollback(registry: Registry, version: Version, state: State) -> str | None:
    others = [n for n in state.live if n != version.number]
    return f"version {others[-1]} was live" if others else None


def _second_person(registry: Registry, version: Version, state: State) -> str | None:
    return next((f"approved by {who}" for who in state.approvals.get(version.number, []) if who != version.by), None)


BY_MACHINE: dict[str, tuple[str, Check]] = {
    "intact": ("every file has its recorded digest", _intact),
    "lineage": ("what it was made from, and the digests of the data", _lineage),
    "licence": ("a licence is recorded", _licence),
    "card": ("a model card lies with the weights", _card),
    "evaluated": ("reports on this very version meet the policy", _evaluated),
    "calibrated": ("its confidence was checked against its errors", _calibrated),
    "robust": ("it was measured on damaged images", _tag("perturbation")),
    "languages": ("it was measured in more than one language", _tag("language")),
    "latency": ("its tail latency was measured", _latency),
    "rollback": ("there is a version to go back to", _rollback),
    "second-person": ("someone who did not register it approved it", _second_person),
}
BY_PERSON: dict[str, str] = {
    "use": "the intended use and what it must not be used for are written down",
    "oversight": "a person reviews what the model is not sure of, and can overrule it",
    "data-protection": "an assessment covers the personal data that images may show, and their retention",
    "incidents": "somebody is on call, with a path to escalate and to switch it off",
    "monitoring": "quality, drift and cost are watched in production, with alerts",
}


def checklist(registry: Registry, version: Version) -> list[dict[str, Any]]:
    """Return one row per item: `item`, `what`, `checked` (machine or person), `holds`, `evidence`."""
    state = registry.state(version.name)
    rows = []
    for item, (what, check) in BY_MACHINE.items():
        evidence = check(registry, version, state)
        rows.append(
            {"item": item, "what": what, "checked": "machine", "holds": evidence is not None, "evidence": evidence}
        )
    attested = state.attested.get(version.number, {})
    for item, what in BY_PERSON.items():
        who = attested.get(item)
        rows.append(_row(item, what, "person", f"attested by {who}" if who else None))
    return rows


def _row(item: str, what: str, checked: str, evidence: str | None) -> dict[str, Any]:
    return {"item": item, "what": what, "checked": checked, "holds": evidence is not None, "evidence": evidence}
