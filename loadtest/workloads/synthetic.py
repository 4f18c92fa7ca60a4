"""Generated workloads: text, images, audio, video, conversations.  The same seed and options give the same items.

Every item is different by construction; `repeat`, `shared_prefix` and `shared_image` bring repetition back in a
known measure, to load caches on purpose.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loadtest.apis import Message, Part
from loadtest.workloads import media
from loadtest.workloads.base import Conversations, Item, ListWorkload, Shape, digest_of, option_error, workload

_SAID = (
    "amber anchor basin bridge candle canyon cedar circle copper coral crystal delta ember falcon fern fjord garden "
    "glacier granite harbor hazel island ivory jasper juniper kettle lantern lichen maple meadow mirror nectar oak "
    "orchid pebble pine prairie quartz rain reef ridge river saffron shell silver slate spruce stone sugar summit "
    "thistle timber valley velvet violet walnut water willow winter zephyr "
)
WORDS = _SAID.split()


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise option_error(name, value, "must lie between 0 and 1")


def _count(name: str, value: int, least: int = 1, most: int = 1_000_000) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise option_error(name, value, f"must be a whole number from {least} to {most:,}")


def sentence(rng: np.random.Generator, words: int) -> str:
    """Return `words` random words."""
    return " ".join(WORDS[i] for i in rng.integers(0, len(WORDS), words))


class _Lengths:
    """Draws prompt lengths: fixed, or lognormal with a coefficient of variation."""

    def __init__(self, words: int, cv: float):
        _count("words", words)
        if not 0 <= cv <= 10:
            raise option_error("words_cv", cv, "must lie between 0 and 10")
        self.words = words
        self.sigma = float(np.sqrt(np.log1p(cv * cv)))

    def draw(self, rng: np.random.Generator) -> int:
        if not self.sigma:
            return self.words
        return max(1, round(float(rng.lognormal(np.log(self.words) - self.sigma**2 / 2, self.sigma))))


def _finish(name: str, seed: int, items: list[Item], repeat: float) -> ListWorkload:
    """Make a share of the items exact repeats of earlier ones, and fix the digest."""
    _share("repeat", repeat)
    rng = np.random.default_rng([seed, 0x5E])
    for i in range(1, len(items)):
        if rng.random() < repeat:
            items[i] = items[int(rng.integers(0, i))]
    parts = [part for item in items for m in item.messages for p in m.parts for part in (p.text, p.data)]
    return ListWorkload(name, items, digest_of(*parts))


def _shape(parts: list[Part] | tuple[Part, ...], size: tuple[int, int] = (0, 0)) -> Shape:
    images = sum(p.kind == "image" for p in parts)
    text = sum(len(p.text) for p in parts if p.kind == "text")
    return Shape(*(size if images else (0, 0)), images, text)


@workload("text")
def text(
    seed: int = 0,
    items: int = 1000,
    words: int = 40,
    words_cv: float = 0.0,
    shared_prefix: int = 0,
    shared_ratio: float = 1.0,
    prefixes: int = 1,
    repeat: float = 0.0,
    max_tokens: int = 64,
) -> ListWorkload:
    """Random words with a request to go on.

    Args:
        words, words_cv: mean length of the prompt in words (about 1.3 tokens each) and its coefficient of variation.
        shared_prefix: length in words of a system prompt that a share `shared_ratio` of the items begin with; there are
            `prefixes` different ones.
        repeat: share of the items that repeat an earlier one exactly.
    """
    _count("items", items)
    _count("prefixes", prefixes)
    _count("shared_prefix", shared_prefix, least=0)
    _share("shared_ratio", shared_ratio)
    rng = np.random.default_rng([seed, 0x7E])
    lengths = _Lengths(words, words_cv)
    shared = [sentence(rng, shared_prefix) for _ in range(prefixes)] if shared_prefix else []
    made = []
    for number in range(items):
        parts = (Part("text", f"Go on in the same way: {sentence(rng, lengths.draw(rng))}"),)
        messages: tuple[Message, ...] = (Message("user", parts),)
        if shared and rng.random() < shared_ratio:
            messages = (Message("system", (Part("text", shared[int(rng.integers(prefixes))]),)), *messages)
        made.append(Item(f"text-{number}", messages, shape=_shape(parts), options={"max_tokens": max_tokens}))
    return _finish("text", seed, made, repeat)


@workload("image")
def image(
    seed: int = 0,
    items: int = 200,
    sizes: str = "640x480",
    formats: str = "jpeg",
    images: int = 1,
    folder: str = "",
    words: int = 12,
    shared_image: float = 0.0,
    repeat: float = 0.0,
    max_tokens: int = 64,
) -> ListWorkload:
    """Questions about pictures.

    Args:
        sizes, formats: mix of sizes (`640x480,1024x1024`) and formats (`jpeg,png,webp`), each drawn evenly.
        images: pictures per question.
        folder: take the pictures from this folder instead (sorted by name, used in turn).
        shared_image: share of the items that ask about one and the same picture.
    """
    _count("items", items)
    _count("images", images, most=100)
    _share("shared_image", shared_image)
    size_list, format_list = media.sizes_of(sizes), media.formats_of(formats, media.IMAGE_TYPES)
    rng = np.random.default_rng([seed, 0x1A])
    files = _folder(folder) if folder else []

    def draw(number: int) -> tuple[Part, tuple[int, int]]:
        if files:
            return files[number % len(files)]
        size = size_list[int(rng.integers(len(size_list)))]
        return media.encode(media.picture(rng, *size), format_list[int(rng.integers(len(format_list)))]), size

    common = draw(0)
    made = []
    for number in range(items):
        drawn = [common if rng.random() < shared_image else draw(number * images + i) for i in range(images)]
        parts = (*(p for p, _ in drawn), Part("text", f"Describe what you see. {sentence(rng, words)}?"))
        shape = _shape(parts, drawn[0][1])
        made.append(Item(f"image-{number}", (Message("user", parts),), shape=shape, options={"max_tokens": max_tokens}))
    return _finish("image", seed, made, repeat)


def _folder(path: str) -> list[tuple[Part, tuple[int, int]]]:
    from PIL import Image, UnidentifiedImageError

    found = []
    try:
        names = sorted(p for p in Path(path).iterdir() if p.is_file())
    except OSError as error:
        raise option_error("folder", path, f"cannot read: {error.strerror}") from error
    for name in names:
        try:
            with Image.open(name) as opened:
                kind, size = (opened.format or "").lower(), opened.size
        except (UnidentifiedImageError, OSError):
            continue
        if kind in media.IMAGE_TYPES:
            found.append((Part("image", data=name.read_bytes(), media_type=media.IMAGE_TYPES[kind][1]), size))
    if not found:
        raise option_error("folder", path, "has no JPEG, PNG or WebP picture")
    return found


@workload("audio")
def audio(
    seed: int = 0, items: int = 50, seconds: float = 5.0, formats: str = "wav", max_tokens: int = 64
) -> ListWorkload:
    """Questions about sounds; `formats`: `wav,flac,mp3`."""
    _count("items", items)
    if not 0.1 <= seconds <= 3600:
        raise option_error("seconds", seconds, "must lie between 0.1 and 3600")
    kinds = media.formats_of(formats, media.AUDIO_TYPES)
    rng = np.random.default_rng([seed, 0xAD])
    made = []
    for number in range(items):
        heard = media.sound(rng, seconds, kinds[int(rng.integers(len(kinds)))])
        parts = (heard, Part("text", f"What do you hear? {sentence(rng, 4)}"))
        options = {"max_tokens": max_tokens}
        made.append(Item(f"audio-{number}", (Message("user", parts),), shape=_shape(parts), options=options))
    return _finish("audio", seed, made, 0.0)


@workload("video")
def video(
    seed: int = 0, items: int = 20, frames: int = 8, sizes: str = "320x240", send: str = "video", max_tokens: int = 64
) -> ListWorkload:
    """Questions about short videos.

    Args:
        send: `video`, one video part (JPEG frames in a data URI, as vLLM takes it), or `images`, one part per frame.
    """
    _count("items", items)
    _count("frames", frames, most=256)
    if send not in ("video", "images"):
        raise option_error("send", send, "must be video or images")
    size_list = media.sizes_of(sizes)
    rng = np.random.default_rng([seed, 0xF1])
    made = []
    for number in range(items):
        size = size_list[int(rng.integers(len(size_list)))]
        seen = media.video(rng, frames, *size)
        shown = seen if send == "images" else [media.as_video(seen)]
        parts = (*shown, Part("text", f"What moves? {sentence(rng, 4)}"))
        options = {"max_tokens": max_tokens}
        made.append(Item(f"video-{number}", (Message("user", parts),), shape=_shape(parts, size), options=options))
    return _finish("video", seed, made, 0.0)


@workload("chat")
def chat(
    seed: int = 0,
    conversations: int = 50,
    turns: int = 4,
    words: int = 20,
    answer_words: int = 40,
    live: int = 8,
    image_size: str = "",
    max_tokens: int = 64,
    answers: str = "server",
) -> ListWorkload:
    """Conversations: every turn is a request that carries all that was said before.

    Args:
        live: how many are under way at a time in an open loop (in a closed loop each user holds one).
        image_size: each conversation is about a picture of this size, which every turn sends again.
        answers: `server`, each turn goes on from what the server itself answered; `fixed`, from prepared texts of
            `answer_words` words, so that each run sends exactly the same, whatever the server says.
    """
    counts = {"conversations": conversations, "turns": turns, "live": live, "words": words}
    for name, value in {**counts, "answer_words": answer_words}.items():
        _count(name, value)
    if answers not in ("server", "fixed"):
        raise option_error("answers", answers, "must be server or fixed")
    size = media.sizes_of(image_size)[0] if image_size else (0, 0)
    rng = np.random.default_rng([seed, 0xC4])
    options = {"max_tokens": max_tokens}
    talks = []
    for number in range(conversations):
        said: tuple[Message, ...] = ()
        items = []
        for turn in range(turns):
            parts: tuple[Part, ...] = (Part("text", f"{sentence(rng, words)}?"),)
            if image_size and turn == 0:
                parts = (media.encode(media.picture(rng, *size), "jpeg"), *parts)
            asked = Message("user", parts)
            said = (*said, asked)
            shape = _shape([p for m in said for p in m.parts], size)
            sent = (asked,) if answers == "server" else said
            items.append(Item(f"chat-{number}-{turn}", sent, shape=shape, options=options))
            # Drawn in both cases, so that both ask the same questions.
            answer = Message("assistant", (Part("text", sentence(rng, answer_words)),))
            said = said if answers == "server" else (*said, answer)
        talks.append(items)
    if answers == "server":
        made = _finish("chat", seed, [item for items in talks for item in items], 0.0)
        return Conversations(made.name, made.items, made.digest, turns, live)
    groups = [talks[first : first + live] for first in range(0, conversations, live)]
    in_turns = [items[turn] for group in groups for turn in range(turns) for items in group]
    return _finish("chat", seed, in_turns, 0.0)


@workload("trace")
def trace(path: str, seed: int = 0, limit: int = 0, longest: int = 100_000) -> ListWorkload:
    """Prompts as long as those of a recorded trace, which also gives the output lengths (`ignore_eos` forces them).

    Use it with `--trace` on the same file to replay times and lengths together; `longest` cuts prompts (in tokens).
    """
    from loadtest.traces import read_trace

    recorded = read_trace(path)
    rng = np.random.default_rng([seed, 0x7A])
    made = []
    for number, (inputs, outputs) in enumerate(zip(recorded.inputs.tolist(), recorded.outputs.tolist(), strict=True)):
        if limit and number >= limit:
            break
        words = max(1, round(min(inputs, longest) / 1.3)) if inputs > 0 else 40
        parts = (Part("text", sentence(rng, words)),)
        options = {"max_tokens": outputs, "ignore_eos": True} if outputs > 0 else {}
        made.append(Item(f"trace-{number}", (Message("user", parts),), shape=_shape(parts), options=options))
    return _finish("trace", seed, made, 0.0)
