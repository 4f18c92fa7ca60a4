"""Every kind of image file through the real engine: it is answered truly or refused with a 4xx that says where."""

from __future__ import annotations

import base64
import struct
import zlib

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.e2e.conftest import HTTP, Running
from tests.e2e.pictures import ask, data_uri, draw, encode

pytestmark = pytest.mark.e2e


def color_of(qwen: Running, data: bytes) -> httpx.Response:
    """Ask for the colour of the shape in an image file; return the raw response."""
    body = {"model": "fovea-qwen", "messages": ask("what color is the shape?", data), "max_tokens": 8, "temperature": 0}
    return HTTP.post(f"{qwen.url}/chat/completions", json=body, timeout=60)


def heic(picture: Image.Image) -> bytes:
    """Return a picture as a HEIC file."""
    pillow_heif = pytest.importorskip("pillow_heif", reason="HEIC needs the package pillow-heif")
    pillow_heif.register_heif_opener()
    return encode(picture, "HEIF", quality=95)


def animated() -> bytes:
    """Return a GIF whose first frame is red and whose second is blue."""
    return encode(draw("circle", "red"), "GIF", save_all=True, append_images=[draw("circle", "blue")], duration=100)


def sideways() -> bytes:
    """Return a JPEG of a triangle, stored turned by 90 degrees with the EXIF note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(draw("triangle", "red").transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)


def gray16() -> bytes:
    """Return a 16-bit gray PNG with a black shape."""
    values = np.asarray(draw("circle", "black", "L")).astype(np.uint16) * 257
    return encode(Image.fromarray(values), "PNG")


def transparent() -> bytes:
    """Return a PNG whose surroundings are transparent (and green underneath)."""
    picture = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    picture.paste(Image.new("RGBA", (32, 32), (255, 0, 0, 255)), (16, 16))
    return encode(picture, "PNG")


GOOD = {
    "PNG": lambda: encode(draw()),
    "JPEG": lambda: encode(draw(), "JPEG", quality=90),
    "JPEG, CMYK": lambda: encode(draw(mode="CMYK"), "JPEG", quality=95),
    "WebP": lambda: encode(draw(), "WEBP", lossless=True),
    "GIF": lambda: encode(draw(), "GIF"),
    "GIF, animated": animated,
    "BMP": lambda: encode(draw(), "BMP"),
    "TIFF": lambda: encode(draw(), "TIFF", compression="tiff_lzw"),
    "AVIF": lambda: encode(draw(), "AVIF", quality=95),
    "HEIC": lambda: heic(draw()),
    "PNG, palette": lambda: encode(draw().quantize(16), "PNG"),
    "PNG, transparent": transparent,
    "PNG, large": lambda: encode(draw(size=(1200, 1200))),
    "PNG, wide": lambda: encode(draw(size=(160, 96))),
    "JPEG, turned by EXIF": sideways,
}


@pytest.mark.parametrize("kind", GOOD)
def test_good_files_are_answered_truly(qwen: Running, kind: str) -> None:
    answer = color_of(qwen, GOOD[kind]())
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "red"


def test_16_bit_gray(qwen: Running) -> None:
    answer = color_of(qwen, gray16())
    assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] == "black"


def bomb() -> bytes:
    """Return a 60 kB PNG that says it is 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 60_000_000))
        + chunk(b"IEND", b"")
    )


BAD = {
    "empty": (b"", 400),
    "truncated PNG": (encode(draw())[:120], 400),
    "truncated JPEG": (encode(draw(size=(300, 300)), "JPEG")[:900], 400),
    "text": (b"this is no image", 400),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>', 400),
    "PDF": (b"%PDF-1.7\n%...", 400),
    "decompression bomb": (bomb(), 413),
    "too many pixels": (encode(Image.new("1", (3000, 2000)), "PNG"), 413),
    "needle": (encode(Image.new("RGB", (2000, 1)), "PNG"), 400),
    "too many bytes": (b"\x89PNG\r\n\x1a\n" + bytes(7 * 2**20), 413),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_are_refused_and_named(qwen: Running, kind: str) -> None:
    data, status = BAD[kind]
    answer = color_of(qwen, data)
    error = answer.json()["error"]
    assert answer.status_code == status, answer.text
    assert error["type"] == "invalid_request_error" and error["message"]
    if kind != "too many bytes":  # there the whole body is too large
        assert error["param"] == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,@@@@",
        "data:image/png;base64,iVBORw0KGgo",
        "data:text/plain;base64,aGVsbG8=",
        "data:image/png,raw",
        "http://127.0.0.1:1/x.png",
        "https://example.com/x.png",
        "file:///etc/passwd",
        "ftp://example.com/x.png",
        "",
        "\u0000",
    ],
)
def test_bad_urls_are_refused_and_the_right_part_is_named(qwen: Running, url: str) -> None:
    good = {"type": "image_url", "image_url": {"url": data_uri(encode(draw()))}}
    bad = {"type": "image_url", "image_url": {"url": url}}
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "user", "content": [good, {"type": "text", "text": "?"}, bad]},
    ]
    answer = HTTP.post(f"{qwen.url}/chat/completions", json={"model": "fovea-qwen", "messages": messages}, timeout=60)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages[1].content[2].image_url.url"


def test_one_image_too_many(qwen: Running) -> None:
    body = {"model": "fovea-qwen", "messages": ask("?", *[encode(draw())] * 5)}
    answer = HTTP.post(f"{qwen.url}/chat/completions", json=body, timeout=60)
    assert answer.status_code == 400 and "5 images" in answer.json()["error"]["message"]


def test_body_too_large(qwen: Running) -> None:
    answer = HTTP.post(f"{qwen.url}/chat/completions", content=b"x" * (9 * 2**20), timeout=60)
    assert answer.status_code == 413


def test_the_declared_type_does_not_matter(qwen: Running) -> None:
    url = "data:image/jpeg;base64," + base64.b64encode(encode(draw("circle", "blue"), "PNG")).decode()
    part = {"type": "image_url", "image_url": {"url": url}}
    messages = [{"role": "user", "content": [part, {"type": "text", "text": "what color is the shape?"}]}]
    body = {"model": "fovea-qwen", "messages": messages, "max_tokens": 8, "temperature": 0}
    answer = HTTP.post(f"{qwen.url}/chat/completions", json=body, timeout=60)
    assert answer.json()["choices"][0]["message"]["content"] == "blue"
