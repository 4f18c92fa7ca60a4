"""The load processes as actors of a Ray cluster, on as many machines as it has.

Each machine times with its own clock, from its own start, and sends back durations only: records (lossless) and
histograms (mergeable).  So no two machines' clocks are ever compared; they begin together to within a message's
travel time.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from loadtest.config import RunConfig
from models.support.errors import UsageError

BEGIN_IN_S = 0.5  # after all are ready


class LoadActor:
    """One load process on some machine."""

    def __init__(self, config: dict[str, Any], worker: int, workers: int, files: dict[str, bytes]):
        import os

        from loadtest.plan import load_workloads, make_plan
        from loadtest.worker import raise_file_limit

        raise_file_limit()
        self._folder = tempfile.TemporaryDirectory(prefix="fovea-loadtest-")
        os.chdir(self._folder.name)
        for name, data in files.items():
            (Path(self._folder.name) / name).write_bytes(data)
        self.config = RunConfig(**config)
        self.worker, self.workers = worker, workers
        self.plan = make_plan(self.config, load_workloads(self.config), worker, workers)

    def ready(self) -> bool:
        """Return once everything is prepared."""
        return True

    def load(self) -> tuple[dict[str, Any], bytes]:
        """Run; return the summary and the raw records."""
        from loadtest.worker import drive, make_loop

        path = Path(self._folder.name) / "records.bin"

        async def start() -> float:
            return perf_counter() + BEGIN_IN_S

        async def main() -> dict[str, Any]:
            return await drive(self.config, self.plan, path, worker=self.worker, workers=self.workers, start=start)

        with asyncio.Runner(loop_factory=make_loop) as runner:
            summary = runner.run(main())
        return summary, path.read_bytes()


def run_on_ray(
    config: RunConfig, folder: Path, tell: Callable[[int, dict[str, Any]], None]
) -> tuple[list[dict[str, Any]], list[Path]]:
    """Run `config.processes` actors spread over the cluster; return their summaries and record files.

    Files that the config names (workloads, traces) are sent along.

    Raises:
        UsageError: the cluster cannot be reached, or an actor refuses its config.
    """
    import ray

    from loadtest.plan import api_key, key_name

    root = str(Path(__file__).resolve().parent.parent)
    environment = {"env_vars": {"PYTHONPATH": root, key_name(config): api_key(config)}}
    try:
        ray.init(address=config.ray_address, runtime_env=environment, log_to_driver=False, logging_level=40)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"cannot reach Ray: {error}", field="--ray-address", value=config.ray_address) from error
    try:
        values, files = _portable(config)
        kind: Any = ray.remote(num_cpus=1, scheduling_strategy="SPREAD")(LoadActor)
        count = config.processes
        actors: list[Any] = [kind.remote(values, i, count, files) for i in range(count)]
        try:
            ray.get([actor.ready.remote() for actor in actors])
            results = ray.get([actor.load.remote() for actor in actors])
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, UsageError) else UsageError(f"a load actor failed: {error}") from error
        except ray.exceptions.RayActorError as error:
            raise UsageError(f"a load actor died: {error}", field="--ray-address", value=config.ray_address) from error
    finally:
        ray.shutdown()
    paths = []
    for number, (_, data) in enumerate(results):
        paths.append(folder / f"{number}.bin")
        paths[-1].write_bytes(data)
        tell(number, {"progress": results[number][0]["count"], "errors": results[number][0]["errors"]})
    return [summary for summary, _ in results], paths


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
