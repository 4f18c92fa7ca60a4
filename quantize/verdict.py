"""Thresholds and what follows from them: pass, fail, or not enough items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from models.support.errors import UsageError
from quantize.recovery import Recovery
from quantize.request import Closed
from quantize.schemes import SCHEMES

SHIPPED = Path(__file__).with_name("thresholds.yaml")
Outcome = Literal["pass", "fail", "not enough items"]


class Thresholds(Closed):
    """One set of limits; see thresholds.yaml for what each means."""

    recovery: float = Field(gt=0, le=1.5)
    category_recovery: float | None = Field(None, gt=0, le=1.5)
    items: int = Field(300, ge=1)
    divergence: float | None = Field(None, ge=0)
    calibration_error: float | None = Field(None, ge=0, le=1)
    p95_ratio: float | None = Field(None, gt=0)
    size_ratio: float | None = Field(None, gt=0)


class ThresholdFile(Closed):
    """The file: `default`, and per scheme what differs."""

    default: Thresholds
    schemes: dict[str, dict[str, float | int | None]] = Field(default_factory=dict)


def load_thresholds(scheme: str, path: Path | None = None) -> Thresholds:
    """Return the limits of a scheme from `path` (the shipped file when None).

    Raises:
        UsageError: the file cannot be read, is no YAML, or a key or value is wrong (it is named).
    """
    source = path or SHIPPED
    try:
        found = ThresholdFile.model_validate(yaml.safe_load(source.read_text("utf-8")))
        unknown = sorted(found.schemes.keys() - SCHEMES.keys())
        if unknown:
            fix = f"one of {', '.join(SCHEMES)}"
            raise UsageError("unknown scheme", field=f"{source.name}: schemes", value=unknown[0], fix=fix)
        for name, values in found.schemes.items():
            merged = Thresholds.model_validate({**found.default.model_dump(), **values})
            if name == scheme:
                return merged
        return found.default
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror}", field="thresholds", value=str(source)) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError("not YAML", field="thresholds", value=str(source)) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"]) or "file"
        value = first["input"] if isinstance(first["input"], str | int | float) else None
        raise UsageError(
            first["msg"], field=f"{source.name}: {key}", value=value, fix="see the shipped file"
        ) from error


@dataclass(frozen=True)
class Check:
    """One limit and what was found: `held` is None when the sample cannot tell."""

    name: str
    held: bool | None
    text: str

    def as_dict(self) -> dict[str, Any]:
        """Return the check as JSON."""
        return {"name": self.name, "held": self.held, "text": self.text}


@dataclass(frozen=True)
class Verdict:
    """The outcome, one sentence, every check, and the categories that failed."""

    outcome: Outcome
    sentence: str
    checks: list[Check]
    failed_categories: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON."""
        return {
            "outcome": self.outcome,
            "sentence": self.sentence,
            "checks": [c.as_dict() for c in self.checks],
            "failed_categories": self.failed_categories,
        }


def check_recovery(name: str, found: Recovery, threshold: float) -> Check:
    """Return whether the lower end of the interval reaches the threshold; None when only the upper end does."""
    if found.value is None or found.low is None or found.high is None:
        return Check(name, None, "the parent has no right answer there")
    text = f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f}), at least {threshold:g} asked, n = {found.n}"
    if found.low >= threshold:
        return Check(name, True, text)
    if found.high < threshold:
        return Check(name, False, text)
    more = found.items_for(threshold)
    hint = f"about {more:,} items would show it" if more else "the value itself lies below"
    return Check(name, None, f"{text}; {hint}")


def decide(
    thresholds: Thresholds,
    overall: Recovery,
    categories: Mapping[str, Recovery],
    figures: Mapping[str, float | None],
) -> Verdict:
    """Return the verdict.

    Args:
        overall, categories: recoveries.
        figures: `divergence`, `calibration_error` (rise), `p95_ratio`, `size_ratio`; None where not measured.

    One failed check fails the whole.  Otherwise too few items, a recovery that the sample cannot tell, or a figure that
    is limited but missing leaves no verdict.
    """
    checks = [check_recovery("recovery", overall, thresholds.recovery)]
    failed: list[str] = []
    if thresholds.category_recovery is not None:
        for name, found in categories.items():
            check = check_recovery(f"recovery of {name}", found, thresholds.category_recovery)
            if check.held is False:
                failed.append(name)
            # a category that is too small to tell is told, and does not stand in the way
            checks.append(
                check if check.held is not None else Check(check.name, True, f"not shown to fail: {check.text}")
            )
    for name in ("divergence", "calibration_error", "p95_ratio", "size_ratio"):
        limit, value = getattr(thresholds, name), figures.get(name)
        if limit is None:
            continue
        if value is None:
            checks.append(Check(name, None, "not measured"))
        else:
            checks.append(Check(name, value <= limit, f"{value:.4g}, at most {limit:g} asked"))
    if overall.n < thresholds.items:
        checks.append(Check("items", None, f"{overall.n} paired items, at least {thresholds.items} asked"))
    broken = [c for c in checks if c.held is False]
    open_checks = [c for c in checks if c.held is None]
    if broken:
        where = f"; categories that failed: {', '.join(failed)}" if failed else ""
        told = f"{broken[0].name} {broken[0].text}"
        return Verdict("fail", f"must not replace its parent: {told}{where}", checks, failed)
    if open_checks:
        told = f"{open_checks[0].name} {open_checks[0].text}"
        return Verdict("not enough items", f"cannot be decided on this sample: {told}", checks, failed)
    return Verdict("pass", f"may replace its parent: recovery {checks[0].text}", checks, failed)
