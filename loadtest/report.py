"""The report of one load test: `report.json`'s content, the raw records, and every file made from them."""

from __future__ import annotations

import datetime as dt
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loadtest import cost
from loadtest.config import RunConfig, Slo, TrafficClass
from loadtest.health import generator_of, judge, retries_of
from loadtest.measure import durations, figures, histogram_summary
from loadtest.money import cost_or_why
from loadtest.plan import window as planned_window
from loadtest.recorder import RECORD
from loadtest.stats import Figure
from loadtest.usage import usage_of
from loadtest.workloads.base import Workload
from models.support.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEMA_VERSION = "1.2"


@dataclass
class Report:
    """What a run gave.

    Args:
        data: the content of report.json.
        records: all requests, warm-up included, sorted by intended time; dtype `loadtest.recorder.RECORD`.
        items: per traffic class, the id of every item that occurs in `records`.
    """

    data: dict[str, Any]
    records: NDArray[np.void] = field(repr=False)
    items: list[dict[int, str]] = field(default_factory=list, repr=False)

    @property
    def valid(self) -> bool:
        """Did the generator keep its own schedule?  (False: the figures are about the generator, not the server.)"""
        return bool(self.data["valid"])

    @property
    def partial(self) -> bool:
        """Was the run ended before its time?"""
        return bool(self.data["partial"])


def real_window(config: RunConfig, records: NDArray[np.void], summaries: list[dict[str, Any]]) -> tuple[float, float]:
    """Return the measured part: as planned, or up to where the run got."""
    low, high = planned_window(config)
    got = max((float(s["elapsed"]) for s in summaries), default=0.0)
    if math.isinf(high) or any(s["interrupted"] for s in summaries):
        last = float(np.nanmax(records["end"])) if len(records) else low
        high = min(high, max(last, low) + 1e-6) if math.isinf(high) else min(high, max(got, low))
    return low, max(high, low + 1e-6)


