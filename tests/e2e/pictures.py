"""Pictures with a known truth for the end-to-end tests: drawn here, so that no test picture is needed."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image, ImageDraw

NAMES = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 255, 0), "yellow": (255, 255, 0), "black": (0, 0, 0)}


def draw(shape: str = "circle", color: str = "red", mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Draw one large shape in the middle of a light picture."""
    picture = Image.new("RGB", size, (240, 244, 250))
    pen = ImageDraw.Draw(picture)
    width, height = size
    box = (width // 4, height // 4, width * 3 // 4, height * 3 // 4)
    if shape == "circle":
        pen.ellipse(box, fill=NAMES[color])
    elif shape == "rectangle":
        pen.rectangle(box, fill=NAMES[color])
    else:
        pen.polygon([(width // 2, box[1]), (box[2], box[3]), (box[0], box[3])], fill=NAMES[color])
    return picture.convert(mode)


def encode(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """Return a picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """Return bytes as a base64 data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    """Return a chat content part for the bytes of an image file."""
    return {"type": "image_url", "image_url": {"url": data_uri(data, kind)}}


def ask(text: str, *images: bytes) -> list[Any]:
    """Return chat messages: the images, then the text."""
    return [{"role": "user", "content": [*(image_part(data) for data in images), {"type": "text", "text": text}]}]
