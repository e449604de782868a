"""Bytes in data URLs and in base64, as clients write them."""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafast.errors import InvalidMedia
from llamafast.media.data_url import read_base64, read_data_url
from llamafast.media.limits import ByteLimit

LIMIT = ByteLimit("image", 4096)
HELLO = b"\xfb\xff\x00 hello"


@given(st.binary(max_size=4096))
def test_every_way_to_write_bytes_gives_them(data: bytes) -> None:
    plain = b64encode(data).decode()
    wrapped = "\r\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))
    for text in (plain, plain.rstrip("="), urlsafe_b64encode(data).decode(), wrapped, plain.replace("+", "%2B")):
        assert read_base64(text, LIMIT) == data
        assert read_data_url("data:image/png;base64," + text, LIMIT) == ("image/png", data)
    assert read_data_url("data:," + quote_from_bytes(data), LIMIT) == ("", data)


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        ("data:image/png;base64", "image/png"),
        ("DATA:Image/PNG;charset=utf-8;BASE64", "image/png"),
        ("data:image/svg+xml;name=a.svg;base64", "image/svg+xml"),
        ("data:;base64", ""),
        ("data: audio/wav ; base64", "audio/wav"),
    ],
)
def test_parameters_and_case_are_taken(head: str, media_type: str) -> None:
    assert read_data_url(f"{head},{b64encode(HELLO).decode()}", LIMIT) == (media_type, HELLO)


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64", "data", "", "image/png;base64,AAAA", "data:image/png;base64,AAA*", "data:;base64,A",
        "data:;base64,AA==AA==", "data:;base64,ÄÄÄÄ", "data:;base64,\ud800AAA", "data:" + ";a=b" * 500 + ";base64,AAAA",
    ],
)  # fmt: skip
def test_what_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidMedia) as caught:
        read_data_url(url, LIMIT)
    assert (caught.value.status, caught.value.code) == (400, "invalid_media")


@pytest.mark.parametrize("n_bytes", [4097, 6000, 10_000_000])
def test_what_is_too_large_is_refused_with_the_key_that_allows_more(n_bytes: int) -> None:
    sentence = r"the image is larger than model.mtmd.image_max_bytes \(4096\)"
    encoded = b64encode(bytes(n_bytes)).decode()
    for url in ("data:;base64," + encoded, "data:;base64," + encoded.replace("A", " A"), "data:," + "%00" * n_bytes):
        with pytest.raises(InvalidMedia, match=sentence):
            read_data_url(url, LIMIT)


def test_the_largest_is_taken() -> None:
    data = bytes(range(256)) * 16
    wrapped = "\r\n".join(b64encode(data).decode()[i : i + 64] for i in range(0, 5464, 64))
    assert read_base64(wrapped, LIMIT) == data
