"""What a request carries: every image is fetched, judged, decoded and cleaned before the engine sees it.

The decoded pictures are kept in the exchange, so that nothing decodes them again; a request for another endpoint than
chat completions is rewritten to carry the cleaned pictures.  What vLLM loads all the same goes through
serving/connector.py, so that a spelling that is not known here is screened too.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from serving.errors import ApiError
from serving.exchange import FORMS, api_path, content_type, exchange_of
from serving.fetch import fetch_image
from serving.found import Found, find_images
from serving.media import SMALL_PIXELS, Picture, decode, decode_data_uri, open_header

if TYPE_CHECKING:
    from PIL import Image
    from starlette.types import ASGIApp, Receive, Scope, Send

    from serving.stack import Media, Model, Stack

CHAT = "/v1/chat/completions"
SEEN = 50_000
"""Files whose pixels' digest is remembered, about 300 bytes each."""


@dataclass(slots=True)
class Opened:
    """An image whose header was accepted: what was found, the file, and Pillow's image with no pixel decoded yet."""

    item: Found
    data: bytes
    image: Image.Image


class Look:
    """Finds a request's images and judges their headers: layers between it and `Screen` know the sizes."""

    def __init__(self, app: ASGIApp, stack: Stack, model: Model):
        assert stack.media is not None
        self.app, self.limits = app, stack.media

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": "Only HTTP is served here."})
            return
        if scope["type"] == "http" and scope["method"] == "POST":
            exchange = exchange_of(scope)
            # a form is an upload of audio; vLLM's JSON endpoints refuse it, and so does ours
            if exchange.body and (content_type(scope) not in FORMS or api_path(scope) == CHAT):
                for item in self._find(exchange.json()):
                    exchange.found.append(await header_of(item, self.limits))
        await self.app(scope, receive, send)

    def _find(self, body: dict[str, Any]) -> list[Found]:
        for key in _OVERRIDES:
            if body.get(key):
                raise ApiError(
                    400, f"{key} is not served here: it would undo the limits on images.", kind="not_served", param=key
                )
        found = find_images(body)
        if len(found) > self.limits.images:
            raise ApiError(
                400,
                f"The request has {len(found)} images; the limit is {self.limits.images}.",
                kind="too_many_images",
                param=found[self.limits.images].param,
            )
        return found


class Screen:
    """Decodes the images that `Look` found, and puts the clean pictures in their place.

    Where the stack recalls answers, a file that was seen before is not decoded until somebody needs its pixels: its
    pixels' digest is remembered by the file's own.
    """

    held = 0
    """Pixels of decoded pictures that running requests hold, in this process."""
    seen: ClassVar[OrderedDict[bytes, tuple[str, str, int, int]]] = OrderedDict()
    """Digest of a file -> pixel digest, format, width and height of the picture in it."""

    def __init__(self, app: ASGIApp, stack: Stack, model: Model):
        assert stack.media is not None
        self.app, self.limits, self.remember = app, stack.media, stack.recall is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = exchange_of(scope) if scope["type"] == "http" else None
        if exchange is None or not exchange.found:
            await self.app(scope, receive, send)
            return
        direct = api_path(scope) == CHAT
        if direct:
            exchange.places = [place_of(opened.item) for opened in exchange.found]
        taken = 0

        async def decode() -> None:
            nonlocal taken
            pictures = []
            for opened in exchange.found:
                pixels = opened.image.width * opened.image.height
                self._hold(pixels, always="fovea.canary" in scope)
                taken += pixels
                pictures.append(await decoded(opened.image, len(opened.data), opened.item.param))
            exchange.pictures = pictures

        async def place() -> None:
            if not direct:
                for opened, picture in zip(exchange.found, exchange.pictures, strict=True):
                    opened.item.put(await asyncio.to_thread(as_png_uri, picture))
                exchange.replace_body(exchange.json())

        async def decode_and_place() -> None:
            await decode()
            await place()

        try:
            if not self.remember:
                await decode_and_place()
            elif seen := self._seen(exchange.found):
                exchange.pictures, exchange.pending = seen, decode_and_place
            else:
                await decode()
                self._remember(exchange.found, exchange.pictures)
                exchange.pending = place
            await self.app(scope, receive, send)
        finally:
            Screen.held -= taken

    def _seen(self, found: list[Opened]) -> list[Picture]:
        """Return the pictures without their pixels, when all of them were seen before."""
        known = [Screen.seen.get(file_digest(opened.data)) for opened in found]
        return (
            [Picture(opened.image, *seen, len(opened.data)) for seen, opened in zip(known, found, strict=True) if seen]
            if all(known)
            else []
        )

    def _remember(self, found: list[Opened], pictures: list[Picture]) -> None:
        for opened, picture in zip(found, pictures, strict=True):
            Screen.seen[file_digest(opened.data)] = (picture.digest, picture.format, picture.width, picture.height)
        while len(Screen.seen) > SEEN:
            Screen.seen.popitem(last=False)

    def _hold(self, pixels: int, always: bool) -> None:
        if not always and Screen.held and Screen.held + pixels > self.limits.pixels_inside:
            raise ApiError(
                503, "Running requests hold too many pixels. Try again in 1 s.", kind="overloaded", retry_after=1
            )
        Screen.held += pixels


_OVERRIDES = ("mm_processor_kwargs", "media_io_kwargs")


async def screen(item: Found, limits: Media) -> Picture:
    """Return one image of a request as a clean picture.

    Raises:
        ApiError: 400 or 413, with the part at fault.
    """
    opened = await header_of(item, limits)
    return await decoded(opened.image, len(opened.data), item.param)


def file_digest(data: bytes) -> bytes:
    """Return the BLAKE2b-256 of a file."""
    return hashlib.blake2b(data, digest_size=32).digest()


async def header_of(item: Found, limits: Media) -> Opened:
    """Return an image whose header was accepted, not decoded yet.

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
    return Opened(item, data, open_header(data, limits, item.param))


async def decoded(image: Image.Image, size: int, param: str) -> Picture:
    """Decode an accepted image, in a thread if it is large.

    Raises:
        ApiError: 400 or 413, with the part at fault.
    """
    if image.width * image.height <= SMALL_PIXELS:
        return decode(image, size, param)
    return await asyncio.to_thread(decode, image, size, param)


def place_of(item: Found) -> tuple[int, int]:
    """Return where an image of a chat request stands.

    Raises:
        ApiError: 400, it is not a part of a message's content.
    """
    if item.place is None:
        raise ApiError(
            400,
            "Write an image of a chat message as an image_url part of its content.",
            kind="bad_image_url",
            param=item.param,
        )
    return item.place


def as_png_uri(picture: Picture) -> str:
    """Return a clean picture as a PNG data URI."""
    buffer = io.BytesIO()
    picture.image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
