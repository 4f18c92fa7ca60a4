"""Image files for the tests, made here: every format, and damaged and hostile ones."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pillow_heif
from PIL import Image, ImageDraw

pillow_heif.register_heif_opener()


def scene(size: tuple[int, int] = (40, 24)) -> Image.Image:
    """An RGB picture that looks different in every orientation: red left, blue below, green dot at the upper right."""
    picture = Image.new("RGB", size, (240, 240, 240))
    pen = ImageDraw.Draw(picture)
    width, height = size
    pen.rectangle((0, 0, width // 4, height - 1), fill=(255, 0, 0))
    pen.rectangle((0, height * 3 // 4, width - 1, height - 1), fill=(0, 0, 255))
    pen.rectangle((width * 3 // 4, 0, width - 1, height // 4), fill=(0, 255, 0))
    return picture


def encode(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "BMP": {},
    "TIFF": {},
    "WEBP": {"lossless": True},
    "GIF": {},  # the scene has fewer than 256 colours
}
LOSSY: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95},
    "AVIF": {"quality": 95},
    "HEIF": {"quality": 95},
}


def files() -> dict[str, bytes]:
    """The scene in every format that is served."""
    return {form: encode(scene(), form, **options) for form, options in {**LOSSLESS, **LOSSY}.items()}


def png(width: int, height: int, data: bytes = b"", depth: int = 8, color: int = 2) -> bytes:
    """A PNG whose header says what it is told to, with this content."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff(tags: list[tuple[int, int, int]], data: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory; `tags` are (tag, type 3 or 4, value); data starts at byte 1000."""
    entries = b"".join(
        struct.pack("<HHI", tag, kind, 1) + struct.pack("<I" if kind == 4 else "<Hxx", value)
        for tag, kind, value in sorted(tags)
    )
    head = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return head.ljust(1000, b"\0") + data


def bombs() -> dict[str, bytes]:
    """Small files whose headers claim far more pixels than they hold (or should)."""
    big = 30_000
    webp = bytearray(
        encode(
            Image.new("RGBA", (8, 8)), "WEBP", save_all=True, append_images=[Image.new("RGBA", (8, 8), (9, 9, 9, 9))]
        )
    )
    assert webp[12:16] == b"VP8X"
    webp[24:27] = webp[27:30] = (12_999).to_bytes(3, "little")
    gif = bytearray(encode(Image.new("P", (8, 8)), "GIF"))
    gif[6:10] = struct.pack("<HH", big, big)
    frame = bytearray(encode(Image.new("P", (8, 8)), "GIF"))  # a small screen, a frame far beyond it
    at = frame.index(b"\x2c")
    frame[at + 5 : at + 9] = struct.pack("<HH", big, big)
    bmp = bytearray(encode(Image.new("RGB", (8, 8)), "BMP"))
    bmp[18:26] = struct.pack("<ii", big, big)
    jpeg = bytearray(encode(Image.new("RGB", (8, 8)), "JPEG"))
    sof = jpeg.index(b"\xff\xc0")
    jpeg[sof + 5 : sof + 9] = struct.pack(">HH", big, big)
    basic = [(258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    strip = [(273, 4, 1000), (278, 4, big), (279, 4, 100)]
    tile = [(324, 4, 1000), (325, 4, 60_000)]
    return {
        "PNG": png(big, big, bytes(1000)),
        "PNG deflated": png(7000, 7000, bytes((7000 * 3 + 1) * 7000)),
        "TIFF": tiff([(256, 4, big), (257, 4, big), *basic, *strip], zlib.compress(bytes(1000))),
        "TIFF tile": tiff(
            [(256, 4, 64), (257, 4, 64), *basic, (322, 4, big), (323, 4, big), *tile], zlib.compress(bytes(1000))
        ),
        "WEBP": bytes(webp),
        "GIF": bytes(gif),
        "GIF frame": bytes(frame),
        "BMP": bytes(bmp),
        "JPEG": bytes(jpeg),
    }
