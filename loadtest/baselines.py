"""What a query costs elsewhere: measured by another report, or priced from the book; each one labelled."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from models.baselines import vendor_baselines
from models.cost.forecast import Forecast
from models.prices import PriceBook, Usage
from models.support.errors import UsageError


@dataclass(frozen=True)
class Baseline:
    """One way to have the same queries answered.

    Attributes:
        usd_per_query: dollars for one attempt at the model, without the rest of the path.
        success_rate: share of right answers, where somebody measured it.
        label: how the price was found.
        image_tokens: mean per query, by the vendor's `image_rule`, decimal text; None for a measured bill.
        effective_from, read: since when the price holds, and when its source was last seen to say so.
    """

    vendor: str
    model: str
    usd_per_query: Decimal
    label: str
    measured: bool = False
    success_rate: Decimal | None = None
    n: int | None = None
    image_tokens: str | None = None
    image_rule: str | None = None
    effective_from: str = ""
    read: str = ""
    source: str = ""
    stale: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, money as decimal text."""
        return {
            **vars(self),
            "usd_per_query": f"{self.usd_per_query:f}",
            "success_rate": None if self.success_rate is None else f"{self.success_rate:f}",
        }


def labelled_baselines(forecast: Forecast, book: PriceBook, measured: Sequence[Baseline]) -> list[Baseline]:
    """Return the measured baselines and, for every other model of the book that has an image rule, the priced one."""
    seen = {one.model for one in measured}
    priced = [row for row in vendor_baselines(forecast.usage, book=book) if row["model"] not in seen]
    return [*measured, *(Baseline(label=row.pop("note"), **row) for row in priced)]


def read_report(path: str) -> dict[str, Any]:
    """Return the content of a report.json (or of the one in a folder).

    Raises:
        UsageError: it cannot be read, or is neither a load test's nor an evaluation's.
    """
    file = Path(path)
    file = file / "report.json" if file.is_dir() else file
    fix = "name the report.json of `fovea loadtest run` or `fovea models evaluate`"
    try:
        data = json.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror}", field="REPORT", value=path, fix=fix) from error
    except ValueError as error:
        raise UsageError(f"not JSON: {error}", field="REPORT", value=path, fix=fix) from error
    kind = data.get("kind") if isinstance(data, dict) else None
    if kind not in ("loadtest", "evaluation"):
        raise UsageError("neither a load test's report nor an evaluation's", field="REPORT", value=path, fix=fix)
    if kind == "loadtest" and "recalled" not in data.get("usage", {}):
        raise UsageError("was written by an older version", field="REPORT", value=path, fix="run again")
    if kind == "loadtest" and not data["usage"]["requests"]:
        raise UsageError("not one request succeeded in it", field="REPORT", value=path, fix="run again")
    return dict(data)


def is_own(data: Mapping[str, Any], book: PriceBook) -> bool:
    """Whether a report is of machines of one's own (and not of a vendor's API)."""
    if data["kind"] != "loadtest":
        return False
    return data["hardware"]["server"] is not None or not _in_book(data["target"]["model"], book)


def _in_book(model: str, book: PriceBook) -> bool:
    try:
        book.find(model)
    except UsageError:
        return False
    return True


def measured_baseline(data: Mapping[str, Any], path: str, book: PriceBook) -> Baseline:
    """Return what a report of something else measured: an evaluation's bill, or a load test's usage or machines.

    Raises:
        UsageError: the report has no price.
    """
    # items that a spend limit left unasked say nothing about the model
    stopped = data["kind"] == "evaluation" and data.get("run", {}).get("stopped")
    right = data["accuracy_answered" if stopped else "accuracy"]
    share = Decimal(repr(right["value"])) if right["value"] else None
    if data["kind"] == "evaluation":
        if not data.get("cost"):
            fix = "evaluate a vendor's model with --max-usd, or leave this report out"
            raise UsageError("the evaluation has no cost", field="REPORT", value=path, fix=fix)
        vendor, _, model = str(data["model"]).rpartition("/")
        each = Decimal(data["cost"]["usd_per_query"])
        return Baseline(vendor or "own", model, each, "measured", True, share, right["n"], source=path)
    model = data["target"]["model"]
    if is_own(data, book):
        from loadtest.money_inputs import sustained
        from models.cost.ledger import usd_per_request

        hardware = data["hardware"]["server"]
        if hardware is None:
            fix = "give --usd-per-hour to the run"
            raise UsageError("has no price of its hardware", field="REPORT", value=path, fix=fix)
        each = usd_per_request(Decimal(hardware["usd_per_hour"]), sustained(data), Decimal(hardware["utilization"]))
        return Baseline("own", model, each, "measured", True, share, data["usage"]["requests"], source=path)
    row, usage = book.find(model), data["usage"]
    if usage["prompt_tokens"] is None:
        raise UsageError(
            "the vendor reported no usage", field="REPORT", value=path, fix="run it with usage in the stream"
        )
    n = usage["requests"]
    cost = row.cost(Usage(usage["prompt_tokens"], usage["completion_tokens"]), requests=n).total / n
    label = "measured usage at the list price"
    return Baseline(
        row.vendor,
        row.model,
        cost,
        label,
        True,
        share,
        n,
        effective_from=row.effective_from.isoformat(),
        read=row.read.isoformat(),
        source=row.source,
        stale=row.is_stale(),
    )
