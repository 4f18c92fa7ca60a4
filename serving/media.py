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
from PIL import Image, ImageOps, UnidentifiedImageError

from serving.errors import ApiError

if TYPE_CHECKING:
    from serving.stack import Media

Image.init()
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
READABLE = "PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF or HEIC"
SMALL_PIXELS = 256 * 256
"""Up to this size an image is decoded at once; a thread hop would cost more than it saves."""


@dataclass(slots=True)
class Picture:
    """A screened image: `image` is 8-bit RGB and upright; `digest` is BLAKE2b over mode, size and pixels."""

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
        raise ApiError(400, "An image must be a base64 data URI (data:image/png;base64,...).", kind="bad_image", param=param)
    declared = head[5:].split(";")[0].casefold()
    if declared == "image/svg+xml":
        raise _svg(param)
    if declared and not declared.startswith("image/") and declared != "application/octet-stream":
        raise ApiError(400, f"The data URI says {declared[:60]!r}, which is not an image type.", kind="bad_image", param=param)
    if len(payload) > limits.image_bytes * 4 // 3 + 4:
        raise _too_large(len(payload) * 3 // 4, limits, param)
    try:
        return pybase64.b64decode(payload, validate=True)
    except ValueError as error:
        raise ApiError(400, f"The image's base64 is wrong: {error}.", kind="bad_base64", param=param) from error


def open_header(data: bytes, limits: Media, param: str) -> Image.Image:
    """Identify an image by its content and judge it by its header; no pixel is decoded.

    Raises:
        ApiError: 400, empty, not a readable image type, animated beyond its first frame is fine, zero-sized or too
            long for its width; 413, too many bytes or pixels.
    """
    if len(data) > limits.image_bytes:
        raise _too_large(len(data), limits, param)
    if not data:
        raise ApiError(400, "The image is empty (0 bytes).", kind="bad_image", param=param)
    start = data[:512].lstrip().lower()
    if start.startswith((b"<svg", b"<?xml", b"<!doctype")) and b"<svg" in data[:4096].lower():
        raise _svg(param)
    if data[4:8] == b"ftyp":
        _register_heif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own bomb warning: the pixel limit below is ours
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
        raise ApiError(
            413,
            f"The image has {width}x{height} = {width * height} pixels; the limit is {limits.image_pixels}. Send a smaller one.",
            kind="too_many_pixels",
            param=param,
        )
    if max(width, height) > limits.aspect_ratio * min(width, height):
        raise ApiError(
            400, f"The image is {width}x{height} pixels; one side may be at most {limits.aspect_ratio:g} times the other.",
            kind="bad_image", param=param,
        )
    return image


def decode(image: Image.Image, encoded_bytes: int, param: str) -> Picture:
    """Decode an image that `open_header` accepted and return it as a clean picture.

    Raises:
        ApiError: 400, the pixel data is truncated or damaged.
    """
    form = image.format or "?"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()  # the first frame of an animated image
            upright = ImageOps.exif_transpose(image)
            rgb = _to_rgb(upright)
    except MemoryError:
        raise
    except Exception as error:  # as above: each plugin has its own exceptions for damaged data
        raise _damaged(error, param) from error
    digest = hashlib.blake2b(f"{rgb.width}x{rgb.height}:".encode(), digest_size=16)
    digest.update(rgb.tobytes())
    return Picture(rgb, digest.hexdigest(), form, rgb.width, rgb.height, encoded_bytes)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an 8-bit RGB copy without metadata; transparency goes on white, 16-bit gray keeps its upper 8 bits."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or (image.mode == "P" and "transparency" in image.info):
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(image)
        image = white
    if image.mode == "RGB":
        clean = image.copy()
        clean.info = {}
        return clean
    converted = image.convert("RGB")
    converted.info = {}
    return converted


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit (I;16*), 32-bit (I) or float (F) gray to 8 bits: 16-bit range where it fits, else its own range."""
    import numpy as np

    values = np.asarray(image, dtype=np.float64)
    values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535 and image.mode != "F":
        values = values / 257 if high > 255 or image.mode.startswith("I;16") else values
    elif image.mode == "F" and low >= 0 and high <= 1:
        values = values * 255
    elif high > low:
        values = (values - low) / (high - low) * 255
    return Image.fromarray(np.clip(values.round(), 0, 255).astype(np.uint8))


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
    return ApiError(400, f"SVG is a document, not a picture; render it first and send {READABLE}.", kind="bad_image", param=param)


def _too_large(size: int, limits: Media, param: str) -> ApiError:
    return ApiError(413, f"The image has {size} bytes; the limit is {limits.image_bytes}.", kind="image_too_large", param=param)


def _damaged(error: Exception, param: str) -> ApiError:
    text = " ".join(str(error).split())[:120] or type(error).__name__
    return ApiError(400, f"The image is truncated or damaged: {text}.", kind="bad_image", param=param)
