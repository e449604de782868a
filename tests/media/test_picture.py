"""Pictures of every kind, and what only claims to be one."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from llamafast.errors import InvalidMedia
from llamafast.media.picture import FORMATS, Picture, picture_size, read_picture

MOST = 1_000_000


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixel(picture: Picture, x: int, y: int) -> tuple[int, ...]:
    at = 3 * (y * picture.width + x)
    return tuple(picture.rgb[at : at + 3])


def halves(mode: str, left: Any, right: Any, size: tuple[int, int] = (64, 32)) -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, *size))
    return image


# pasting into such a picture does not work
SIXTEEN_BITS = Image.frombytes("I;16", (64, 32), struct.pack("<64H", *[10 << 8] * 32, *[200 << 8] * 32) * 32)


@pytest.mark.parametrize("kind", FORMATS)
def test_formats(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(halves("RGB", (255, 0, 0), (0, 0, 255)), kind, **options)
    picture = read_picture(data, MOST)
    assert (picture.width, picture.height) == picture_size(data, MOST) == (64, 32)
    assert len(picture.rgb) == 64 * 32 * 3
    for got, wanted in ((pixel(picture, 5, 5), (255, 0, 0)), (pixel(picture, 60, 30), (0, 0, 255))):
        assert all(abs(a - b) < 8 for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize(
    ("image", "left", "right"),
    [
        (halves("L", 10, 200), (10,) * 3, (200,) * 3),
        (halves("1", 0, 1), (0,) * 3, (255,) * 3),
        (halves("RGBA", (255, 0, 0, 255), (0, 0, 0, 0)), (255, 0, 0), (255,) * 3),
        (halves("RGBA", (0, 0, 0, 128), (9, 9, 9, 255)), (127,) * 3, (9,) * 3),
        (halves("LA", (0, 0), (7, 255)), (255,) * 3, (7,) * 3),
        (SIXTEEN_BITS, (10,) * 3, (200,) * 3),
    ],
    ids=["grey", "bits", "transparent", "half transparent", "grey transparent", "16 bits"],
)
def test_pixels_of_every_kind(image: Image.Image, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    picture = read_picture(encoded(image), MOST)
    assert all(abs(a - b) <= 1 for a, b in zip(pixel(picture, 3, 3), left, strict=True))
    assert all(abs(a - b) <= 1 for a, b in zip(pixel(picture, 60, 3), right, strict=True))


def test_a_palette_with_a_transparent_colour() -> None:
    image = halves("P", 0, 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    picture = read_picture(encoded(image, transparency=1), MOST)
    assert (pixel(picture, 3, 3), pixel(picture, 60, 3)) == ((255, 0, 0), (255, 255, 255))


def test_cmyk() -> None:
    picture = read_picture(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), MOST)
    red, green, blue = pixel(picture, 8, 8)
    assert red > 200
    assert max(green, blue) < 60


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new("RGB", (64, 32), "white")
    stored.paste((255, 0, 0), (0, 0, 16, 16))  # top left, as stored
    data = encoded(stored, "PNG", exif=exif)
    picture = read_picture(data, MOST)
    size = (64, 32) if orientation < 5 else (32, 64)
    assert (picture.width, picture.height) == picture_size(data, MOST) == size
    left, top = {1: (1, 1), 2: (0, 1), 3: (0, 0), 4: (1, 0), 5: (1, 1), 6: (0, 1), 7: (0, 0), 8: (1, 0)}[orientation]
    x, y = (4 if left else size[0] - 5), (4 if top else size[1] - 5)
    assert pixel(picture, x, y) == (255, 0, 0)
    assert pixel(picture, size[0] - 1 - x, size[1] - 1 - y) == (255, 255, 255)


def test_the_first_frame_of_many() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue", "green")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert pixel(read_picture(data, MOST), 5, 5)[0] > 200


@pytest.mark.parametrize("size", [(2000, 100), (100, 2000), (513, 512), (512, 512), (20, 30), (20_000, 1)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_low_detail_is_within_512_by_512(size: tuple[int, int], kind: str) -> None:
    data = encoded(Image.new("RGB", size, "red"), kind)
    picture = read_picture(data, MOST, low_detail=True)
    assert (picture.width, picture.height) == picture_size(data, MOST, low_detail=True)
    assert max(picture.width, picture.height) <= 512
    assert picture.width == size[0] or max(picture.width, picture.height) == 512
    assert len(picture.rgb) == 3 * picture.width * picture.height


def png_of(width: int, height: int) -> bytes:
    """A header that says so, and one row of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def test_a_bomb_is_known_by_its_header() -> None:
    for read in (picture_size, read_picture):
        with pytest.raises(InvalidMedia, match="the image has 144000000 pixels; at most 1000000 are taken"):
            read(png_of(12_000, 12_000), MOST)
        with pytest.raises(InvalidMedia):
            read(png_of(2**31 - 1, 2**31 - 1), MOST)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_what_is_cut_off_is_refused(kind: str) -> None:
    noise = Image.effect_noise((200, 200), 90).convert("RGB")
    data = encoded(noise, kind)
    for kept in (0.3, 0.9):
        with pytest.raises(InvalidMedia, match=r"cut off|cannot be read"):
            read_picture(data[: int(kept * len(data))], MOST)


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", b"\xff\xd8\xff", bytes(1000)]
)
def test_what_is_no_picture_is_refused_with_what_may_be_sent(data: bytes) -> None:
    for read in (picture_size, read_picture):
        with pytest.raises(InvalidMedia, match=r"formats: JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF|cut off"):
            read(data, MOST)


SOME = [encoded(halves("RGB", "red", "blue"), kind) for kind in FORMATS]


@given(st.sampled_from(SOME), st.data())
def test_whatever_is_changed_in_one_it_is_read_or_refused(data: bytes, draw: st.DataObject) -> None:
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 8))):
        changed[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    try:
        width, height = picture_size(bytes(changed), MOST)
        picture = read_picture(bytes(changed), MOST)
    except InvalidMedia:
        return
    assert (picture.width, picture.height) == (width, height)
    assert len(picture.rgb) == 3 * width * height
