"""Who is asked: teacher, base, student and what was made of it, each served in its turn on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from distill.evaluate.made import pruned_base, quantized, reseeded
from distill.train.run import base_of
from distill.work import Work
from models.evaluation.target import served_folder
from models.registry.content import files_of
from models.registry.files import sha256
from models.registry.schema import File, version_digest
from models.support.errors import UsageError


@dataclass(frozen=True)
class Arm:
    """One of the compared.

    Attributes:
        name: `teacher`, `base`, `student`, a name of `evaluate.also`, or `seed-` and a number.
        folder: its checkpoint, to be served; None for one that is asked elsewhere.
        url, model: where else, and its name there (a vendor's model as `openai/...`).
        digest: of its files, as the registry counts them; None where they are not here.
    """

    name: str
    folder: Path | None
    url: str | None
    model: str
    digest: str | None

    @property
    def key(self) -> str:
        """Name of its folder of answers: other weights are another folder."""
        return self.name if self.digest is None else f"{self.name}-{self.digest[:12]}"


def checkpoint_digest(folder: Path) -> str:
    """Return the digest that a version of these files has in the registry."""
    files = {name: File(sha256=sha256(path), bytes=path.stat().st_size) for name, path in files_of(folder).items()}
    return version_digest(files)


def arms_of(work: Work) -> list[Arm]:
    """Return the teacher, the base as training began with it (where it is here), the student, then what was made of it.

    What the recipe wants made (a pruned base, fewer bits, students of other seeds) is made if it is not there.

    Raises:
        UsageError: the student was not trained yet, or a checkpoint is not there.
        CheckFailed: quantization failed.
    """
    recipe = work.recipe
    assert recipe.evaluate is not None and recipe.train is not None, "checked by the recipe"
    student = work.out / "train" / "student"
    if not (student / "config.json").is_file():
        raise UsageError("there is no student yet", field=str(student), fix="run fovea distill train")
    first = recipe.teachers[0]
    if first.checkpoint is not None:
        teacher = _here("teacher", (work.folder / first.checkpoint).resolve())
    else:
        teacher = Arm("teacher", None, first.base_url or first.model, first.model, None)
    found = [teacher]
    if recipe.evaluate.base:
        base = base_of(work.folder, recipe.train.base)
        if recipe.train.prune is not None:
            base = str(pruned_base(work, recipe.train))
        found.append(_here("base", Path(base)) if Path(base).is_dir() else Arm("base", Path(base), None, "base", None))
    mine = _here("student", student)
    found.append(mine)
    assert mine.digest is not None
    for name, wanted in recipe.evaluate.also.items():
        if isinstance(wanted, str):
            found.append(_here(name, (work.folder / wanted).resolve()))
        else:
            found.append(_here(name, quantized(work, name, wanted, student, mine.digest)))
    found += [_here(seed_name(seed), reseeded(work, seed)) for seed in recipe.evaluate.seeds]
    return found


def seed_name(seed: int) -> str:
    """Return the name of the arm that another seed trained."""
    return f"seed-{seed}"


def _here(name: str, folder: Path) -> Arm:
    if not (folder / "config.json").is_file():
        raise UsageError("no checkpoint in this folder", field=name, value=str(folder), fix="it has no config.json")
    return Arm(name, folder, None, name, checkpoint_digest(folder))


@contextmanager
def address(arm: Arm) -> Iterator[str]:
    """Yield where the arm answers, served for as long as the block lasts where it has a folder."""
    if arm.folder is None:
        assert arm.url is not None
        yield arm.url
        return
    with served_folder(arm.folder, arm.model) as url:
        yield url
