"""Synthetic pictures, sounds and videos: deterministic, and about as compressible as real ones."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

from loadtest.apis import Part
from loadtest.workloads.base import option_error

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE_TYPES = {"jpeg": ("JPEG", "image/jpeg"), "png": ("PNG", "image/png"), "webp": ("WEBP", "image/webp")}
AUDIO_TYPES = {"wav": ("WAV", "audio/wav"), "flac": ("FLAC", "audio/flac"), "mp3": ("MP3", "audio/mpeg")}
LARGEST = 16384


def picture(rng: np.random.Generator, width: int, height: int) -> NDArray[np.uint8]:
    """Return an RGB picture, shape (height, width, 3): soft colours, some sharp edges, a little noise."""
    from PIL import Image

    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    soft = Image.fromarray(coarse, "RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.array(soft, dtype=np.int16)
    for _ in range(4):
        left, top = int(rng.integers(0, width)), int(rng.integers(0, height))
        right, bottom = left + int(rng.integers(1, width // 2 + 2)), top + int(rng.integers(1, height // 2 + 2))
        pixels[top:bottom, left:right] = rng.integers(0, 256, 3)
    pixels += rng.integers(-4, 5, (height, width, 1), dtype=np.int16)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def encode(pixels: NDArray[np.uint8], kind: str) -> Part:
    """Return a picture as an image part in the format `kind`."""
    from PIL import Image

    name, media_type = IMAGE_TYPES[kind]
    buffer = io.BytesIO()
    options = {"quality": 85} if kind != "png" else {"compress_level": 1}
    Image.fromarray(pixels, "RGB").save(buffer, name, **options)
    return Part("image", data=buffer.getvalue(), media_type=media_type)


def sound(rng: np.random.Generator, seconds: float, kind: str, rate: int = 16000) -> Part:
    """Return a mono sound of chords with noise as an audio part.

    Raises:
        UsageError: the sound library cannot write this format.
    """
    import soundfile

    name, media_type = AUDIO_TYPES[kind]
    if name not in soundfile.available_formats():
        raise option_error("formats", kind, "this build of libsndfile cannot write it")
    at = np.arange(int(seconds * rate)) / rate
    wave = sum(np.sin(2 * np.pi * f * at) for f in rng.uniform(120, 900, 3)) * 0.2
    wave = np.asarray(wave) * np.repeat(rng.uniform(0.2, 1, len(at) // 1600 + 1), 1600)[: len(at)]
    wave += rng.normal(0, 0.005, len(at))
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.astype(np.float32), rate, format=name)
    return Part("audio", data=buffer.getvalue(), media_type=media_type)


def video(rng: np.random.Generator, frames: int, width: int, height: int) -> list[Part]:
    """Return the frames of a slowly moving scene, as JPEG images."""
    wide = picture(rng, width + 4 * frames, height)
    return [encode(wide[:, 4 * i : 4 * i + width], "jpeg") for i in range(frames)]


def as_video(frames: list[Part]) -> Part:
    """Return frames as one video part, in the form vLLM takes: a data URI of comma-separated JPEG frames."""
    joined = ",".join(base64.b64encode(f.data).decode("ascii") for f in frames)
    return Part("video", text=f"data:video/jpeg;base64,{joined}", media_type="video/jpeg")


def sizes_of(text: str) -> list[tuple[int, int]]:
    """Return sizes given as `640x480,1024x1024`.

    Raises:
        UsageError: one cannot be read, or is out of range.
    """
    sizes = []
    for part in str(text).split(","):
        width, _, height = part.strip().partition("x")
        if not (width.isdigit() and height.isdigit() and 0 < int(width) <= LARGEST and 0 < int(height) <= LARGEST):
            raise option_error("sizes", text, f"must be WIDTHxHEIGHT, each at most {LARGEST}, separated by commas")
        sizes.append((int(width), int(height)))
    return sizes


def formats_of(text: str, known: dict[str, tuple[str, str]]) -> list[str]:
    """Return formats given as `jpeg,png`.

    Raises:
        UsageError: one is not known.
    """
    names = [part.strip().lower() for part in str(text).split(",")]
    for name in names:
        if name not in known:
            raise option_error("formats", text, f"unknown format {name!r}; use {', '.join(known)}")
    return names
