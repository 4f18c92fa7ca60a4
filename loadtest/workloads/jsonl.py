"""A workload from a JSONL file of the user's own.

One object per line, blank lines are skipped:

    {"prompt": "What colour is it?", "image": "red.png", "expected": "red"}
    {"question": "Compare them.", "images": ["a.png", "https://host/b.jpg"], "max_tokens": 64}
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "id": "greeting"}

`prompt` and `question` mean the same.  An image is a path (relative to the file), a data URI, or an http(s) URL that
the server fetches.  `expected` with an optional `accept` (`{"rule": "numeric", "abs": 0.5}`) makes answers scored; the
rules are those of golden sets.
"""

from __future__ import annotations

import base64
import binascii
import json
import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loadtest.apis import Message, Part
from loadtest.workloads.base import Item, ListWorkload, Shape, digest_of, workload
from models.support.errors import UsageError

KEYS = {"id", "prompt", "question", "messages", "system", "image", "images", "audio", "expected", "accept", "category"}
OPTIONS = {"max_tokens", "temperature", "top_p", "stop", "response_format", "tools", "tool_choice"}
IGNORED = {"split", "tags", "timestamp"}


class _Line:
    """One line being read; raises errors that name it."""

    def __init__(self, path: Path, number: int):
        self.path, self.number = path, number

    def error(self, message: str, value: object = None, fix: str | None = None) -> UsageError:
        return UsageError(message, field=f"{self.path}, line {self.number}", value=value, fix=fix)

    def media(self, given: Any, kind: str) -> Part:
        """Return an image or sound that is named by path, data URI or URL."""
        if not isinstance(given, str) or not given:
            raise self.error(f"{kind} must be a path, a data URI or a URL", given)
        if given.startswith(("http://", "https://")):
            return Part(kind, text=given)
        if given.startswith("data:"):
            head, _, payload = given[5:].partition(",")
            try:
                data = base64.b64decode(payload, validate=True)
            except binascii.Error as error:
                raise self.error(f"{kind} is not valid base64: {error}", given[:60]) from error
            return Part(kind, data=data, media_type=head.split(";")[0])
        file = self.path.parent / given
        try:
            data = file.read_bytes()
        except OSError as error:
            raise self.error(
                f"cannot read the {kind}: {error.strerror}", given, "paths are relative to the file"
            ) from error
        return Part(kind, data=data, media_type=mimetypes.guess_type(file.name)[0] or "application/octet-stream")

    def messages(self, given: Any) -> tuple[Message, ...]:
        """Return messages given in OpenAI's form."""
        if not isinstance(given, list) or not given:
            raise self.error("messages must be a list with at least one message")
        return tuple(self._message(m) for m in given)

    def _message(self, given: Any) -> Message:
        if not isinstance(given, dict) or not isinstance(given.get("role"), str):
            raise self.error("a message must be an object with a role", given)
        content = given.get("content")
        if isinstance(content, str):
            return Message(given["role"], (Part("text", content),))
        if not isinstance(content, list):
            raise self.error("content must be a text or a list of parts", content)
        return Message(given["role"], tuple(self._part(p) for p in content))

    def _part(self, given: Any) -> Part:
        kind = given.get("type") if isinstance(given, dict) else None
        if kind == "text" and isinstance(given.get("text"), str):
            return Part("text", given["text"])
        if kind in ("image_url", "audio_url", "video_url") and isinstance(given.get(kind), dict):
            return self.media(given[kind].get("url"), kind.removesuffix("_url"))
        raise self.error("a part must be text, image_url, audio_url or video_url", kind)


def _size(part: Part) -> tuple[int, int]:
    from io import BytesIO

    from PIL import Image

    try:
        with Image.open(BytesIO(part.data)) as image:
            return image.size
    except (
        OSError,
        ValueError,
        SyntaxError,
        Image.DecompressionBombError,
    ):  # a broken picture is a legitimate thing to send; its size is then unknown
        return (0, 0)


def _truth(line: _Line, row: dict[str, Any]) -> Callable[[str], bool] | None:
    if "expected" not in row:
        if "accept" in row:
            raise line.error("accept without expected", fix="add expected, or drop accept")
        return None
    from models.golden import RULES

    accept = row.get("accept", {"rule": "normalized"})
    if not isinstance(accept, dict) or accept.get("rule") not in RULES:
        raise line.error("unknown rule in accept", accept, f"use one of {', '.join(RULES)}")
    options = {k: v for k, v in accept.items() if k != "rule"}
    rule, expected = RULES[accept["rule"]], row["expected"]
    wrong = rule.validate(expected, options)
    if wrong:
        raise line.error(wrong, expected)
    return lambda answer: bool(rule.check(answer, expected, options))


def _item(line: _Line, row: Any) -> Item:
    if not isinstance(row, dict):
        raise line.error("not an object")
    unknown = set(row) - KEYS - OPTIONS - IGNORED
    if unknown:
        known = ", ".join(sorted(KEYS | OPTIONS))
        raise line.error(f"unknown key {sorted(unknown)[0]!r}", fix=f"known keys are {known}")
    prompt = row.get("prompt", row.get("question"))
    if "messages" in row:
        messages = line.messages(row["messages"])
    else:
        if not isinstance(prompt, str) or not prompt:
            raise line.error("needs a prompt, a question or messages", prompt)
        images = row.get("images", [row["image"]] if "image" in row else [])
        if not isinstance(images, list):
            raise line.error("images must be a list", images)
        parts = [line.media(i, "image") for i in images]
        if "audio" in row:
            parts.append(line.media(row["audio"], "audio"))
        messages = (Message("user", (*parts, Part("text", prompt))),)
        if "system" in row:
            messages = (Message("system", (Part("text", str(row["system"])),)), *messages)
    pictures = [p for m in messages for p in m.parts if p.kind == "image"]
    width, height = _size(pictures[0]) if pictures else (0, 0)
    text = sum(len(p.text) for m in messages for p in m.parts if p.kind == "text")
    return Item(
        id=str(row.get("id", line.number)),
        messages=messages,
        check=_truth(line, row),
        expected=str(row.get("expected", "")),
        category=str(row.get("category", "")),
        shape=Shape(width, height, len(pictures), text),
        options={k: row[k] for k in OPTIONS if k in row},
    )


@workload("jsonl")
def jsonl(path: str, seed: int = 0, shuffle: bool = True) -> ListWorkload:
    """Read the file; items are shuffled by the seed unless `shuffle` is false.

    Raises:
        UsageError: the file cannot be read, or a line is wrong (the error has its number).
    """
    import numpy as np

    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read: {error.strerror}", field="--workload", value=path, fix="name an existing file"
        ) from error
    items = []
    for number, raw in enumerate(data.split(b"\n"), 1):
        if not raw.strip():
            continue
        line = _Line(file, number)
        try:
            row = json.loads(raw)
        except ValueError as error:  # wrong JSON and wrong UTF-8
            raise line.error(f"not JSON: {error}", fix="write one JSON object per line, in UTF-8") from error
        items.append(_item(line, row))
    if shuffle:
        items = [items[i] for i in np.random.default_rng([seed, 0x71]).permutation(len(items))]
    return ListWorkload(file.name, items, digest_of(data))
