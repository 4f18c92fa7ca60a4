"""Run the proof: `make demo-distill` (short, under 15 minutes) or `make prove-distill` (whole).

The teachers are large: the embedded Qwen2.5-VL (2.9 M weights) grown to 159 M (models/embedded/grow.py), served and
asked like any other.  What they know fits in the model that they were grown from; what they cost is that of their size.

- Short: the student begins as that embedded model with two of four layers and three quarters of every MLP cut off, and
  is repaired on 2,700 of the teacher's answers about easy-VQA's training pictures.
- Whole, shapes: the student begins from random weights.  It learns from about 19,000 answers, and the report has it in
  INT8 and INT4 too.
- Whole, lights: photographs of a modem to JSON.  The embedded model first learns them from truth, is grown, and
  teaches.  The student begins as the embedded model, pruned, which has never seen one.

Every part goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.proof import data
from distill.steps import STEPS, run_steps
from distill.work import open_work
from models.embedded.architectures import QwenSize, QwenVL
from models.support.errors import FoveaError
from models.support.files import write_json

HERE = Path(__file__).parent
EMBEDDED = HERE.parents[1] / "models" / "embedded" / "qwen2_5_vl"
LARGE = QwenSize(width=960, mlp=2560, layers=16, heads=30, kv_heads=10)
SMALL = QwenSize(width=128, mlp=320, layers=3, heads=4, kv_heads=2)


@dataclass(frozen=True)
class Scale:
    """How much the student of easy-VQA is given; `captions` as in `data.naming_rows`.

    Where `balanced` is not set, yes and no are asked about names drawn at random, so that the teacher is served once.
    """

    pictures: int
    more: int
    yes_no: int
    captions: bool
    balanced: bool


SHORT = Scale(pictures=900, more=0, yes_no=1, captions=False, balanced=False)
WHOLE = Scale(pictures=4000, more=2000, yes_no=2, captions=True, balanced=True)
LIGHTS_TAUGHT, LIGHTS_ASKED, LIGHTS_HELD_OUT = 5000, 3000, 300
TASKS = ("shapes", "lights")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m distill.proof.run", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder (runs/demo-distill, or runs/proof-distill)")
    parser.add_argument("--whole", action="store_true", help="the whole proof, both tasks")
    parser.add_argument("--task", choices=TASKS, help="of the whole proof this task alone")
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupted)  # so that what is served ends with us
    whole = args.whole or args.task is not None
    out = args.out or Path("runs") / ("proof-distill" if whole else "demo-distill")
    try:
        if not whole:
            shapes(out, SHORT, "short.yaml")
        for task in ((args.task,) if args.task else TASKS) if whole else ():
            print(f"== {task}", flush=True)
            if task == "shapes":
                shapes(out / task, WHOLE, "shapes.yaml")
            else:
                lights(out / task)
    except FoveaError as error:
        print(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here")
        return 130
    return 0


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def shapes(folder: Path, scale: Scale, recipe: str, teacher: Path | None = None) -> None:
    """Have the teacher name what it sees, ask it yes and no about that, then filter, train, evaluate, export.

    Args:
        teacher: its checkpoint; the grown one when left out.
    """
    link(folder / "teacher", teacher or grown(EMBEDDED, folder.parent / "teacher"))
    link(folder / "embedded", EMBEDDED)
    once(folder / "fresh", _fresh)
    if (folder / "naming.jsonl").exists():
        rows = [json.loads(line) for line in (folder / "naming.jsonl").read_text("utf-8").splitlines()]
    else:
        rows = data.naming_rows(folder, pictures=scale.pictures, more=scale.more, captions=scale.captions, seed=3)
        data.write_lines(folder / "rows.jsonl", rows)
        data.write_lines(folder / "naming.jsonl", rows)
    if scale.balanced:
        run(folder, recipe, folder / "out", ["collect"])
        names = said(folder / "out" / "collect" / "labels.jsonl")
    else:
        names = data.random_names(rows, seed=3)
    more = data.yes_no_rows(rows, names, per_picture=scale.yes_no, seed=3)
    data.write_lines(folder / "rows.jsonl", [*rows, *more])
    run(folder, recipe, folder / "out", list(STEPS))


def lights(folder: Path) -> None:
    """Teach the embedded model the document task from truth, grow it, and distil it into a pruned embedded model."""
    seed = folder / "seed"
    if not (seed / "rows.jsonl").exists():
        data.light_rows(seed, LIGHTS_TAUGHT, 1, truth=True)
    link(seed / "base", EMBEDDED)
    run(seed, "seed.yaml", seed / "out", ["collect", "filter", "train"])
    link(folder / "teacher", grown(seed / "out" / "train" / "student", folder / "grown"))
    link(folder / "embedded", EMBEDDED)
    if not (folder / "rows.jsonl").exists():
        data.light_rows(folder, LIGHTS_ASKED, 2)
    if not (folder / "lights" / "golden.jsonl").exists():
        data.golden_lights(folder / "lights", LIGHTS_HELD_OUT)
    run(folder, "lights.yaml", folder / "out", list(STEPS))


def grown(small: Path, to: Path) -> Path:
    """Return `small` grown to the teacher's size, made once."""
    once(to, lambda folder: _grow(small, folder))
    return to


def _grow(small: Path, to: Path) -> None:
    import torch
    from transformers import AutoModelForImageTextToText

    from models.embedded.grow import grow

    torch.manual_seed(2)
    arch = QwenVL(LARGE)
    large: Any = arch.make_model()
    grow(AutoModelForImageTextToText.from_pretrained(small, dtype=torch.float32), large)
    arch.save(large, to)


def _fresh(to: Path) -> None:
    import torch

    torch.manual_seed(3)
    arch = QwenVL(SMALL)
    arch.save(arch.make_model(), to)


def said(labels: Path) -> Mapping[str, str]:
    """Return row id -> what the teacher answered, where it is text."""
    from distill.labels import read_labels

    return {
        row.id: answer.answer
        for row in read_labels(labels)
        for answer in row.answers[:1]
        if answer.problem is None and isinstance(answer.answer, str)
    }


def run(folder: Path, recipe: str, out: Path, steps: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Run steps of a recipe, printing what each says and how long it took."""
    shutil.copyfile(HERE / recipe, folder / recipe)
    reports: dict[str, dict[str, Any]] = {}
    for name in steps:
        started = time.monotonic()
        reports |= run_steps(open_work(folder / recipe, out), [name])
        print(f"[{time.monotonic() - started:6.1f} s] {STEPS[name].summary(reports[name])}", flush=True)
    return reports


def once(folder: Path, make: Callable[[Path], None]) -> None:
    """Make a checkpoint unless it is there whole."""
    if (folder / "made.json").exists():
        return
    make(folder)
    write_json(folder / "made.json", {"by": "distill.proof.run"})


def link(name: Path, target: Path) -> None:
    """Point `name` at `target`."""
    name.parent.mkdir(parents=True, exist_ok=True)
    if name.is_symlink():
        name.unlink()
    name.symlink_to(target.resolve())


if __name__ == "__main__":
    raise SystemExit(main())
