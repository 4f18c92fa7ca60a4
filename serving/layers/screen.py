"""What a request carries: every image is fetched, judged, decoded and cleaned before the engine sees it.

The decoded pictures are kept in the exchange, so that nothing decodes them again; a request for another endpoint than
chat completions is rewritten to carry the cleaned pictures.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.errors import ApiError
from serving.exchange import exchange_of
from serving.fetch import fetch_image
from serving.media import SMALL_PIXELS, Picture, decode, decode_data_uri, open_header

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from serving.stack import Media, Model, Stack

CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Found:
    """One image of a request: where it stands, what it says, and how to put a clean data URI in its place."""

    param: str
    url: str
    put: Callable[[str], None]


class Screen:
    """See the module's docstring."""

    def __init__(self, app: ASGIApp, stack: Stack, model: Model):
        assert stack.media is not None
        self.app, self.limits = app, stack.media

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            exchange = exchange_of(scope)
            if exchange.body and (b'"content"' in exchange.body or b'"input"' in exchange.body or b"\\u" in exchange.body):
                found = find_images(exchange.json())
                if len(found) > self.limits.images:
                    raise ApiError(
                        400,
                        f"The request has {len(found)} images; the limit is {self.limits.images}.",
                        kind="too_many_images",
                        param=found[self.limits.images].param,
                    )
                if found:
                    exchange.pictures = [await screen(item, self.limits) for item in found]
                    if not scope["path"].endswith(CHAT):
                        for item, picture in zip(found, exchange.pictures, strict=True):
                            item.put(await asyncio.to_thread(as_png_uri, picture))
                        exchange.replace_body(exchange.json())
        await self.app(scope, receive, send)


async def screen(item: Found, limits: Media) -> Picture:
    """Return one image of a request as a clean picture.

    Raises:
        ApiError: 400 or 413, with the part at fault.
    """
    scheme = item.url[:8].casefold()
    if scheme.startswith("data:"):
        data = decode_data_uri(item.url, limits, item.param)
    elif scheme.startswith(("http://", "https://")):
        data = await fetch_image(item.url, limits, item.param)
    else:
        raise ApiError(
            400,
            f"An image must be a data: URI or an http(s) URL, not {item.url[:40]!r}.",
            kind="bad_image_url",
            param=item.param,
        )
    image = open_header(data, limits, item.param)
    if image.width * image.height <= SMALL_PIXELS:
        return decode(image, len(data), item.param)
    return await asyncio.to_thread(decode, image, len(data), item.param)


def as_png_uri(picture: Picture) -> str:
    """Return a clean picture as a PNG data URI."""
    buffer = io.BytesIO()
    picture.image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def find_images(body: dict[str, Any]) -> list[Found]:
    """Return the images of a chat-completions, responses, messages, tokenize or embeddings body, in order.

    Raises:
        ApiError: 400, a part that is none of text and image, or one whose image is not where it should be.
    """
    found: list[Found] = []
    for key in ("messages", "input"):
        entries = body.get(key)
        if not isinstance(entries, list):
            continue
        for index, entry in enumerate(entries):
            if not isinstance(entry, dict):
                continue
            where = f"{key}[{index}]"
            _read_parts(entry.get("content"), f"{where}.content", found)
            if isinstance(entry.get("type"), str) and entry["type"] in _READERS:
                _read_part(entry, where, found)
    return found


def _read_parts(parts: Any, where: str, found: list[Found]) -> None:
    if not isinstance(parts, list):
        return
    for index, part in enumerate(parts):
        if not isinstance(part, dict):
            continue
        _read_part(part, f"{where}[{index}]", found)
        if part.get("type") == "tool_result":
            _read_parts(part.get("content"), f"{where}[{index}].content", found)


def _read_part(part: dict[str, Any], where: str, found: list[Found]) -> None:
    kind = part.get("type")
    if isinstance(kind, str) and kind in _READERS:
        found.append(_READERS[kind](part, where))
        return
    for key in _NOT_SERVED:
        if kind == key or key in part:
            raise ApiError(400, f"A part of type {key!r} is not served here; send text and images.", kind="not_served", param=where)
    for key in ("image_url", "image"):
        if key in part:  # vLLM also guesses the type from the key; screened all the same
            found.append(_READERS["image_url" if key == "image_url" else "image"](part, where))
            return


_NOT_SERVED = (
    "video_url", "video", "audio_url", "input_audio", "audio", "image_embeds", "audio_embeds", "image_pil",
    "vision_chunk", "input_file", "file", "document", "prompt_embeds",
)  # fmt: skip


def _chat_image(part: dict[str, Any], where: str) -> Found:
    value = part.get("image_url")
    if isinstance(value, dict) and isinstance(value.get("url"), str):

        def put(uri: str) -> None:
            value["url"] = uri

        return Found(f"{where}.image_url.url", value["url"], put)
    if isinstance(value, str):
        part.setdefault("detail", "auto")  # optional in OpenAI's API, required by vLLM's model of it
        return Found(f"{where}.image_url", value, lambda uri: part.__setitem__("image_url", uri))
    raise ApiError(400, "An image_url part needs `image_url: {url: ...}`.", kind="bad_image_url", param=f"{where}.image_url")


def _messages_image(part: dict[str, Any], where: str) -> Found:
    """Anthropic's form: {"type": "image", "source": {"type": "base64", "media_type", "data"} | {"type": "url", "url"}}."""
    source = part.get("source")
    if isinstance(source, dict) and isinstance(source.get("data"), str):

        def put(uri: str) -> None:
            source.update(media_type="image/png", data=uri.partition(",")[2])

        declared = source.get("media_type")
        media_type = declared if isinstance(declared, str) and len(declared) < 60 else "image/png"
        return Found(f"{where}.source.data", f"data:{media_type};base64,{source['data']}", put)
    if isinstance(source, dict) and isinstance(source.get("url"), str):

        def put_url(uri: str) -> None:
            part["source"] = {"type": "base64", "media_type": "image/png", "data": uri.partition(",")[2]}

        return Found(f"{where}.source.url", source["url"], put_url)
    raise ApiError(400, "An image part needs `source: {type: base64, data: ...}`.", kind="bad_image_url", param=f"{where}.source")


_READERS: dict[str, Callable[[dict[str, Any], str], Found]] = {
    "image_url": _chat_image,
    "input_image": _chat_image,
    "image": _messages_image,
}
