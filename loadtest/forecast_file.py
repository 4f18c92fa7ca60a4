"""The forecast of `fovea loadtest cost`: `models.cost.path.Forecast` in YAML, the volume by month if wanted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from models.support.errors import UsageError

_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


def read_yaml(path: str, option: str) -> dict[str, Any]:
    """Return a YAML mapping.

    Raises:
        UsageError: it cannot be read, is not YAML, or is not a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read: {error.strerror}", field=option, value=path, fix="name a file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(
            f"not YAML: {' '.join(str(error).split())}", field=option, value=path, fix="mend the file there"
        ) from error
    if not isinstance(data, dict):
        raise UsageError("must be a mapping of keys", field=option, value=path, fix="see docs/money.md")
    return data


def refuse_other_currency(data: dict[str, Any], where: str) -> None:
    """Take `currency: USD` out of a file; amounts in it are dollars, as their names say.

    Raises:
        UsageError: it names another currency.
    """
    currency = data.pop("currency", "USD")
    if currency != "USD":
        fix = "convert the amounts to US dollars (only price rows take a currency, with usd_per_unit)"
        raise UsageError("amounts are in US dollars", field=f"{where}: currency", value=currency, fix=fix)


def read_forecast(path: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the forecast's keys, and queries by month (empty without `months`).

    With `months: {2027-01: 800000, ...}` the volume of the forecast is their mean.

    Raises:
        UsageError: as `read_yaml`; a currency other than USD; a month is missing, twice or not a month.
    """
    data = read_yaml(path, "--forecast")
    refuse_other_currency(data, path)
    if "months" not in data:
        return data, {}
    if "queries_per_month" in data:
        raise UsageError("give either months or queries_per_month", field=f"{path}: months", fix="remove one of them")
    months = parse_months(data.pop("months"), f"{path}: months")
    data["queries_per_month"] = max(1, round(sum(months.values()) / len(months)))
    return data, months


def parse_months(given: object, where: str) -> dict[str, int]:
    """Return queries by month, in order.

    Raises:
        UsageError: not a mapping of YYYY-MM to whole numbers above 0, or a month between the first and last misses.
    """
    fix = "write months: {2027-01: 800000, 2027-02: 900000}"
    if not isinstance(given, Mapping) or not given:
        raise UsageError("must map months to queries", field=where, value=str(given), fix=fix)
    found: dict[int, int] = {}
    for name, queries in given.items():
        match = _MONTH.fullmatch(str(name))
        if match is None:
            raise UsageError("is not a month", field=where, value=str(name), fix=fix)
        if isinstance(queries, bool) or not isinstance(queries, int) or queries < 1:
            raise UsageError("must be a whole number above 0", field=f"{where}.{name}", value=queries, fix=fix)
        found[int(match[1]) * 12 + int(match[2]) - 1] = queries
    missing = [m for m in range(min(found), max(found) + 1) if m not in found]
    if missing:
        names = ", ".join(_name(m) for m in missing[:6])
        raise UsageError("the forecast has gaps", field=where, value=names, fix="give every month from first to last")
    return {_name(m): found[m] for m in sorted(found)}


def _name(month: int) -> str:
    return f"{month // 12:04d}-{month % 12 + 1:02d}"
