"""What a question says, in a form that paraphrases of a few safe kinds share.

An embedding cannot tell "is there a red circle" from "is there a blue circle" (cosine 0.78), nor who bites whom.  So
two questions are taken for one only if, besides their embeddings being near, all their words are the same in the same
order, after these rewritings and no others:

    politeness            please, hello, can you tell me
    contractions          what's, isn't
    spelling              colour, where it is what is asked for
    "in the picture"      of the only picture of the request, by whichever name
    which + noun          what + noun
    what type of          what kind of
    the color of X        what color X is; so for shape, size, material, pattern
    existence             is there a X, does the picture show a X, do you see a X, is a X visible
    counting              how many X are there, do you see, are in the picture, are shown

Whatever is not listed counts: numbers, units, negations, names (capitals inside a sentence), plurals, tenses, articles,
symbols, and every word of another language.  Only a single question is rewritten: nothing where something is quoted, or
where there is more than one sentence (a greeting in a text to translate is no politeness).
"""

from __future__ import annotations

import re
import unicodedata

TOKEN = re.compile(r"\d+(?:[.,:/]\d+)*|[^\W\d_]+(?:['-][^\W\d_]+)*|\S")
STARTS = frozenset(
    (  # noqa: SIM905, a list of quoted words would take a page
        "a an the what which who whom whose where when why how is are was were do does did can could will would should "
        "has have had there in on at of this that these those it please hello hi hey tell name identify describe read "
        "count list isn't aren't doesn't don't what's who's where's how's there's it's if whether"
    ).split()
)
"""Words whose capital at the start of a sentence means nothing.  A name could stand there: all others keep theirs."""
QUOTES = frozenset("\"'`\u2018\u201c\u201d\u00ab\u00bb\u201e")
BREAKS = frozenset((".", "?", "!", ":", ";"))
ASKING = STARTS - frozenset(("a", "an", "the", "there", "in", "on", "at", "of", "this", "that", "these", "those", "it"))
"""What a single question can begin with."""
CONTRACTED = {
    "what's": ("what", "is"), "who's": ("who", "is"), "where's": ("where", "is"), "how's": ("how", "is"),
    "there's": ("there", "is"), "can't": ("can", "not"), "cannot": ("can", "not"), "won't": ("will", "not"),
}  # fmt: skip
PICTURE = frozenset(("picture", "image", "photo", "photograph", "pic"))
ATTRIBUTE = frozenset(("color", "shape", "size", "material", "pattern"))
SEEN = frozenset(("shown", "visible", "depicted", "displayed"))
SHOWS = frozenset(("show", "contain", "depict", "display"))
POLITE = (
    ("please",), ("hello",), ("hi",), ("hey",), ("can", "you", "please", "tell", "me"), ("can", "you", "tell", "me"),
    ("could", "you", "please", "tell", "me"), ("could", "you", "tell", "me"), ("tell", "me"),
)  # fmt: skip
IS, DO = ("is", "are"), ("do", "does")
NO_NOUN = frozenset((*IS, *DO, "of", "one", "ones", "did", "was", "were", "can", "will", "would", "has", "have"))


def meaning(text: str, images: int) -> tuple[str, ...]:
    """Return the words that count, in order, of a question about so many images."""
    plain = unicodedata.normalize("NFC", text).replace("\u2019", "'")
    raw = TOKEN.findall(plain)
    words = _words(plain)
    while words and words[-1] in ("?", ".", "!"):
        words.pop()
    words, asked = _polite(words)
    single = words[:1] and (words[0] in ASKING or (asked and words[0] == "the")) and BREAKS.isdisjoint(words)
    if not single or not QUOTES.isdisjoint(raw):
        return tuple(raw)
    if images == 1:
        words = _without_picture(words)
    words = _colour(_which(words))
    for rewrite in (_attribute, _existence, _counting):
        words = rewrite(words, asked, images)
    return tuple(words)


def _words(text: str) -> list[str]:
    found: list[str] = []
    for match in TOKEN.finditer(text):
        word = match.group()
        begins = not found or found[-1] in (".", "?", "!")
        if begins and word.lower() in STARTS:
            word = word.lower()
        if word in CONTRACTED:
            found += CONTRACTED[word]
        elif word.endswith("n't") and len(word) > 3:
            found += [word[:-3], "not"]
        else:
            found.append(word)
    return found


