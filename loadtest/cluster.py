"""The load processes as actors of a Ray cluster, on as many machines as it has.

Each machine times with its own clock, from its own start, and sends back durations only: records (lossless) and
histograms (mergeable).  So no two machines' clocks are ever compared; they begin together to within a message's
travel time.  Fovea must be installed on every machine, in the same version.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from loadtest.config import RunConfig
from models.support.errors import UsageError

if TYPE_CHECKING:
    from loadtest.engine import Engine

BEGIN_IN_S = 0.5  # after all are ready
POLL_S = 0.5
REACH_S = 10
READY_S = 60  # how long the actors may take to be placed and prepared


class LoadActor:
    """One load process on some machine.  Ray runs `load` in one thread, and the other methods beside it.

    Args:
        key: the API key.  (Not in the actor's environment settings, which Ray shows to everybody.)
    """

    def __init__(self, config: dict[str, Any], worker: int, workers: int, files: dict[str, bytes], key: str):
        from loadtest.plan import key_name, load_workloads, make_plan
        from loadtest.worker import raise_file_limit

        raise_file_limit()
        self._message: dict[str, Any] = {}
        self._stop: Callable[[], object] | None = None
        self._stopped = False
        self._folder = tempfile.TemporaryDirectory(prefix="fovea-loadtest-")
        os.chdir(self._folder.name)
        for name, data in files.items():
            (Path(self._folder.name) / name).write_bytes(data)
        self.config = RunConfig(**config)
        os.environ[key_name(self.config)] = key
        self.worker, self.workers = worker, workers
        self.plan = make_plan(self.config, load_workloads(self.config), worker, workers)

    def ready(self) -> bool:
        """Return once everything is prepared."""
        return True

    def load(self) -> tuple[dict[str, Any], bytes]:
        """Run; return the summary and the raw records."""
        from loadtest.worker import drive, make_loop

        path = Path(self._folder.name) / "records.bin"

        def on_engine(engine: Engine) -> None:
            loop = asyncio.get_running_loop()
            self._stop = lambda: loop.call_soon_threadsafe(engine.stop)
            if self._stopped:
                engine.stop()

        async def start() -> float:
            return perf_counter() + BEGIN_IN_S

        async def main() -> dict[str, Any]:
            return await drive(
                self.config,
                self.plan,
                path,
                worker=self.worker,
                workers=self.workers,
                start=start,
                tell=self._message.update,
                on_engine=on_engine,
            )

        with asyncio.Runner(loop_factory=make_loop) as runner:
            summary = runner.run(main())
        self._stop = None
        return summary, path.read_bytes()

    def progress(self) -> dict[str, Any]:
        """Return the latest progress message, an empty one before the first."""
        return dict(self._message)

    def stop(self) -> None:
        """End the run now; `load` then returns what was measured."""
        self._stopped = True
        if self._stop is not None:
            self._stop()


def run_on_ray(
    config: RunConfig, folder: Path, tell: Callable[[int, dict[str, Any]], None]
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Run `config.processes` actors spread over the cluster; return their summaries and record files.

    Files that the config names (workloads, traces) are sent along.  Ctrl-C ends the run, and what was measured is kept.

    Raises:
        UsageError: the cluster cannot be reached, or an actor refuses its config.
    """
    import ray

    from loadtest.plan import api_key

    assert config.ray_address is not None
    _check_address(config.ray_address)
    root = str(Path(__file__).resolve().parent.parent)
    environment = {"env_vars": {"PYTHONPATH": root}}
    try:
        ray.init(address=config.ray_address, runtime_env=environment, log_to_driver=False, logging_level=40)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"cannot reach Ray: {error}",
            field="--ray-address",
            value=config.ray_address,
            fix="start it (`ray start --head`), and name HOST:PORT of its client server",
        ) from error
    try:
        values, files = _portable(config)
        kind: Any = ray.remote(LoadActor)
        kind = kind.options(num_cpus=1, scheduling_strategy="SPREAD", max_concurrency=2)
        count = config.processes
        actors: list[Any] = [kind.remote(values, i, count, files, api_key(config)) for i in range(count)]
        try:
            _wait_for_room(ray, actors, config)
            runs = [actor.load.remote() for actor in actors]
            _watch(ray, actors, runs, tell)
            results = ray.get(runs)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise (
                cause
                if isinstance(cause, UsageError)
                else UsageError(
                    f"a load actor failed: {error}",
                    field="--ray-address",
                    value=config.ray_address,
                    fix="see the log of the Ray cluster: this project must be installed on each machine",
                )
            ) from error
        except ray.exceptions.RayActorError as error:
            raise UsageError(
                f"a load actor died: {error}",
                field="--ray-address",
                value=config.ray_address,
                fix="see the log of the Ray cluster; try fewer --processes",
            ) from error
    finally:
        ray.shutdown()
    paths = []
    for number, (_, data) in enumerate(results):
        paths.append(folder / f"{number}.bin")
        paths[-1].write_bytes(data)
        tell(number, {"progress": results[number][0]["count"], "errors": results[number][0]["errors"]})
    return [summary for summary, _ in results], paths


def _check_address(address: str) -> None:
    """Find out at once whether something listens there: Ray itself would try for minutes.

    Raises:
        UsageError: it is no address, or nothing answers.
    """
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    fix = "give HOST:PORT of the cluster's head, or auto"
    if not host or not port.isdigit():
        raise UsageError("not an address", field="--ray-address", value=address, fix=fix)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"cannot reach Ray: {error}", field="--ray-address", value=address, fix=fix) from error


def _wait_for_room(ray: Any, actors: list[Any], config: RunConfig) -> None:
    """Wait until all actors are prepared.

    Raises:
        UsageError: the cluster has no room for them.
    """
    prepared = [actor.ready.remote() for actor in actors]
    done, _ = ray.wait(prepared, num_returns=len(prepared), timeout=READY_S)
    if len(done) < len(prepared):
        message = f"only {len(done)} of {len(prepared)} load processes got a CPU of the cluster within {READY_S} s"
        raise UsageError(message, field="--processes", value=config.processes, fix="use fewer, or a larger cluster")
    ray.get(prepared)


def _watch(ray: Any, actors: list[Any], runs: list[Any], tell: Callable[[int, dict[str, Any]], None]) -> None:
    """Pass progress on until all runs are over; Ctrl-C stops them once, a second one is not caught."""
    pending, stopped = list(runs), False
    while pending:
        try:
            _, pending = ray.wait(pending, num_returns=len(pending), timeout=POLL_S)
            for number, message in enumerate(ray.get([actor.progress.remote() for actor in actors])):
                if message:
                    tell(number, message)
        except KeyboardInterrupt:
            if stopped:
                raise
            stopped = True
            for actor in actors:
                actor.stop.remote()


def _portable(config: RunConfig) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the config with file names that hold anywhere, and the files under those names."""
    values = config.model_dump(mode="json")
    files: dict[str, bytes] = {}
    for number, one in enumerate(values["classes"]):
        for key in ("workload", "trace"):
            given = one[key]
            if given and Path(given).is_file():
                name = f"{number}-{key}{Path(given).suffix}"
                files[name] = Path(given).read_bytes()
                one[key] = name
    return values, files
