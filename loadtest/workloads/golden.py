"""Golden sets as workloads: every answer is scored while the load runs."""

from __future__ import annotations

from loadtest.apis import Message, Part
from loadtest.workloads.base import Item, ListWorkload, Shape, option_error, workload


@workload("easy-vqa")
def easy_vqa(seed: int = 0, limit: int = 0) -> ListWorkload:
    """The easy-VQA test split: small pictures of one shape, questions about it, one-word answers."""
    return golden_set("easy-vqa", seed, limit)


@workload("golden")
def golden(set: str, seed: int = 0, limit: int = 0) -> ListWorkload:
    """Any golden set by name, folder or file; `limit` keeps the first so many of the shuffled items."""
    return golden_set(set, seed, limit)


def golden_set(name: str, seed: int, limit: int) -> ListWorkload:
    """Return a golden set's items in an order chosen by the seed, the picture before the question."""
    import numpy as np

    from models.golden import load_golden

    if limit < 0:
        raise option_error("limit", limit, "must not be negative")
    loaded = load_golden(name)
    order = np.random.default_rng([seed, 0x60]).permutation(len(loaded.items))
    pictures: dict[int, bytes] = {}  # several questions share one picture
    items = []
    for i in order[: limit or None]:
        source = loaded.items[int(i)]
        # The picture first: it is what vision-language models were trained with.
        data = pictures.setdefault(id(source.image), b"") or source.image_bytes()
        pictures[id(source.image)] = data
        parts = (Part("image", data=data, media_type=source.media_type), Part("text", source.question))
        items.append(
            Item(
                id=source.id,
                messages=(Message("user", parts),),
                check=source.check,
                expected=str(source.expected),
                category=source.category,
                shape=Shape(source.width, source.height, 1, len(source.question)),
            )
        )
    return ListWorkload(loaded.name, items, loaded.digest)
