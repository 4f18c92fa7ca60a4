"""Screening of one image: every format works, everything else is refused with a 4xx that says why."""

from __future__ import annotations

import io
import resource
import struct
import tracemalloc
import zlib
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageOps

from serving.errors import ApiError
from serving.media import Picture, decode, open_header
from serving.stack import Media
from tests.serving.pictures import LOSSLESS, LOSSY, bombs, encode, files, png, scene, tiff

# in service one filter, set when serving.media is imported, silences these; pytest has filters of its own
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

LIMITS = Media()
WHERE = "messages[0].content[0].image_url.url"


def screened(data: bytes, limits: Media = LIMITS) -> Picture:
    return decode(open_header(data, limits, WHERE), len(data), WHERE)


def refused(data: bytes, limits: Media = LIMITS) -> ApiError:
    with pytest.raises(ApiError) as caught:
        screened(data, limits)
    error = caught.value
    assert 400 <= error.status < 500 and error.param == WHERE and error.message.endswith(".")
    return error


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture, dtype=np.int16)


@cache
def valid() -> dict[str, bytes]:
    return files()


@pytest.mark.parametrize("form", [*LOSSLESS, *LOSSY])
def test_every_format_shows_the_same_picture(form: str) -> None:
    picture = screened(valid()[form])
    assert picture.image.mode == "RGB" and picture.image.size == (picture.width, picture.height) == (40, 24)
    assert picture.format == form and picture.encoded_bytes == len(valid()[form])
    assert picture.image.info == {}
    difference = np.abs(pixels(picture.image) - pixels(scene()))
    assert difference.max() == 0 if form in LOSSLESS else difference.mean() < 12  # chroma subsampling at the edges


def test_the_digest_is_of_the_pixels_not_of_the_file() -> None:
    digests = {screened(valid()[form]).digest for form in LOSSLESS}
    assert len(digests) == 1
    assert screened(encode(scene(), "PNG", compress_level=0)).digest in digests
    other = scene()
    other.putpixel((0, 0), (254, 0, 0))
    assert screened(encode(other)).digest not in digests
    flat = Image.new("RGB", (8, 2))
    assert (
        screened(encode(flat)).digest != screened(encode(flat.resize((2, 8)))).digest
    )  # the same bytes, another shape


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_an_animated_image_is_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (32, 32), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encode(frames[0], form, save_all=True, append_images=frames[1:])
    with Image.open(io.BytesIO(data)) as check:
        assert getattr(check, "n_frames", 1) == 3
    red, green, blue = screened(data).image.resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = scene((64, 32))
    options = {**LOSSLESS, **LOSSY}[form]
    # a HEIC turns by a property of the container; its writer sets it only for metadata given as bytes
    data = encode(stored, form, exif=exif.tobytes() if form == "HEIF" else exif, **options)
    expected_source = stored.copy()
    expected_source.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(expected_source)
    picture = screened(data)
    assert picture.image.size == expected.size
    assert np.abs(pixels(picture.image) - pixels(expected)).mean() < 12
    assert picture.image.getexif().get(0x0112, 1) == 1


