"""What goes wrong with photographs: blur, rotation, darkness, low resolution, dirt, compression.  All seeded."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from functools import cache

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageFont

Damage = Callable[[Image.Image, random.Random], Image.Image]


@cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font (ASCII only); it is parsed anew by every `load_default`."""
    return ImageFont.load_default(size)


def blur(image: Image.Image, rng: random.Random) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(1.0, 1.8)))


def rotation(image: Image.Image, rng: random.Random) -> Image.Image:
    angle = rng.choice((-1, 1)) * rng.uniform(4, 12)
    return image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=(90, 80, 70))


def low_light(image: Image.Image, rng: random.Random) -> Image.Image:
    dark = ImageEnhance.Brightness(image).enhance(rng.uniform(0.25, 0.4))
    noise = _noise(image.size, rng)
    return Image.blend(dark, noise, 0.12)


def _noise(size: tuple[int, int], rng: random.Random) -> Image.Image:
    # not Image.effect_noise: it cannot be seeded
    small = Image.frombytes(
        "L", (size[0] // 2 + 1, size[1] // 2 + 1), rng.randbytes((size[0] // 2 + 1) * (size[1] // 2 + 1))
    )
    return small.resize(size, Image.Resampling.NEAREST).convert("RGB")


def low_resolution(image: Image.Image, rng: random.Random) -> Image.Image:
    factor = rng.uniform(0.45, 0.6)
    small = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BILINEAR)


def jpeg(image: Image.Image, rng: random.Random) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=rng.randint(12, 25))
    with Image.open(buffer) as damaged:
        return damaged.convert("RGB")


def stain(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Cover `box` with an opaque stain: what was there cannot be read any more."""
    out = image.copy()
    draw = ImageDraw.Draw(out)
    left, top, right, bottom = box
    draw.rounded_rectangle((left - 6, top - 4, right + 6, bottom + 4), radius=8, fill=(120, 86, 50))
    return out


# Occlusion and wrong pages change the right answer, so each set applies them itself.
DAMAGE: dict[str, Damage] = {
    "blur": blur,
    "rotation": rotation,
    "low_light": low_light,
    "low_resolution": low_resolution,
    "jpeg": jpeg,
}
