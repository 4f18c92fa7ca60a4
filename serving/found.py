"""Where a request's images stand: every place in a body where an endpoint of vLLM takes media from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serving.errors import ApiError


@dataclass(slots=True)
class Found:
    """One image of a request.

    Attributes:
        param: where it stands, for messages.
        url: what it says.
        put: puts a clean data URI in its place.
        place: index of the message and of the part in its content, for an image of a plain chat message.
    """

    param: str
    url: str
    put: Callable[[str], None]
    place: tuple[int, int] | None = None


def find_images(body: dict[str, Any]) -> list[Found]:
    """Return the images of a request body, in order: every place where an endpoint of vLLM takes media from.

    Raises:
        ApiError: 400, a part that is none of text and image, or one whose image is not where it should be.
    """
    found: list[Found] = []
    for key in _ENTRIES:
        value = body.get(key)
        if isinstance(value, dict):
            _read_entry(value, key, found, None)
        elif isinstance(value, list):
            _read_entries(value, key, found, 0 if key == "messages" else 1)
    images = body.get("images")  # /v2/embed
    for index, url in enumerate(images if isinstance(images, list) else ()):
        if isinstance(url, str):
            found.append(Found(f"images[{index}]", url, _setter(images, index)))
    return found


_ENTRIES = (
    "messages", "input", "inputs",
    "query", "queries", "documents", "text_1", "text_2", "data_1", "data_2",  # scoring and ranking
)  # fmt: skip


def _read_entries(entries: list[Any], where: str, found: list[Found], depth: int) -> None:
    """Read messages, items, or (a batch) lists of them; `depth` 0 is a plain chat's messages."""
    for index, entry in enumerate(entries):
        if isinstance(entry, dict):
            _read_entry(entry, f"{where}[{index}]", found, index if depth == 0 else None)
        elif isinstance(entry, list):
            _read_entries(entry, f"{where}[{index}]", found, depth + 1)


def _read_entry(entry: dict[str, Any], where: str, found: list[Found], index: int | None) -> None:
    for key in ("content", "output"):
        parts = entry.get(key)
        if isinstance(parts, dict):
            _read_part(parts, f"{where}.{key}", found, None)
        elif isinstance(parts, list):
            _read_parts(parts, f"{where}.{key}", found, index if key == "content" else None)
    if "role" not in entry:  # not a message: a content part that stands alone
        _read_part(entry, where, found, None)


def _read_parts(parts: list[Any], where: str, found: list[Found], message: int | None) -> None:
    for index, part in enumerate(parts):
        if not isinstance(part, dict):
            continue
        _read_part(part, f"{where}[{index}]", found, None if message is None else (message, index))
        inner = part.get("content")
        if isinstance(inner, list):  # tool_result
            _read_parts(inner, f"{where}[{index}].content", found, None)


def _read_part(part: dict[str, Any], where: str, found: list[Found], place: tuple[int, int] | None) -> None:
    kind = part.get("type")
    loose = kind is None or part.get("uuid") is not None  # then vLLM goes by the keys
    for key in _NOT_SERVED:
        if kind == key or part.get(key) is not None or (loose and key in part):
            raise ApiError(
                400, f"A part of type {key!r} is not served here; send text and images.", kind="not_served", param=where
            )
    if kind == "image":
        found.append(_messages_image(part, where))
    elif kind in ("image_url", "input_image") or (kind is None and "image_url" in part):
        found.append(_chat_image(part, where, place))
    elif part.get("image_url") is not None or (loose and ("image_url" in part or "image" in part)):
        raise ApiError(400, "An image part needs `type: image_url`.", kind="bad_image_url", param=where)


_NOT_SERVED = (
    "video_url", "video", "audio_url", "input_audio", "audio",
    "image_embeds", "audio_embeds", "video_embeds", "image_pil", "vision_chunk",
    "input_file", "file", "document", "prompt_embeds",
)  # fmt: skip


def _chat_image(part: dict[str, Any], where: str, place: tuple[int, int] | None) -> Found:
    value = part.get("image_url")
    if isinstance(value, dict) and isinstance(value.get("url"), str):
        return Found(f"{where}.image_url.url", value["url"], _setter(value, "url"), place)
    if isinstance(value, str):
        part.setdefault("detail", "auto")  # optional in OpenAI's API, required by vLLM's model of it
        return Found(f"{where}.image_url", value, _setter(part, "image_url"), place)
    raise ApiError(
        400, "An image_url part needs `image_url: {url: ...}`.", kind="bad_image_url", param=f"{where}.image_url"
    )


def _messages_image(part: dict[str, Any], where: str) -> Found:
    """Anthropic's form: `source` is {"type": "base64", "media_type", "data"} or {"type": "url", "url"}."""
    source = part.get("source")

    def put(uri: str) -> None:
        part["source"] = {"type": "base64", "media_type": "image/png", "data": uri.partition(",")[2]}

    if isinstance(source, dict):
        key = "url" if source.get("type") == "url" else "data"  # as vLLM decides
        value = source.get(key)
        if isinstance(value, str):
            declared = source.get("media_type")
            media_type = declared if isinstance(declared, str) and len(declared) < 60 else "image/png"
            url = value if key == "url" else f"data:{media_type};base64,{value}"
            return Found(f"{where}.source.{key}", url, put)
    raise ApiError(
        400, "An image part needs `source: {type: base64, data: ...}`.", kind="bad_image_url", param=f"{where}.source"
    )


def _setter(container: Any, key: str | int) -> Callable[[str], None]:
    def put(value: str) -> None:
        container[key] = value

    return put