def test_damaged_metadata_does_not_refuse_a_good_picture() -> None:
    data = encode(scene(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert screened(data).width == 40


# what the pixels become


def test_16_bit_gray_keeps_its_upper_bits() -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)
    for form in ("PNG", "TIFF"):
        picture = screened(encode(Image.fromarray(ramp), form))
        assert np.abs(pixels(picture.image)[..., 0].ravel() - np.arange(256)).max() <= 1
    dark = Image.fromarray(np.full((4, 4), 200, np.uint16))
    assert screened(encode(dark)).image.getpixel((0, 0)) == (1, 1, 1)  # 200 of 65535 is almost black


def test_big_endian_16_bit_gray() -> None:
    rows = np.array([[0, 65535], [32768, 257]], dtype=">u2").tobytes()
    tags = [
        (256, 4, 2),
        (257, 4, 2),
        (258, 3, 16),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 1000),
        (277, 3, 1),
        (278, 4, 2),
        (279, 4, 8),
    ]
    little = tiff(tags, np.frombuffer(rows, ">u2").astype("<u2").tobytes())
    assert pixels(screened(little).image)[..., 0].tolist() == [[0, 255], [128, 1]]
    gray = b"".join(b"\0" + rows[at : at + 4] for at in (0, 4))
    assert pixels(screened(png(2, 2, gray, depth=16, color=0)).image)[..., 0].tolist() == [[0, 255], [128, 1]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0, 255]], [0, 255]),  # 8-bit values in a 32-bit image
        ([[0, 65535]], [0, 255]),  # 16-bit values
        ([[-1000, 1000]], [0, 255]),  # anything else: its own range
        ([[0, 2_000_000_000]], [0, 255]),
        ([[7, 7]], [7, 7]),
    ],
)
def test_32_bit_gray(values: list[list[int]], expected: list[int]) -> None:
    picture = screened(encode(Image.fromarray(np.array(values, np.int32)), "TIFF"))
    assert pixels(picture.image)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 1.0]], [0, 255]),
        ([[-5.0, 5.0]], [0, 255]),
        ([[np.nan, 1.0]], [0, 255]),
        ([[np.inf, 1.0]], [0, 255]),
        ([[3.0, 3.0]], [0, 0]),
        ([[3.4e38, -3.4e38]], [255, 0]),
    ],
)
def test_float_gray(values: list[list[float]], expected: list[int]) -> None:
    picture = screened(encode(Image.fromarray(np.array(values, np.float32)), "TIFF"))
    assert pixels(picture.image)[0, :, 0].tolist() == expected


def test_cmyk_looks_as_in_rgb() -> None:
    for form, options in (("JPEG", {"quality": 95}), ("TIFF", {})):
        picture = screened(encode(scene().convert("CMYK"), form, **options))
        assert np.abs(pixels(picture.image) - pixels(scene())).mean() < 12


@pytest.mark.parametrize("mode", ["1", "L", "P", "YCbCr"])
def test_other_modes(mode: str) -> None:
    form = "TIFF" if mode == "YCbCr" else "PNG"
    picture = screened(encode(scene().convert(mode), form))
    assert np.abs(pixels(picture.image) - pixels(scene().convert(mode).convert("RGB"))).mean() < 3


def test_transparency_lies_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    for form, options in (
        ("PNG", {}),
        ("WEBP", {"lossless": True, "exact": True}),
        ("TIFF", {}),
        ("AVIF", {"quality": 100}),
    ):
        assert screened(encode(clear, form, **options)).image.getpixel((1, 1)) == (255, 255, 255), form
        red, green, blue = screened(encode(half, form, **options)).image.getpixel((1, 1))  # type: ignore[misc]
        assert red > 250 and abs(green - 127) < 6 and abs(blue - 127) < 6, form
    assert screened(encode(Image.new("LA", (4, 4), (0, 0)))).image.getpixel((0, 0)) == (255, 255, 255)


def test_palette_and_colour_key_transparency_lie_on_white() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.putpixel((0, 0), 1)
    for form in ("PNG", "GIF"):
        picture = screened(encode(palette, form, transparency=0)).image
        assert picture.getpixel((1, 1)) == (255, 255, 255) and picture.getpixel((0, 0)) == (255, 0, 0), form
    several = screened(encode(palette, "PNG", transparency=bytes([0, 255]))).image
    assert several.getpixel((1, 1)) == (255, 255, 255) and several.getpixel((0, 0)) == (255, 0, 0)
    key = screened(encode(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))).image
    assert key.getpixel((0, 0)) == (255, 255, 255)
    gray = screened(encode(Image.new("L", (4, 4), 9), "PNG", transparency=9)).image
    assert gray.getpixel((0, 0)) == (255, 255, 255)


# what is refused