def _polite(words: list[str]) -> tuple[list[str], bool]:
    """Drop politeness at both ends; also return whether `tell me` was there: what follows is an indirect question."""
    asked = again = False
    while words:
        start = next((start for start in POLITE if tuple(words[: len(start)]) == start), None)
        if start is not None:
            asked |= start[-2:] == ("tell", "me")
            words, again = words[len(start) :], True
        elif again and words[0] in (",", "!", ".", ":"):
            words = words[1:]
        else:
            break
        if words and words[0].lower() in STARTS:
            words = [words[0].lower(), *words[1:]]
    while words and words[-1] == "please":
        words = words[:-2] if words[-2:-1] == [","] else words[:-1]
    return words, asked


def _without_picture(words: list[str]) -> list[str]:
    """Drop `in the picture`, with `shown` before it."""
    kept: list[str] = []
    skip = 0
    for place, word in enumerate(words):
        if skip:
            skip -= 1
        elif (
            word in ("in", "on")
            and words[place + 1 : place + 2] in (["the"], ["this"])
            and words[place + 2 : place + 3]
            and words[place + 2] in PICTURE
            and (place + 3 == len(words) or words[place + 3] in (",", "?", "."))
        ):
            skip = 2
            if kept and kept[-1] in SEEN:
                kept.pop()
        else:
            kept.append(word)
    return kept


def _which(words: list[str]) -> list[str]:
    out: list[str] = []
    for place, word in enumerate(words):
        follows = words[place + 1 : place + 2]
        if word == "which" and follows and follows[0] not in NO_NOUN and follows[0].isalpha() and place == 0:
            out.append("what")
        elif word in ("type", "sort") and follows == ["of"] and out == ["what"]:
            out.append("kind")
        else:
            out.append(word)
    return out


def _colour(words: list[str]) -> list[str]:
    """`colour` -> `color` where it is asked for, not where it may be a word in the picture."""
    if words[:2] == ["what", "colour"] or words[:3] == ["the", "colour", "of"]:
        return [words[0], "color", *words[2:]]
    for start in (["what", "is", "the"], ["name", "the"], ["identify", "the"]):
        size = len(start)
        if words[: size + 2] == [*start, "colour", "of"]:
            return [*start, "color", *words[size + 1 :]]
    return words


def _attribute(words: list[str], asked: bool, images: int) -> list[str]:
    """`what is the color of X`, `tell me the color of X`, `what color X is`, `what color does X have`.

    All become `what color is X`.
    """
    if words[:3] == ["what", "is", "the"]:
        rest = words[3:]
    elif (asked and words[:1] == ["the"]) or words[:2] in (["name", "the"], ["identify", "the"]):
        rest = words[1:] if words[0] == "the" else words[2:]
    else:
        rest = []
    if len(rest) > 2 and rest[0] in ATTRIBUTE and rest[1] == "of" and words[-1] not in IS:
        return ["what", rest[0], "is", *rest[2:]]
    if words[:1] == ["what"] and len(words) > 3 and words[1] in ATTRIBUTE:
        if asked and words[2] not in (*IS, *DO) and words[-1] == "is":
            return [*words[:2], "is", *words[2:-1]]
        if words[2] == "does" and words[-1] == "have":
            return [*words[:2], "is", *words[3:-1]]
    return words


def _existence(words: list[str], asked: bool, images: int) -> list[str]:
    """Questions whether there is a X -> is there a X."""
    if asked and words[:1] in (["if"], ["whether"]) and words[1:4] == ["there", "is", "a"]:
        return ["is", "there", *words[3:]]
    shows = images == 1 and words[:2] in (["does", "the"], ["does", "this"]) and len(words) > 5
    if shows and words[2] in PICTURE and words[3] in SHOWS and words[4] == "a":
        return ["is", "there", *words[4:]]
    if words[:3] in (["do", "you", "see"], ["can", "you", "see"]) and words[3:4] == ["a"]:
        return ["is", "there", *words[3:]]
    if words[:2] == ["is", "a"] and len(words) > 3 and words[-1] in SEEN:
        return ["is", "there", *words[1:-1]]
    return words


def _counting(words: list[str], asked: bool, images: int) -> list[str]:
    """`how many X` with or without `are there`, `do you see` and the like."""
    if words[:2] != ["how", "many"]:
        return words
    ends = [["are", "there"], ["there", "are"], ["do", "you", "see"], ["can", "you", "see"], ["can", "be", "seen"]]
    for end in (*ends, *(["are", seen] for seen in SEEN), ["are"]):
        if len(words) > 2 + len(end) and words[-len(end) :] == end:
            return words[: -len(end)]
    return words
