"""Screening of one image: from untrusted bytes to a clean RGB picture, or an error that says what is wrong.

The header is judged before any pixel is decoded (type, size, pixel count, side ratio), decoding happens once, and what
leaves is always 8-bit RGB, upright (EXIF orientation applied), without metadata, with transparency on white.  The
digest is over the decoded pixels: the same picture in another file format has the same digest.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pybase64
from PIL import ExifTags, Image, UnidentifiedImageError

from serving.errors import ApiError

if TYPE_CHECKING:
    from serving.stack import Media

Image.init()
# Pillow warns about large pictures (the pixel limit below is ours) and about damaged metadata (which is dropped). A
# filter, once: `warnings.catch_warnings` changes global state and must not be used from several threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
READABLE = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or HEIC"
SMALL_PIXELS = 256 * 256
"""Up to this size an image is decoded at once; a thread hop would cost more than it saves."""
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""
TILE_TAGS = (322, 323)  # TIFF: TileWidth, TileLength


@dataclass(slots=True)
class Picture:
    """A screened image: `image` is 8-bit RGB and upright; `digest` is BLAKE2b over size and pixels."""

    image: Image.Image
    digest: str
    format: str
    width: int
    height: int
    encoded_bytes: int


def decode_data_uri(uri: str, limits: Media, param: str) -> bytes:
    """Return the bytes of a base64 data URI.

    Raises:
        ApiError: 400, not a base64 data URI of an image; 413, larger than `limits.image_bytes`.
    """
    head, comma, payload = uri.partition(",")
    if not comma or not head.casefold().endswith(";base64"):
        raise ApiError(
            400, "An image must be a base64 data URI (data:image/png;base64,...).", kind="bad_image", param=param
        )
    declared = head[5:].split(";")[0].casefold()
    if declared == "image/svg+xml":
        raise _svg(param)
    if declared and not declared.startswith("image/") and declared != "application/octet-stream":
        raise ApiError(
            400, f"The data URI says {declared[:60]!r}, which is not an image type.", kind="bad_image", param=param
        )
    if len(payload) > limits.image_bytes * 4 // 3 + 4:
        raise _too_large(len(payload) * 3 // 4, limits, param)
    try:
        return pybase64.b64decode(payload, validate=True)
    except ValueError as error:
        raise ApiError(400, f"The image's base64 is wrong: {error}.", kind="bad_base64", param=param) from error


def open_header(data: bytes, limits: Media, param: str) -> Image.Image:
    """Identify an image by its content and judge it by its header; no pixel is decoded.

    Raises:
        ApiError: 400, empty, not a readable image type, zero-sized or too long for its width;
            413, too many bytes or pixels.
    """
    if len(data) > limits.image_bytes:
        raise _too_large(len(data), limits, param)
    if not data:
        raise ApiError(400, "The image is empty (0 bytes).", kind="bad_image", param=param)
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<svg", b"<?xml", b"<!doctype")) and b"<svg" in data[:4096].lower():
        raise _svg(param)
    if data[4:8] == b"ftyp":
        _register_heif()
    try:
        image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        raise ApiError(400, f"The data is not a readable image ({READABLE}).", kind="bad_image", param=param) from error
    except Image.DecompressionBombError as error:
        raise ApiError(413, f"The image has too many pixels ({error}).", kind="too_many_pixels", param=param) from error
    except Exception as error:  # Pillow's plugins raise SyntaxError, struct.error, ValueError, ... on damaged headers
        raise _damaged(error, param) from error
    width, height = image.size
    if width < 1 or height < 1:
        raise ApiError(400, f"The image is {width}x{height} pixels.", kind="bad_image", param=param)
    if width * height > limits.image_pixels:
        raise _too_many_pixels(f"has {width}x{height} = {width * height} pixels", limits, param)
    if image.format == "TIFF" and (tile := _tile_pixels(image)) > limits.image_pixels:
        raise _too_many_pixels(f"has tiles of {tile} pixels", limits, param)
    if max(width, height) > limits.aspect_ratio * min(width, height):
        raise ApiError(
            400,
            f"The image is {width}x{height} pixels; one side may be at most {limits.aspect_ratio:g} times the other.",
            kind="bad_image",
            param=param,
        )
    return image


def decode(image: Image.Image, encoded_bytes: int, param: str) -> Picture:
    """Decode an image that `open_header` accepted and return it as a clean picture.

    Raises:
        ApiError: 400, the pixel data is truncated or damaged; 413, it takes more memory than there is.
    """
    form = image.format or "?"
    try:
        image.load()  # the first frame of an animated image
        turn = TURNS.get(_orientation(image))
        rgb = _to_rgb(image if turn is None else image.transpose(turn))
    except MemoryError as error:
        raise ApiError(
            413, "The image takes too much memory to decode.", kind="too_many_pixels", param=param
        ) from error
    except Exception as error:  # as above: each plugin has its own exceptions for damaged data
        raise _damaged(error, param) from error
    digest = hashlib.blake2b(f"{rgb.width}x{rgb.height}:".encode(), digest_size=16)
    digest.update(rgb.tobytes())
    return Picture(rgb, digest.hexdigest(), form, rgb.width, rgb.height, encoded_bytes)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none or the metadata cannot be read (the picture is fine then)."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata raises whatever the parser tripped over
        return 1
    return value if isinstance(value, int) else 1


def _tile_pixels(image: Image.Image) -> int:
    """Return the pixels of one TIFF tile, as its header says; libtiff allocates a whole one."""
    sizes = [getattr(image, "tag_v2", {}).get(tag, 0) for tag in TILE_TAGS]
    width, length = (size if isinstance(size, int) else 0 for size in sizes)
    return width * length


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an 8-bit RGB copy without metadata; transparency goes on white, deep gray is scaled to 8 bits."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or (
        image.mode in ("1", "L", "RGB", "P") and "transparency" in image.info
    ):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(image)
        image = white
    clean = image.copy() if image.mode == "RGB" else image.convert("RGB")
    clean.info = {}
    return clean


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit (I;16*), 32-bit (I) or float (F) gray to 8 bits.

    16-bit gray by the 16-bit range; 32-bit gray by the 8- or 16-bit range where it fits; float by 0..1 where it fits;
    else by the picture's own range.  Not-a-number and infinite values count as 0.
    """
    import numpy as np

    values = np.asarray(image)
    if values.dtype.kind == "f":
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    base, scale = low, 255 / (high - low) if high > low else 1.0
    if image.mode.startswith("I;16") or (image.mode == "I" and low >= 0 and 255 < high <= 65535):
        base, scale = 0.0, 1 / 257
    elif image.mode == "I" and low >= 0 and high <= 255:
        base, scale = 0.0, 1.0
    elif image.mode == "F" and low >= 0 and high <= 1:
        base, scale = 0.0, 255.0
    gray = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), 256):  # in bands, so that the 8-byte numbers never are a whole picture
        band = (values[top : top + 256].astype(np.float64) - base) * scale
        gray[top : top + 256] = np.clip(band.round(), 0, 255)
    return Image.fromarray(gray)


def _register_heif() -> None:
    """Let Pillow read HEIC where `pillow-heif` is installed (AVIF is Pillow's own)."""
    if "HEIF" in Image.OPEN:
        return
    try:
        import pillow_heif
    except ImportError:
        return  # HEIC then gets the same clear 400 as any unreadable type
    pillow_heif.register_heif_opener()


def _svg(param: str) -> ApiError:
    return ApiError(
        400, f"SVG is a document, not a picture; render it first and send {READABLE}.", kind="bad_image", param=param
    )


def _too_large(size: int, limits: Media, param: str) -> ApiError:
    return ApiError(
        413, f"The image has {size} bytes; the limit is {limits.image_bytes}.", kind="image_too_large", param=param
    )


def _too_many_pixels(what: str, limits: Media, param: str) -> ApiError:
    return ApiError(
        413,
        f"The image {what}; the limit is {limits.image_pixels}. Send a smaller one.",
        kind="too_many_pixels",
        param=param,
    )


def _damaged(error: Exception, param: str) -> ApiError:
    text = " ".join(str(error).split())[:120] or type(error).__name__
    return ApiError(400, f"The image is truncated or damaged: {text}.", kind="bad_image", param=param)