@pytest.mark.parametrize("form", [*LOSSLESS, *LOSSY])
def test_truncated_at_any_place(form: str) -> None:
    data = valid()[form]
    outcomes = set()
    for end in sorted({0, 1, 4, 8, 12, 16, 33, *range(len(data) // 12, len(data), max(1, len(data) // 12))}):
        try:
            screened(data[:end])
            outcomes.add("picture")  # only a trailer is missing
        except ApiError as error:
            assert error.status == 400, error.message
            outcomes.add("refused")
    assert "refused" in outcomes
    assert refused(data[: len(data) // 2]).kind == "bad_image"


@pytest.mark.parametrize("name", list(bombs()))
def test_bombs_are_refused_by_their_header_in_little_memory(name: str) -> None:
    data = bombs()[name]
    assert len(data) < 200_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    with pytest.raises(ApiError) as caught:
        open_header(data, LIMITS, WHERE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.status == 413 and caught.value.kind == "too_many_pixels", caught.value.message
    assert peak < 4 * 2**20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_compressed_text_in_a_png_stays_small() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packed = zlib.compress(bytes(50 * 2**20), 9)
    data = encode(scene())
    bomb = data[:33] + b"".join(chunk(b"zTXt", b"k%d\0\0" % n + packed) for n in range(5)) + data[33:]
    tracemalloc.start()
    try:
        screened(bomb)
    except ApiError as error:
        assert error.status == 400
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 2**20


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes"),
        (b"hello", "not a readable image"),
        (b"%PDF-1.4", "not a readable image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"<?xml version='1.0'?>\n<!-- x -->\n<svg/>", "SVG"),
        (b"\xef\xbb\xbf<svg/>", "SVG"),
        (b"PK\x03\x04", "not a readable image"),
        (b"RIFF\x10\0\0\0WAVEfmt ", "not a readable image"),
        (b"\x00\x00\x00\x18ftypmp42" + bytes(40), "image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not a readable image"),  # Pillow would start Ghostscript
        (b"P6 4 4 255\n" + bytes(48), "not a readable image"),  # a type that Pillow knows and we do not serve
    ],
)
def test_what_is_not_an_image(data: bytes, says: str) -> None:
    assert says in refused(data).message


def test_zero_sized() -> None:
    assert refused(png(0, 10)).status == 400
    assert refused(png(10, 0)).status == 400
    gif = bytearray(valid()["GIF"])
    gif[6:10] = bytes(4)
    at = gif.index(b"\x2c")
    gif[at + 5 : at + 9] = bytes(4)
    assert refused(bytes(gif)).status == 400


def test_limits_are_named() -> None:
    data = encode(scene())
    assert "960 pixels; the limit is 959" in refused(data, Media(image_pixels=959)).message
    assert screened(data, Media(image_pixels=960)).width == 40
    assert refused(data, Media(image_bytes=len(data) - 1)).kind == "image_too_large"
    assert screened(data, Media(image_bytes=len(data))).width == 40
    assert "1.5 times" in refused(data, Media(aspect_ratio=1.5)).message
    long = encode(Image.new("RGB", (404, 4)))
    assert refused(long).status == 400 and screened(long, Media(aspect_ratio=101)).width == 404


def test_pixel_limit_at_the_first_pixel_too_many() -> None:
    assert refused(png(40_000_001, 1), Media(aspect_ratio=1e9)).status == 413


def test_large_16_bit_gray_does_not_multiply_its_memory() -> None:
    data = encode(Image.fromarray(np.zeros((2000, 2000), np.uint16)), "PNG")
    tracemalloc.start()
    screened(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2000 * 2000  # less than one copy of 8-byte numbers


def test_a_decoder_that_runs_out_of_memory_is_the_clients_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    image = open_header(encode(scene()), LIMITS, WHERE)

    def fails() -> None:
        raise MemoryError

    monkeypatch.setattr(image, "load", fails)
    with pytest.raises(ApiError) as caught:
        decode(image, 1, WHERE)
    assert caught.value.status == 413
