"""Training in several processes with Ray Train: data parallel, each worker a part of every step's rows.

Ray places the workers (a GPU each where the cluster has any), sets up `torch.distributed` and ends all when one fails.
What is trained, saved and gone on from is `distill.train.loop`'s, so that a run of four workers goes on where a run of
one was interrupted, and takes the same steps but for the order in which floating-point numbers are added up.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill.cluster import cluster
from distill.train.group import Group
from distill.work import Work, open_work
from models.support.errors import CheckFailed, FoveaError, UsageError
from models.support.files import write_json

FAULT = "fault.json"
"""What a worker leaves of an error that a user can act on: exceptions do not come back from Ray as they were raised."""


def train_together(work: Work) -> dict[str, Any]:
    """Train with `train.workers` processes; return the report that the first of them wrote.

    A Ray cluster is used where `RAY_ADDRESS` names one; otherwise Ray is started on this machine and ended afterwards.

    Raises:
        UsageError, CheckFailed: as in one process.
        CheckFailed: a worker died, or the cluster has too little for so many.
        KeyboardInterrupt: the workers end with this program; the last checkpoint is kept.
    """
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    train = work.recipe.train
    assert train is not None
    folder = (work.out / "train").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAULT).unlink(missing_ok=True)
    try:
        with cluster(train.workers) as gpus:
            if 0 < gpus < train.workers:
                raise UsageError(f"the cluster has {gpus:g} GPUs", field="train.workers", value=train.workers,
                                 fix="ask for as many, or fewer")  # fmt: skip
            trainer = TorchTrainer(
                _worker,
                train_loop_config={"recipe": str(work.file), "out": str(work.out.resolve()), "seed": work.recipe.seed},
                scaling_config=ScalingConfig(num_workers=train.workers, use_gpu=gpus > 0),
                run_config=RunConfig(name="ray", storage_path=str(folder)),
            )
            _wait(trainer.fit)
    except TrainingFailedError as error:
        raise _fault(folder) or CheckFailed(
            f"a worker failed: {str(error).strip().splitlines()[-1][:200]}", field="train.workers",
            value=train.workers, fix="run it again to go on from the last checkpoint",
        ) from error  # fmt: skip
    report: dict[str, Any] = json.loads((folder / "report.json").read_text("utf-8"))
    return report


def _wait(fit: Callable[[], object]) -> None:
    """Run `fit` in a thread: in the main one Ray takes Ctrl-C for itself, and ends this program with exit code 0."""
    done: Future[None] = Future()

    def run() -> None:
        try:
            fit()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    threading.Thread(target=run, name="ray train", daemon=True).start()
    done.result()


def _worker(config: dict[str, Any]) -> None:
    from ray import train

    from distill.train.run import train_alone

    context = train.get_context()
    group = Group(context.get_world_rank(), context.get_world_size())
    out = Path(config["out"])
    try:
        work = open_work(Path(config["recipe"]), out)
        work = replace(work, recipe=work.recipe.model_copy(update={"seed": config["seed"]}))  # `evaluate.seeds`
        train_alone(work, group)
    except FoveaError as error:
        write_json(out / "train" / FAULT, error.as_dict() | {"code": error.exit_code})
        raise RuntimeError(str(error)) from None


def _fault(folder: Path) -> FoveaError | None:
    try:
        found = json.loads((folder / FAULT).read_text("utf-8"))
    except FileNotFoundError:
        return None
    kind = UsageError if found["code"] == UsageError.exit_code else CheckFailed
    return kind(found["message"], field=found["field"], value=found["value"], fix=found["fix"])
