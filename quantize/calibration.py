"""Calibration data: the user's own pictures and questions, checked, drawn and written for the job.

A source is a golden set (a name, a folder, a `.jsonl` file; its answers are not used) or `easy-vqa-train`, the training
split of easy-VQA.  What was drawn is described in the checkpoint's manifest, and can be compared with real traffic.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.golden import GoldenItem, GoldenSet, ImageRef, load_golden
from models.golden.sets import export
from models.support.errors import UsageError

TRAINING_SPLIT = "easy-vqa-train"
FEWEST = 32  # below this GPTQ's Hessians of a small layer are mostly their damping
SAMPLES = 256
# Text of a rendered prompt: a question that holds one was put through some model's chat template already.
TEMPLATE_MARKS = re.compile(
    r"<\|[a-z_]+\|>|\[/?INST\]|<start_of_turn>|<end_of_turn>|<image>|<image_soft_token>|<bos>|</s>"
    r"|^\s*(USER|ASSISTANT|Human|Assistant):",
    re.MULTILINE,
)
SHIFT = 1.5  # medians that differ by more than this factor are worth a warning


@dataclass(frozen=True)
class Calibration:
    """The drawn items and what to say about them in a manifest."""

    source: str
    items: list[GoldenItem]
    facts: dict[str, Any]

    def write(self, folder: Path) -> None:
        """Write the items as a golden set that the job reads."""
        export(GoldenSet("calibration", self.items, source=self.source), folder)


def load_source(name: str) -> GoldenSet:
    """Return the items of a calibration source.  Raises UsageError when there is no such set."""
    if name == TRAINING_SPLIT:
        return _easy_vqa_train()
    try:
        return load_golden(name)
    except UsageError as error:
        if error.field != "golden":  # a file's own line is named as it is
            raise
        fix = f"{TRAINING_SPLIT}, or {(error.fix or '').removeprefix('name one of ')}"
        raise UsageError(error.message, field="calibration", value=error.value, fix=fix) from None


def _easy_vqa_train() -> GoldenSet:
    import easy_vqa

    from models.golden.easy_vqa import category_of

    images = {number: ImageRef.open(Path(path)) for number, path in sorted(easy_vqa.get_train_image_paths().items())}
    items = [
        GoldenItem(
            id=f"t{n:05d}",
            image=images[image],
            question=question,
            category=category_of(answer),
            expected=answer,
            split="train",
        )
        for n, (question, answer, image) in enumerate(zip(*easy_vqa.get_train_questions(), strict=True))
    ]
    return GoldenSet(TRAINING_SPLIT, items, source="easy_vqa package, training split", licence="MIT")


def draw(source: str, samples: int, seed: int) -> Calibration:
    """Return `samples` items of a source, drawn by `seed`, categories in the proportions of the set.

    Raises:
        UsageError: no such set, too few items, or questions that went through a chat template already.
    """
    if samples < FEWEST:
        raise UsageError(f"must be at least {FEWEST}", field="samples", value=samples, fix=f"{SAMPLES} is the default")
    golden = load_source(source)
    if len(golden.items) < FEWEST:
        fix = f"at least {FEWEST} items with pictures are needed"
        raise UsageError("too few items to calibrate on", field="calibration", value=len(golden.items), fix=fix)
    for item in golden.items:
        mark = TEMPLATE_MARKS.search(item.question)
        if mark:
            fix = "give the plain questions: the model's own template is put around them"
            where = f"calibration: item {item.id}"
            raise UsageError("the question is a rendered prompt", field=where, value=mark.group().strip(), fix=fix)
    items = golden.sample(min(samples, len(golden.items)), seed)
    return Calibration(source, items, describe(golden, items, source, seed))


def describe(golden: GoldenSet, items: Sequence[GoldenItem], source: str, seed: int) -> dict[str, Any]:
    """Return digest, size, mix of resolutions and lengths of the questions, as the manifest keeps them."""
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda i: i.id):
        digest.update(f"{item.id}\0{item.image.digest}\0{item.question}\n".encode())
    return {
        "source": source,
        "set": golden.name,
        "digest": digest.hexdigest(),
        "items": len(items),
        "of": len(golden.items),
        "seed": seed,
        "categories": dict(sorted(Counter(i.category for i in items).items())),
        "resolutions": dict(Counter(f"{i.width}x{i.height}" for i in items).most_common(20)),
        "megapixels": _spread([i.width * i.height / 1e6 for i in items]),
        "question_characters": _spread([float(len(i.question)) for i in items]),
        "images": sorted({i.image.digest for i in items}),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)

    def at(q: float) -> float:
        return ordered[min(len(ordered) - 1, math.floor(q * len(ordered)))]

    return {"p10": at(0.1), "p50": at(0.5), "p90": at(0.9), "max": ordered[-1]}


def differences(facts: dict[str, Any], traffic: str) -> list[str]:
    """Return one warning for each way in which the traffic is unlike the calibration: resolution, length of question.

    Raises:
        UsageError: there is no such traffic set.
    """
    golden = load_source(traffic)
    return unlike(facts, describe(golden, golden.items, traffic, 0), "traffic")


def unlike(facts: dict[str, Any], real: dict[str, Any], name: str) -> list[str]:
    """Return the warnings of two descriptions (`describe`): of the calibration, and of what `name` says."""
    warnings = []
    for key, what, unit in (
        ("megapixels", "picture size", "megapixels"),
        ("question_characters", "question", "characters"),
    ):
        ours, theirs = facts[key]["p50"], real[key]["p50"]
        if not 1 / SHIFT <= theirs / max(ours, 1e-9) <= SHIFT:
            warnings.append(
                f"median {what} of the {name} is {theirs:.4g} {unit}, of the calibration {ours:.4g}: "
                f"activations differ; calibrate on pictures and questions like the {name}'s"
            )
    unseen = sorted(set(real["categories"]) - set(facts["categories"]))
    if unseen and facts["categories"].keys() != {"all"}:
        warnings.append(f"categories of the {name} that the calibration lacks: {', '.join(unseen[:5])}")
    return warnings