def merge_examples(summaries: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the first examples of each kind of error over all processes."""
    merged: dict[str, list[str]] = {}
    for one in summaries:
        for kind, texts in one["examples"].items():
            merged[kind] = (merged.get(kind, []) + texts)[:3]
    return merged


def build_report(
    config: RunConfig,
    workloads: list[Workload],
    records: NDArray[np.void],
    summaries: list[dict[str, Any]],
    *,
    started: dt.datetime,
    about: dict[str, Any],
    server: dict[str, Any],
) -> Report:
    """Return the report of the records and summaries of all processes."""
    from models.evaluation.context import hardware, versions

    window = real_window(config, records, summaries)
    examples = merge_examples(summaries)
    slo = config.classes[0].slo if len(config.classes) == 1 else Slo()
    whole = figures(records, window, slo, examples)
    failures = [s["failure"] for s in summaries if s["failure"]]
    data: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": "loadtest",
        "command": config.command,
        "started": started.isoformat(timespec="seconds"),
        "partial": any(s["interrupted"] for s in summaries),
        "failures": failures,
        "valid": True,
        "invalid_because": [],
        "warnings": [],
        "seed": config.seed,
        "target": {"url": config.url, "model": config.model, "api": config.api, "stream": config.stream, **about},
        "load": _load(config, window),
        "workload": [_workload(c, w) for c, w in zip(config.classes, workloads, strict=True)],
        **whole,
        "inter_token_ms": histogram_summary([b for s in summaries for b in s["gaps"]]),
    }
    data["workload"][0]["repeats"] = sum(s["repeats"] for s in summaries)
    data["workload"][0]["cache_busted"] = sum(s["busted"] for s in summaries)
    for number, one in enumerate(data["workload"]):
        talks = [s["conversations"][number] for s in summaries]
        if any(talks):
            one["conversations"] = {key: sum(t[key] for t in talks) for key in talks[0]}
    data["retries"] = retries_of(config, records, summaries, window)
    if len(config.classes) > 1:
        data["classes"] = {
            c.name: figures(records[records["cls"] == i], window, c.slo, examples) for i, c in enumerate(config.classes)
        }
    data["wrong_answers"] = [w for s in summaries for w in s["wrong"]][:20]
    data["generator"] = generator_of(config, records, summaries, window)
    judge(config, data)
    measured = records[(records["intended"] >= window[0]) & (records["intended"] < window[1])]
    data["usage"] = usage_of(workloads, measured, config.model, data["target"].get("root"))
    data["cost"] = _money(config, data)
    data["baselines"], data["baselines_note"] = cost.baselines(data["usage"])
    data["gpus"] = server["gpus"]
    data["server"] = {key: server[key] for key in ("rows", "problems", "urls")} if server["urls"] else {}
    data["versions"] = versions()
    data["hardware"] = {
        "generator": hardware(),
        "server": None if config.hardware is None else config.hardware.model_dump(mode="json"),
    }
    data["money"], data["money_note"] = cost_or_why(data)
    return Report(data, records, [_names(w, records, i) for i, w in enumerate(workloads)])


def _load(config: RunConfig, window: tuple[float, float]) -> dict[str, Any]:
    out = config.model_dump(
        mode="json",
        include={
            "warmup_s",
            "cooldown_s",
            "processes",
            "max_connections",
            "timeout_s",
            "retries",
            "temperature",
            "cache_bust",
        },
    )
    out["duration_s"] = round(window[1] - window[0], 6)
    out["classes"] = [
        {**c.model_dump(mode="json", exclude={"headers", "slo"}), "loop": "open" if c.open_loop else "closed"}
        for c in config.classes
    ]
    return out


def _workload(traffic: TrafficClass, workload: Workload) -> dict[str, Any]:
    return {"class": traffic.name, "name": workload.name, "digest": workload.digest, "items": len(workload)}


def _names(workload: Workload, records: NDArray[np.void], number: int) -> dict[int, str]:
    used = np.unique(records["item"][records["cls"] == number])
    return {int(i): workload.item(int(i)).id for i in used if i < len(workload)}


def _money(config: RunConfig, data: dict[str, Any]) -> dict[str, Any]:
    spending: dict[str, Any] = {"formula": cost.FORMULA, "currency": "USD"}
    if config.hardware is None:
        missing = {
            "value": None,
            "low": None,
            "high": None,
            "n": data["usage"]["requests"],
            "note": "no hardware section given",
        }
        spending |= {"usd_per_query": missing, "usd_per_correct_answer": dict(missing)}
    else:
        rps = data["throughput_rps"]
        query = cost.per_query(
            config.hardware, Figure(rps["value"], rps["low"], rps["high"], rps["n"], rps.get("note", ""))
        )
        right = data["accuracy"]
        share = Figure(right["value"], right["low"], right["high"], right["n"])
        spending |= {"usd_per_query": query, "usd_per_correct_answer": cost.per_correct(query, share)}
        spending["inputs"] = config.hardware.model_dump(mode="json")
    return spending


def write_reports(report: Report, out: Path | str) -> dict[str, Path]:
    """Write every file of the report into a folder; return them by kind.

    Raises:
        UsageError: the folder cannot be written to, or the disk is full.
    """
    from loadtest.html_report import render
    from loadtest.text_report import markdown, prometheus, write_csv
    from models.support.files import atomic_write, write_json

    folder = Path(out)
    paths = {kind: folder / name for kind, name in FILES.items()}
    # What says most comes first, what grows with the run last: a full disk then keeps as much as possible.
    write_json(paths["json"], report.data)
    for kind, text in (
        ("html", render(report.data)),
        ("markdown", markdown(report.data)),
        ("prometheus", prometheus(report.data)),
    ):
        with atomic_write(paths[kind]) as file:
            file.write(text)
    with atomic_write(paths["records"], "wb") as file:
        np.save(file, report.records, allow_pickle=False)
    write_csv(paths["csv"], report)
    return paths


def load_report(folder: Path | str) -> Report:
    """Read a report back from its folder (or from the path of its report.json).

    Raises:
        UsageError: it is not there, or not a load test's.
    """
    path = Path(folder)
    path = path.parent if path.name == FILES["json"] else path
    try:
        data = json.loads((path / FILES["json"]).read_bytes())
        records = np.load(path / FILES["records"], allow_pickle=False)
    except OSError as error:
        fix = "name the folder that --out wrote"
        raise UsageError(
            f"cannot read the report: {error.strerror}", field="report", value=str(folder), fix=fix
        ) from error
    except ValueError as error:
        raise UsageError(
            f"not a report: {error}",
            field="report",
            value=str(folder),
            fix="name the --out folder of `fovea loadtest run`, or its report.json",
        ) from error
    if not isinstance(data, dict) or data.get("kind") != "loadtest":
        raise UsageError("not a load test's report", field="report", value=str(folder), fix="name the folder of a run")
    if records.dtype != RECORD:
        raise UsageError("was written by another version", field="report", value=str(folder), fix="run again")
    return Report(data, records)


FILES = {
    "json": "report.json",
    "html": "report.html",
    "markdown": "report.md",
    "csv": "requests.csv",
    "records": "requests.npy",
    "prometheus": "report.prom",
}

__all__ = ["SCHEMA_VERSION", "Report", "build_report", "durations", "load_report", "write_reports"]
