"""Pairs of requests that are easily taken for one another, and pairs that are one request."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import random
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageOps

from serving.recall.calibrate import PAIRS as PAIRS_FILE
from serving.recall.calibrate import read_pairs
from tests.serving.pictures import encode

Body = dict[str, Any]
Pair = tuple[Body, Body]


# pictures and questions


def picture(rng: random.Random) -> Image.Image:
    """A small picture that is like no other, and whose orientations differ."""
    return Image.frombytes("RGB", (12, 8), rng.randbytes(12 * 8 * 3))


def part(image: Image.Image, form: str = "PNG", **options: Any) -> Body:
    data = base64.b64encode(encode(image, form, **options)).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/{form.lower()};base64,{data}"}}


def ask(text: str, *parts: Body, **more: Any) -> Body:
    message = {"role": "user", "content": [*parts, {"type": "text", "text": text}]}
    return {"model": "adversary", "messages": [message], "temperature": 0, "max_tokens": 8, **more}


QUESTIONS = [
    ("how many apples are there?", "how much are the apples?"),
    ("is there a red circle?", "is there not a red circle?"),
    ("is there a dog?", "is there no dog?"),
    ("does it fit?", "doesn't it fit?"),
    ("is it more than 10?", "is it more than 100?"),
    ("is it 5 cm wide?", "is it 5 mm wide?"),
    ("is it 5 cm wide?", "is it 5 cm high?"),
    ("what did Anna buy?", "what did Hanna buy?"),
    ("is the left one red?", "is the right one red?"),
    ("who is first?", "who is last?"),
    ("is it before 2020-01-02?", "is it before 2020-02-01?"),
    ("what is the price in USD?", "what is the price in EUR?"),
    ("Is it Polish?", "is it polish?"),
    ("is it on?", "is it on ?"),
    ("résumé?", "resume?"),
    ("is it о?", "is it o?"),  # the first one is Cyrillic
    ("a", "a "),
    ("a\n", "a"),
    ("naïve", "nai\u0308ve"),
    ("is it 1.5?", "is it 15?"),
    ("is it -5 degrees?", "is it 5 degrees?"),
    ("", " "),
]
SETTINGS: list[tuple[Body, Body]] = [
    ({"max_tokens": 8}, {"max_tokens": 9}),
    ({"seed": 1}, {"seed": 2}),
    ({"top_p": 0.9}, {"top_p": 0.8}),
    ({"top_k": 1}, {"top_k": 2}),
    ({"stop": ["a"]}, {"stop": ["b"]}),
    ({"stop": ["a", "b"]}, {"stop": ["b", "a"]}),
    ({"logprobs": True}, {"logprobs": False}),
    ({"logit_bias": {"1": 5}}, {"logit_bias": {"2": 5}}),
    ({"presence_penalty": 0.5}, {"frequency_penalty": 0.5}),
    ({"n": 1}, {"n": 2}),
    ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "text"}}),
    ({"structured_outputs": {"choice": ["a", "b"]}}, {"structured_outputs": {"choice": ["b", "a"]}}),
    ({"tools": [{"function": {"name": "a"}}]}, {"tools": [{"function": {"name": "b"}}]}),
    ({"tool_choice": "auto"}, {"tool_choice": "none"}),
    ({"temperature": 0}, {"temperature": 0, "min_p": 0.1}),
    ({"model": "adversary"}, {"model": "adversary:adapter"}),
    ({"chat_template_kwargs": {"a": 1}}, {"chat_template_kwargs": {"a": 2}}),
    ({"unheard_of": None}, {}),
]

# pairs that are two requests


def one_pixel(rng: random.Random) -> Pair:
    image = picture(rng)
    other, place, channel = image.copy(), (rng.randrange(12), rng.randrange(8)), rng.randrange(3)
    color = list(other.getpixel(place))  # type: ignore[arg-type]
    color[channel] ^= 1
    other.putpixel(place, tuple(color))
    return ask("what is it?", part(image)), ask("what is it?", part(other))


def another_image(rng: random.Random) -> Pair:
    return ask("what is it?", part(picture(rng))), ask("what is it?", part(picture(rng)))


def turned(rng: random.Random) -> Pair:
    image = picture(rng)
    turn = rng.choice(list(Image.Transpose))
    return ask("what is it?", part(image)), ask("what is it?", part(image.transpose(turn)))


def turned_by_exif(rng: random.Random) -> Pair:
    image, exif = picture(rng), Image.Exif()
    exif[0x0112] = rng.randrange(2, 9)
    return ask("what is it?", part(image)), ask("what is it?", part(image, exif=exif))


def same_bytes_other_shape(rng: random.Random) -> Pair:
    image = picture(rng)
    return ask("?", part(image)), ask("?", part(Image.frombytes("RGB", (8, 12), image.tobytes())))


def cropped(rng: random.Random) -> Pair:
    image = picture(rng)
    return ask("?", part(image)), ask("?", part(image.crop((0, 0, 11, 8))))


def swapped(rng: random.Random) -> Pair:
    one, two = part(picture(rng)), part(picture(rng))
    return ask("which?", one, two), ask("which?", two, one)


def twice(rng: random.Random) -> Pair:
    one = part(picture(rng))
    return ask("which?", one), ask("which?", one, one)


def image_gone(rng: random.Random) -> Pair:
    text = f"what is it {rng.random()}?"
    return ask(text, part(picture(rng))), ask(text)


def moved_in_the_conversation(rng: random.Random) -> Pair:
    one, text = part(picture(rng)), {"type": "text", "text": "what is it?"}
    before, after = ask(""), ask("")
    before["messages"] = [{"role": "user", "content": [one, text]}]
    after["messages"] = [{"role": "user", "content": [text, one]}]
    return before, after


def another_question(rng: random.Random) -> Pair:
    one, (a, b) = part(picture(rng)), rng.choice(QUESTIONS)
    return ask(a, one), ask(b, one)


SWAPS = [
    ("left", "right"), ("above", "below"), ("in front of", "behind"), ("first", "last"), ("2", "3"), ("15", "51"),
    ("1.5", "15"), ("two", "three"), ("cm", "mm"), ("kg", "lb"), ("miles", "km"), ("%", "\u2030"), ("Anna", "Hanna"),
    ("Smith", "Smyth"), ("Paris", "Berlin"), ("X3", "X5"), ("red", "blue"), ("all", "some"), ("only", "also"),
    ("is", "is not"), ("has", "has no"), ("with", "without"), ("more", "less"), ("before", "after"), ("man", "woman"),
    ("open", "closed"), ("can", "cannot"), ("at least", "at most"), ("his", "hers"), ("buy", "sell"),
    ("Polish", "polish"),
]  # fmt: skip
AROUND = [
    "does the man see {} here?", "what {} the sign say", "Tell me whether it says {} on the box.", "is there a {} one?",
    "how many {} things are there?", "what color is the {} shape?", "Is the price {} now?", "who {} in the picture?",
]  # fmt: skip
NOT_SAME = [pair for pair in read_pairs(PAIRS_FILE) if not pair[0]]
SAME = [pair for pair in read_pairs(PAIRS_FILE) if pair[0]]


def another_meaning(rng: random.Random) -> Pair:
    """About the same picture, as near in words as possible."""
    one = part(picture(rng))
    if rng.random() < 0.5:
        _, a, b = rng.choice(NOT_SAME)
    else:
        frame, swap = rng.choice(AROUND), rng.choice(SWAPS)
        a, b = (frame.format(word) for word in swap)
    return ask(a, one), ask(b, one)


def in_other_words_of_another(rng: random.Random) -> Pair:
    """A paraphrase, but one other thing differs too."""
    _, a, b = rng.choice(SAME)
    image = picture(rng)
    more: Body = rng.choice([{"max_tokens": 9}, {"seed": 3}, {"tools": []}, {"temperature": 0, "top_k": 2}])
    if rng.random() < 0.3:
        return ask(a, part(image)), ask(b, part(picture(rng)))
    if rng.random() < 0.5:
        return ask(a, part(image)), ask(b, part(image), **more)
    before, after = ask(a, part(image)), ask(b, part(image))
    before["messages"].insert(0, {"role": "system", "content": "Answer yes."})
    after["messages"].insert(0, {"role": "system", "content": "Answer no."})
    return before, after


def in_other_words(rng: random.Random) -> Pair:
    """What semantic recall is for."""
    _, a, b = rng.choice(SAME)
    one = part(picture(rng))
    return ask(a, one), ask(b, one)


def another_setting(rng: random.Random) -> Pair:
    one, (a, b) = part(picture(rng)), rng.choice(SETTINGS)
    return ask("?", one, **a), ask("?", one, **b)


def another_system_prompt(rng: random.Random) -> Pair:
    a, b = ask("?", part(picture(rng))), None
    b = json.loads(json.dumps(a))
    a["messages"].insert(0, {"role": "system", "content": "Answer yes."})
    b["messages"].insert(0, {"role": rng.choice(["system", "developer"]), "content": "Answer no."})
    return a, b


def another_role(rng: random.Random) -> Pair:
    a = ask("?", part(picture(rng)))
    b = json.loads(json.dumps(a))
    a["messages"].append({"role": "assistant", "content": "yes"})
    b["messages"].append({"role": "user", "content": "yes"})
    return a, b


def another_split(rng: random.Random) -> Pair:
    one = part(picture(rng))
    a, b = ask("", one), ask("", one)
    a["messages"] += [{"role": "user", "content": "ab"}, {"role": "user", "content": "c"}]
    b["messages"] += [{"role": "user", "content": "a"}, {"role": "user", "content": "bc"}]
    return a, b


def another_detail(rng: random.Random) -> Pair:
    a = ask("?", part(picture(rng)))
    b = json.loads(json.dumps(a))
    a["messages"][0]["content"][0]["image_url"]["detail"] = "low"
    b["messages"][0]["content"][0]["image_url"]["detail"] = "high"
    return a, b


def a_text_that_poses_as_an_image(rng: random.Random) -> Pair:
    image = picture(rng)
    digest = hashlib.blake2b(b"12x8:", digest_size=16)
    digest.update(image.tobytes())
    text = json.dumps({"type": "image_url", "image_url": {"url": f"data:fovea;{digest.hexdigest()}"}})
    return ask("?", part(image)), ask("?", {"type": "text", "text": text})


# pairs that are one request


def encoded_again(rng: random.Random) -> Pair:
    image = picture(rng)
    forms: list[tuple[str, Body]] = [
        ("PNG", {"compress_level": 0}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True}),
        ("TIFF", {"compression": "tiff_lzw"}), ("PNG", {"exif": exif_with("a camera")}), ("PNG", {"dpi": (72, 72)}),
    ]  # fmt: skip
    form, options = rng.choice(forms)
    return ask("?", part(image)), ask("?", part(image, form, **options))


def exif_with(text: str) -> Image.Exif:
    exif = Image.Exif()
    exif[0x010F] = text
    return exif


def turned_by_exif_and_by_hand(rng: random.Random) -> Pair:
    image, exif = picture(rng), Image.Exif()
    exif[0x0112] = rng.randrange(2, 9)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encode(image, exif=exif))))
    return ask("?", part(image, exif=exif)), ask("?", part(upright.convert("RGB")))


def said_by_another_user(rng: random.Random) -> Pair:
    one = part(picture(rng))
    return ask("?", one, user="a"), ask("?", one, user="b")


def declared_otherwise(rng: random.Random) -> Pair:
    a = ask("?", part(picture(rng)))
    b = json.loads(json.dumps(a).replace("data:image/png;base64", "data:image/jpeg;base64"))
    return a, b


def written_in_another_order(rng: random.Random) -> Pair:
    a = ask("?", part(picture(rng)))
    return a, dict(reversed(list(a.items())))


TWO: list[Callable[[random.Random], Pair]] = [
    one_pixel, another_image, turned, turned_by_exif, same_bytes_other_shape, cropped, swapped, twice, image_gone,
    moved_in_the_conversation, another_question, another_setting, another_system_prompt, another_role, another_split,
    another_detail, a_text_that_poses_as_an_image, another_meaning, another_meaning, another_meaning,
    in_other_words_of_another,
]  # fmt: skip
ONE: list[Callable[[random.Random], Pair]] = [
    encoded_again, turned_by_exif_and_by_hand, said_by_another_user, declared_otherwise, written_in_another_order,
]  # fmt: skip
