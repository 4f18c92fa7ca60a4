"""Images from data URIs, and whatever bytes come: a picture or a 4xx."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.errors import ApiError
from serving.media import decode_data_uri
from serving.stack import Media
from tests.serving.pictures import encode, scene, tiff
from tests.serving.test_media import LIMITS, WHERE, screened, valid

# data URIs


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    "kind", ["image/png", "IMAGE/PNG", "image/jpeg", "image/png;charset=utf-8", "", "application/octet-stream"]
)
def test_declared_types_that_pass(kind: str) -> None:
    data = encode(scene())
    assert decode_data_uri(uri(data, kind), LIMITS, WHERE) == data


def test_wrongly_declared_image_is_judged_by_its_content() -> None:
    data = decode_data_uri(uri(valid()["BMP"], "image/jpeg"), LIMITS, WHERE)
    assert screened(data).format == "BMP"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("data:image/png;base64,abc", "bad_base64"),  # padding
        ("data:image/png;base64,ab\ncd", "bad_base64"),
        ("data:image/png;base64,ab-_", "bad_base64"),
        ("data:image/png;base64,ab=d", "bad_base64"),
        ("data:image/png;base64,äöüß", "bad_base64"),
        ("data:image/png;base64,\ud800aaa", "bad_base64"),
        ("data:image/png,abcd", "bad_image"),
        ("data:image/png;base64", "bad_image"),
        ("data:,", "bad_image"),
        ("data:", "bad_image"),
        ("data:text/html;base64,YWJj", "bad_image"),
        ("data:image/svg+xml;base64,PHN2Zy8+", "bad_image"),
    ],
)
def test_wrong_data_uris(text: str, kind: str) -> None:
    with pytest.raises(ApiError) as caught:
        decode_data_uri(text, LIMITS, WHERE)
    assert (caught.value.status, caught.value.kind, caught.value.param) == (400, kind, WHERE)
    assert caught.value.body()


def test_size_is_judged_before_decoding() -> None:
    limits = Media(image_bytes=300)
    assert decode_data_uri(uri(bytes(300)), limits, WHERE) == bytes(300)
    with pytest.raises(ApiError) as caught:
        decode_data_uri(uri(bytes(310)), limits, WHERE)
    assert caught.value.status == 413


# whatever comes: a picture or a 4xx

SMALL = Media(image_pixels=2_000_000)


def survive(data: bytes) -> None:
    try:
        picture = screened(data, SMALL)
    except ApiError as error:
        assert 400 <= error.status < 500
        assert error.body().startswith(b'{"error"')
        return
    assert picture.image.mode == "RGB" and picture.width * picture.height <= SMALL.image_pixels
    assert len(picture.image.tobytes()) == picture.width * picture.height * 3


@given(st.binary(max_size=400))
def test_random_bytes(data: bytes) -> None:
    survive(data)


MAGIC = [
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",
    b"GIF89a",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"RIFF\0\0\0\0WEBPVP8 ",
    b"II+\0",
    b"\0\0\0\x1cftypavif",
]


@given(st.sampled_from(MAGIC), st.binary(max_size=300))
def test_random_bytes_behind_a_magic_number(magic: bytes, data: bytes) -> None:
    survive(magic + data)


@st.composite
def mutated(draw: Any) -> bytes:
    data = bytearray(valid()[draw(st.sampled_from(sorted(valid())))])
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, min(len(data) - 1, draw(st.sampled_from([40, 200, 10**6])))))
        how = draw(st.sampled_from(["set", "cut", "double", "huge"]))
        if how == "set":
            data[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 20))]
        elif how == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 20))]
        else:
            data[at : at + 4] = draw(
                st.sampled_from([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4), b"\0\0\xff\xff"])
            )
        if not data:
            return b""
    return bytes(data)


@settings(max_examples=600, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(mutated())
def test_mutated_files(data: bytes) -> None:
    survive(data)


TAGS = (254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 338, 339)
ENTRIES = st.tuples(st.sampled_from(TAGS), st.sampled_from([3, 4]), st.integers(0, 40) | st.integers(0, 65535))


@settings(max_examples=300, deadline=None)
@given(st.lists(ENTRIES, max_size=16, unique_by=lambda tag: tag[0]), st.binary(max_size=200))
def test_random_tiff_directories(tags: list[tuple[int, int, int]], data: bytes) -> None:
    survive(tiff(tags, data))
