"""What the requests of a run used, taken from its records: the basis of every price in its report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loadtest.client import Kind
from loadtest.workloads.base import Workload
from models.cost.usage import Size, group_usage, image_tokens_of
from models.support.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHARS_PER_TOKEN = 4  # for text whose tokens nobody counted
MOST_GROUPS = 1000  # sizes of images that differ; above, an even sample of the requests stands for all


def usage_of(
    workloads: Sequence[Workload], measured: NDArray[np.void], model: str, checkpoint: str | None = None
) -> dict[str, Any]:
    """Return the `usage` section of a report: sums over the answered requests, and groups of like ones.

    Text tokens are the server's prompt tokens less those of the images by the rule of the model, or of the checkpoint
    that the server says it is; where the rule is not known or the server counted nothing, characters / 4.
    `groups` is empty, with a `note`, when a size is not known.
    """
    ok = measured[measured["kind"] == Kind.OK]
    counted = bool(len(ok)) and bool((ok["prompt_tokens"] >= 0).all())
    rule = _rule(model, checkpoint) if counted else None
    with_images = any(w.item(int(i)).shape.images for w, i in _items(workloads, ok))
    by_count = counted and (rule is not None or not with_images)
    out: dict[str, Any] = {
        "requests": len(ok),
        "recalled": int(ok["recalled"].sum()),
        "prompt_tokens": int(ok["prompt_tokens"].sum()) if counted else None,
        "completion_tokens": int(_output(ok).sum()),
        "text_tokens_from": (
            f"the server's count{f', less image tokens by the rule of {rule}' if with_images else ''}"
            if by_count
            else f"characters / {CHARS_PER_TOKEN}"
        ),
        "sampled": False,
        "groups": [],
        "note": "",
    }
    if not len(ok):
        return out | {"note": "no successful request to price"}
    rows = list(_rows(workloads, ok, rule, by_count))
    if any(min(size) < 1 for images, _, _ in rows for size in images):
        return out | {"note": "the size of the images is not known"}
    if len({images for images, _, _ in rows}) > MOST_GROUPS:
        picked = np.linspace(0, len(rows) - 1, MOST_GROUPS).astype(int)
        rows, out["sampled"] = [rows[i] for i in picked], True
    out["groups"] = group_usage(rows).model_dump(mode="json")["groups"]
    return out


def _rule(*names: str | None) -> str | None:
    """Return the first name that an image-token rule is known for."""
    for name in filter(None, names):
        try:
            image_tokens_of(name, ((64, 64),))
        except UsageError:
            continue
        return name
    return None


def _items(workloads: Sequence[Workload], ok: NDArray[np.void]) -> Iterator[tuple[Workload, int]]:
    for number, workload in enumerate(workloads):
        for item in np.unique(ok["item"][ok["cls"] == number]):
            if int(item) < len(workload):
                yield workload, int(item)


def _output(ok: NDArray[np.void]) -> NDArray[np.int64]:
    return np.where(ok["completion_tokens"] >= 0, ok["completion_tokens"], ok["chunks"]).astype(np.int64)


def _rows(
    workloads: Sequence[Workload], ok: NDArray[np.void], rule: str | None, by_count: bool
) -> Iterator[tuple[tuple[Size, ...], int, int]]:
    shapes: dict[tuple[int, int], tuple[tuple[Size, ...], int]] = {}
    for cls, item, prompt, output in zip(ok["cls"], ok["item"], ok["prompt_tokens"], _output(ok), strict=True):
        key = (int(cls), int(item))
        if key not in shapes:
            workload = workloads[key[0]]
            if key[1] >= len(workload):
                continue
            shape = workload.item(key[1]).shape
            images = ((shape.width, shape.height),) * shape.images
            shapes[key] = (images, max(1, round(shape.text_chars / CHARS_PER_TOKEN)))
        images, text = shapes[key]
        if by_count:
            text = max(0, int(prompt) - (image_tokens_of(rule, images) if rule and images else 0))
        yield images, text, int(output)
