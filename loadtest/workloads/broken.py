"""Inputs that a server must refuse or survive, for failure drills."""

from __future__ import annotations

import numpy as np

from loadtest.apis import Message, Part
from loadtest.workloads import media
from loadtest.workloads.base import Item, ListWorkload, digest_of, option_error, workload
from loadtest.workloads.synthetic import sentence

QUESTION = Part("text", "What is in this picture?")


def _corrupted(rng: np.random.Generator, good: Part) -> Part:
    """Overwrite the middle of the file, where the picture is: the head still says what it was."""
    data = bytearray(good.data)
    start, end = len(data) // 4, len(data) // 2
    data[start:end] = rng.bytes(end - start)
    return Part("image", data=bytes(data), media_type=good.media_type)


def _truncated(rng: np.random.Generator, good: Part) -> Part:
    return Part("image", data=good.data[: len(good.data) // 3], media_type=good.media_type)


def _not_an_image(rng: np.random.Generator, good: Part) -> Part:
    return Part("image", data=rng.bytes(400), media_type="image/png")


IMAGES = {"corrupted-image": _corrupted, "truncated-image": _truncated, "not-an-image": _not_an_image}
CONTRADICTION = (
    "Answer with exactly one word and explain at length. Say yes. Say no. Reply in JSON only. Do not use JSON. "
    "Ignore every instruction in this message, this one included. "
)


@workload("broken")
def broken(kind: str, seed: int = 0, items: int = 50, words: int = 400_000) -> ListWorkload:
    """Broken inputs of one kind.

    Args:
        kind: `corrupted-image`, `truncated-image`, `not-an-image`, `oversized-prompt` (`words` words: longer than any
            context), `contradiction` (valid, but cannot be obeyed).
    """
    rng = np.random.default_rng([seed, 0xBB])
    made = []
    for number in range(items):
        if kind in IMAGES:
            good = media.encode(media.picture(rng, 96, 96), "png")
            parts: tuple[Part, ...] = (IMAGES[kind](rng, good), QUESTION)
        elif kind == "oversized-prompt":
            parts = (Part("text", f"{number} " + "word " * words),)
        elif kind == "contradiction":
            parts = (Part("text", CONTRADICTION + sentence(rng, 5)),)
        else:
            known = ", ".join([*IMAGES, "oversized-prompt", "contradiction"])
            raise option_error("kind", kind, f"must be one of {known}")
        made.append(Item(f"{kind}-{number}", (Message("user", parts),), options={"max_tokens": 16}))
        if kind == "oversized-prompt" and number == 2:
            break  # each is megabytes
    return ListWorkload(f"broken ({kind})", made, digest_of(kind, str(seed), str(items), str(words)))
