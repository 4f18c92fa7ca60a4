"""Run the proof: `make demo-distill` (short, under 15 minutes) or `make prove-distill` (whole).

Short: the embedded model (2.9 M weights) is served and answers questions about easy-VQA's training pictures; a student
of a fifth of its size, begun from nothing, is trained on the answers alone, measured beside it, and registered.
`--whole`: the embedded model first learns a second task, the lights of modems, from truth, and then teaches both; there
are more rows and steps.  `--large`: that teacher is grown to 76 M weights besides, and learns on.

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
LARGE = QwenSize(width=768, mlp=2048, layers=12, heads=24, kv_heads=8)
SMALL = QwenSize(width=96, mlp=224, layers=3, heads=3, kv_heads=1, tower_width=64, tower_mlp=160, tower_layers=3)


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    teacher_pictures: int
    teacher_photos: int
    pictures: int
    photos: int
    yes_no: int
    balanced: bool
    held_out_photos: int


WHOLE = Scale(
    teacher_pictures=4000, teacher_photos=5000, pictures=2600, photos=2400, yes_no=2, balanced=True, held_out_photos=400
)
SHORT = Scale(teacher_pictures=0, teacher_photos=0, pictures=600, photos=0, yes_no=1, balanced=False, held_out_photos=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m distill.proof.run", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder (runs/demo-distill, or runs/proof-distill)")
    parser.add_argument(
        "--whole", action="store_true", help="two tasks, a teacher trained for them, more rows and steps"
    )
    parser.add_argument("--large", action="store_true", help="as --whole, with a teacher of 76 M weights")
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupted)  # so that what is served ends with us
    whole = args.whole or args.large
    out = args.out or Path("runs") / ("proof-distill" if whole else "demo-distill")
    try:
        if whole:
            student_of(make_teacher(out / "teacher", WHOLE, large=args.large), out, WHOLE, "student.yaml")
        else:
            student_of(EMBEDDED, out, SHORT, "short.yaml")
    except FoveaError as error:
        print(error)
        return error.exit_code
    return 0


def _interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def student_of(teacher: Path, out: Path, scale: Scale, recipe: str) -> None:
    """Student and proof."""
    folder = prepare_student(out / "student", teacher, recipe)
    if scale.held_out_photos and not (folder / "lights" / "golden.jsonl").exists():
        data.golden_lights(folder / "lights", scale.held_out_photos)
    distill(folder, scale, recipe)


def make_teacher(folder: Path, scale: Scale, *, large: bool) -> Path:
    """Train the teacher on truth; return its checkpoint."""
    if not (folder / "rows.jsonl").exists():
        data.teacher_rows(folder, pictures=scale.teacher_pictures, photos=scale.teacher_photos, per_picture=1, seed=1)
    link(folder / "base", EMBEDDED)
    run(folder, "seed.yaml", folder / "seed", ["collect", "filter", "train"])
    if not large:
        return folder / "seed" / "train" / "student"
    once(folder / "grown", lambda to: _grown(folder / "seed" / "train" / "student", to))
    run(folder, "large.yaml", folder / "large", ["collect", "filter", "train"])
    return folder / "large" / "train" / "student"


def _grown(small: Path, to: Path) -> None:
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


def prepare_student(folder: Path, teacher: Path, recipe: str) -> Path:
    """Lay out the student's folder: recipe, link to the teacher, a base with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    link(folder / "teacher", teacher)
    shutil.copyfile(HERE / recipe, folder / recipe)
    once(folder / "fresh", _fresh)
    return folder


def distill(folder: Path, scale: Scale, recipe: str) -> None:
    """Have the teacher name what it sees, ask it yes and no about that, then filter, train, evaluate, export.

    Where `scale.balanced` is not set, yes and no are asked about names drawn at random, so that it is served once.
    """
    if (folder / "naming.jsonl").exists():
        rows = [json.loads(line) for line in (folder / "naming.jsonl").read_text("utf-8").splitlines()]
    else:
        rows = data.naming_rows(folder, pictures=scale.pictures, photos=scale.photos, seed=3)
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
