"""One process of load.  `python -m loadtest.worker` takes its orders on stdin and answers in JSON lines on stdout.

The parent sends the config, waits for `ready`, then says when to begin; the worker reports progress twice a second
and ends with a summary.  Its records are in a spill file.  When stdin closes (the parent is gone), the worker stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from loadtest.clock import SelfWatch
from loadtest.config import RunConfig
from loadtest.engine import Engine
from loadtest.plan import Plan
from loadtest.recorder import Recorder
from models.support.errors import FoveaError, UsageError

PROGRESS_S = 0.5

Tell = Callable[[dict[str, Any]], None]


def raise_file_limit() -> None:
    """Allow as many open connections as the system lets this user have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 1 << 20) if hard > 0 else soft, hard))


def make_loop() -> asyncio.AbstractEventLoop:
    """Return the fastest event loop there is."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def drive(
    config: RunConfig,
    plan: Plan,
    path: Path,
    *,
    worker: int = 0,
    workers: int = 1,
    start: Callable[[], Any] | None = None,
    tell: Tell = lambda message: None,
    on_begin: Callable[[float], None] = lambda begin: None,
    on_engine: Callable[[Engine], None] = lambda engine: None,
) -> dict[str, Any]:
    """Run a plan in the running loop; return the summary (JSON-ready).  The records are in `path`.

    Args:
        start: awaited once everything is ready; returns second 0 of the schedule, in `perf_counter()` time.
        on_begin: told that time.

    Raises:
        UsageError: the server cannot be reached at all.
        OSError: the disk is full; what was recorded stays in the file.
    """
    loop = asyncio.get_running_loop()
    recorder = Recorder(path, perf_counter(), worker)
    engine = Engine(
        plan.streams,
        plan.target,
        plan.api,
        recorder,
        until=plan.until,
        warmup_s=config.warmup_s,
        timeout_s=config.timeout_s,
        max_connections=max(1, config.max_connections // workers),
        tls=plan.target.ssl_context(config.verify_tls),
        seed=config.seed * 1000 + worker,
        retries=config.retries,
    )
    failure: BaseException | None = None
    cpu = 0.0
    on_engine(engine)
    watch = SelfWatch(loop)
    # What exists now lives to the end: keep the collector from walking over it again and again.
    gc.collect()
    gc.freeze()
    try:
        try:
            await engine.pool.connect(plan.connect_first)
        except (OSError, TimeoutError) as error:
            raise UsageError(
                f"cannot connect: {error or type(error).__name__}",
                field="--url",
                value=config.url,
                fix="is the server up?",
            ) from error
        begin = await start() if start is not None else perf_counter() + 0.02
        recorder.start = begin
        on_begin(begin)
        watch.start()
        ticker = loop.create_task(_progress(recorder, tell))
        try:
            await engine.run(begin)
        except Exception as error:
            failure = error
        finally:
            ticker.cancel()
        elapsed = perf_counter() - begin
    finally:
        gc.unfreeze()
        cpu = watch.stop()
        try:
            recorder.close()
        except OSError as error:
            failure = failure or error
    sources = [s.source for s in plan.streams]
    return {
        "count": recorder.count,
        "errors": recorder.errors,
        "examples": recorder.examples,
        "wrong": recorder.wrong,
        "retried": recorder.retried,
        "gaps": recorder.gap_histogram.to_list(),
        "lag": watch.lag.to_dict(),
        "cpu": cpu,
        "elapsed": elapsed,
        "interrupted": engine.interrupted,
        "failure": None if failure is None else f"{type(failure).__name__}: {failure}",
        "peak_connections": engine.pool.peak,
        "repeats": sum(s.repeats for s in sources),
        "busted": sum(s.busts for s in sources),
        "conversations": [s.counts for s in sources],
        "issued": [s.issued for s in plan.streams],
    }


async def _progress(recorder: Recorder, tell: Tell) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        message: dict[str, Any] = {"progress": recorder.count, "errors": recorder.errors}
        if recorder.recent:
            p50, p95 = np.percentile(recorder.recent, (50, 95))
            message["recent"] = [float(p50) * 1000, float(p95) * 1000]
            recorder.recent.clear()
        tell(message)


def run_here(
    config: RunConfig, plan: Plan, path: Path, tell: Tell, on_begin: Callable[[float], None]
) -> dict[str, Any]:
    """Run a plan in this process; Ctrl-C stops it and what was measured is kept.  Works inside a running loop too."""
    raise_file_limit()

    async def main() -> dict[str, Any]:
        return await drive(config, plan, path, tell=tell, on_begin=on_begin, on_engine=_stop_on_signal)

    def run() -> dict[str, Any]:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            return runner.run(main())

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return run()
    result: dict[str, Any] = {}
    errors: list[BaseException] = []

    def in_thread() -> None:
        try:
            result.update(run())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=in_thread, name="loadtest")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return result


def _stop_on_signal(engine: Engine) -> None:
    if threading.current_thread() is threading.main_thread():
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, engine.stop)


def main() -> int:
    """Serve one parent over stdin and stdout."""
    from loadtest.plan import load_workloads, make_plan

    def tell(message: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()

    order = json.loads(sys.stdin.readline())
    worker, workers = order["worker"], order["workers"]
    raise_file_limit()
    try:
        config = RunConfig(**order["config"])
        plan = make_plan(config, load_workloads(config), worker, workers)

        async def serve() -> dict[str, Any]:
            engines: list[Engine] = []
            began = asyncio.Event()
            begin = [0.0]

            def on_stdin() -> None:
                line = os.read(0, 65536)
                if line:
                    begin[0] = float(json.loads(line)["begin"])
                    began.set()
                    return
                loop.remove_reader(0)
                for engine in engines:
                    engine.stop()
                began.set()

            loop = asyncio.get_running_loop()
            loop.add_reader(0, on_stdin)

            async def start() -> float:
                tell({"ready": True})
                await began.wait()
                return begin[0] or perf_counter()

            def on_engine(engine: Engine) -> None:
                engines.append(engine)
                _stop_on_signal(engine)

            path = Path(order["path"])
            return await drive(
                config, plan, path, worker=worker, workers=workers, start=start, tell=tell, on_engine=on_engine
            )

        with asyncio.Runner(loop_factory=make_loop) as runner:
            tell({"done": runner.run(serve())})
    except FoveaError as error:
        tell({"error": {**error.as_dict(), "exit_code": error.exit_code}})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
