"""Ray for the length of a job: the cluster that `RAY_ADDRESS` names, or one on this machine that ends with the job."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def cluster(cpus: int) -> Iterator[float]:
    """Have Ray running, with at least `cpus` processors to give away where it is started here; yield its GPUs."""
    import ray

    own = not ray.is_initialized()
    if own:
        # workers import this program from where it is, not from where the command was given
        environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        here = None if "RAY_ADDRESS" in os.environ else max(cpus, os.cpu_count() or 1)
        ray.init(num_cpus=here, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    try:
        yield ray.cluster_resources().get("GPU", 0)
    finally:
        if own:
            ray.shutdown()
