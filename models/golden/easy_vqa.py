"""The test split of easy-VQA, read from the installed `easy_vqa` package (MIT, github.com/vzhou842/easy-VQA).

9,673 questions about 1,000 images of 64x64 pixels: one coloured shape each.  No other split may be used to evaluate:
the training split is what the embedded models learn from.
"""

from __future__ import annotations

from pathlib import Path

from models.golden.sets import GoldenItem, GoldenSet, ImageRef
from models.support.errors import UsageError

COLORS = frozenset({"red", "green", "blue", "black", "gray", "teal", "brown", "yellow"})
SHAPES = frozenset({"circle", "rectangle", "triangle"})


def category_of(answer: str) -> str:
    """Return `color`, `shape` or `yes_no` for one of the set's 13 answers."""
    if answer in COLORS:
        return "color"
    if answer in SHAPES:
        return "shape"
    if answer in ("yes", "no"):
        return "yes_no"
    raise ValueError(f"{answer!r} is not an easy-VQA answer")


def load_easy_vqa() -> GoldenSet:
    """Return the test split.  Item ids are `q00000` to `q09672`, the position in the package's own question file.

    Raises:
        UsageError: the package is not installed.
    """
    try:
        import easy_vqa
    except ImportError as error:
        raise UsageError("the package is not installed", field="easy-vqa", fix="pip install easy-vqa") from error
    questions, answers, image_ids = easy_vqa.get_test_questions()
    images = {number: ImageRef.open(Path(path)) for number, path in sorted(easy_vqa.get_test_image_paths().items())}
    items = [
        GoldenItem(
            id=f"q{n:05d}", image=images[image], question=question, category=category_of(answer), expected=answer
        )
        for n, (question, answer, image) in enumerate(zip(questions, answers, image_ids, strict=True))
    ]
    return GoldenSet("easy-vqa", items, source="easy_vqa package, test split", licence="MIT")
