"""Run a load test: `run_load(config)` gives a `Report`, `write_reports(report, folder)` writes it.

config = make_config(url="http://127.0.0.1:8000/v1", model="m", duration_s=60,
                     classes=[{"name": "main", "workload": "easy-vqa", "rate": 5}])
report = run_load(config)
write_reports(report, Path("out"))
"""

from __future__ import annotations

import datetime as dt
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from loadtest.config import RunConfig
from loadtest.plan import load_workloads, make_plan, whole_run
from loadtest.recorder import read_records
from loadtest.report import Report, build_report, write_reports
from loadtest.telemetry import Telemetry
from models.support.errors import FoveaError, UsageError
from models.support.progress import Progress

__all__ = ["Report", "run_load", "write_reports"]


class Board:
    """Puts the progress of all processes into one line."""

    def __init__(self, progress: Progress, processes: int):
        self.progress = progress
        self.begun = perf_counter()
        self.counts = [0] * processes
        self.errors = [0] * processes

    def tell(self, worker: int, message: dict[str, Any]) -> None:
        """Take one worker's progress message."""
        self.counts[worker], self.errors[worker] = message["progress"], message["errors"]
        note = f"{sum(self.counts):,} requests, {sum(self.errors):,} errors"
        if "recent" in message:
            note += f", p50 {message['recent'][0]:,.0f} ms, p95 {message['recent'][1]:,.0f} ms"
        by_time = self.progress.unit == ""
        self.progress.update(max(0.0, perf_counter() - self.begun) if by_time else sum(self.counts), note)


def run_load(
    config: RunConfig,
    *,
    progress: bool | None = None,
    spill: Path | None = None,
    on_begin: Callable[[float], None] | None = None,
) -> Report:
    """Run the load and return its report.  Ctrl-C ends the run early; the report is then marked partial.

    Args:
        progress: show the progress line; by default only on a terminal.
        on_begin: told when second 0 of the schedule is, in `perf_counter()` time, just before it.
        spill: folder for the raw records while the run lasts; a temporary one by default.

    Raises:
        UsageError: config, workload or server are not usable; nothing was measured.
    """
    workloads = load_workloads(config)
    started = dt.datetime.now(dt.UTC)
    about: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fovea-loadtest-", dir=spill) as folder:
        plan = make_plan(config, workloads) if config.processes == 1 and config.ray_address is None else None
        first = plan if plan is not None else make_plan(config, workloads, 0, 1_000_000)
        if config.check_model:
            from loadtest.plan import api_key
            from loadtest.preflight import check_server

            payload = first.streams[0].source.sample()
            about = check_server(config, first.target, first.api, api_key(config), payload)
        total = whole_run(config) if config.duration_s is not None else config.requests
        unit = "" if config.duration_s is not None else "requests"
        with Progress(total, "load", unit, enabled=progress) as line, Telemetry(config.metrics_urls) as scrape:
            board = Board(line, config.processes)

            def begin(when: float) -> None:
                board.begun = when
                if on_begin is not None:
                    on_begin(when)

            if plan is not None:
                from loadtest.worker import run_here

                path = Path(folder) / "0.bin"
                summaries = [run_here(config, plan, path, lambda message: board.tell(0, message), begin)]
                paths = [path]
            elif config.ray_address is not None:
                from loadtest.cluster import run_on_ray

                summaries, paths = run_on_ray(config, Path(folder), board.tell)
            else:
                summaries, paths = run_processes(config, Path(folder), board.tell, begin)
        records = np.concatenate([read_records(path) for path in paths])
    records = records[np.argsort(records["intended"], kind="stable")]
    return build_report(config, workloads, records, summaries, started=started, about=about, server=scrape.result())


def run_processes(
    config: RunConfig,
    folder: Path,
    tell: Callable[[int, dict[str, Any]], None],
    on_begin: Callable[[float], None],
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Run the load in `config.processes` processes of this machine; return their summaries and record files.

    All processes begin at the same moment: the clock of `perf_counter()` is the system's on Linux, the same in each.

    Raises:
        UsageError: a process could not do its part; FoveaError: one died.
    """
    root = str(Path(__file__).resolve().parent.parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))}
    count = config.processes
    order = {"config": config.model_dump(mode="json"), "workers": count}
    paths = [folder / f"{i}.bin" for i in range(count)]
    children: list[subprocess.Popen[str]] = []
    summaries: dict[int, dict[str, Any]] = {}
    ready = 0
    try:
        with selectors.DefaultSelector() as selector:
            for number in range(count):
                child = subprocess.Popen(
                    [sys.executable, "-m", "loadtest.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env=environment,
                    start_new_session=True,  # Ctrl-C reaches the parent, who passes it on once
                )
                children.append(child)
                assert child.stdin is not None and child.stdout is not None
                child.stdin.write(json.dumps({**order, "worker": number, "path": str(paths[number])}) + "\n")
                child.stdin.flush()
                selector.register(child.stdout, selectors.EVENT_READ, number)
            while len(summaries) < count:
                try:
                    events = selector.select()
                    for key, _ in events:
                        number = key.data
                        line = children[number].stdout.readline()
                        message = json.loads(line) if line else {}
                        if "done" in message:
                            summaries[number] = message["done"]
                            selector.unregister(key.fileobj)
                        elif "ready" in message:
                            ready += 1
                            if ready == count:
                                begin = perf_counter() + 0.1
                                on_begin(begin)
                                _send(children, {"begin": begin})
                        elif "progress" in message:
                            tell(number, message)
                        else:
                            raise _failed(message, children[number])
                except KeyboardInterrupt:
                    for child in children:
                        if child.poll() is None:
                            child.send_signal(signal.SIGINT)
    finally:
        for child in children:
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()
        for child in children:
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
    return [summaries[i] for i in range(count)], paths


def _send(children: list[subprocess.Popen[str]], message: dict[str, Any]) -> None:
    for child in children:
        assert child.stdin is not None
        child.stdin.write(json.dumps(message) + "\n")
        child.stdin.flush()


def _failed(message: dict[str, Any], child: subprocess.Popen[str]) -> FoveaError:
    error = message.get("error")
    if error is None:
        return FoveaError(f"a load process died (exit code {child.wait()})", field="--processes")
    kind = UsageError if error["exit_code"] == 2 else FoveaError
    return kind(error["message"], field=error["field"], value=error["value"], fix=error["fix"])
