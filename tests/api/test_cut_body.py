"""Long base64 in a body: what was cut out comes back as the client wrote it, and media keep it where it is."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafast.api.cut_body import cut
from llamafast.api.decode import parse, parse_cut
from llamafast.engine.media import DetachedText
from llamafast.errors import InvalidRequest
from llamafast.media.data_url import read_base64, read_data_url
from llamafast.media.limits import ByteLimit

DATA = bytes(range(256)) * 8000
TEXT = b64encode(DATA).decode()
LIMIT = ByteLimit("image", 1 << 24)


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


def part(text: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": text, "detail": "low"}}


def test_media_are_left_where_they_are() -> None:
    value = {"messages": [{"content": [part("data:image/png;base64," + TEXT), {"type": "text", "text": "x"}]}]}
    (shown, text) = parse_cut(body(value))["messages"][0]["content"]  # type: ignore[index]
    url = shown["image_url"]["url"]
    assert isinstance(url, DetachedText)
    assert url == "data:image/png;base64,"
    assert len(url.base64) == len(TEXT)
    assert read_data_url(url, LIMIT) == ("image/png", DATA)
    assert text == {"type": "text", "text": "x"}
    audio = {"type": "input_audio", "input_audio": {"data": TEXT, "format": "wav"}}
    asked = body({"messages": [{"role": "user", "content": [audio]}]})
    told = parse_cut(asked)["messages"][0]["content"][0]["input_audio"]["data"]  # type: ignore[index]
    assert told == ""
    assert read_base64(told, LIMIT) == DATA


@pytest.mark.parametrize("value", [
    {"user": TEXT}, [TEXT, "x", TEXT], {"type": "text", "text": "data:;base64," + TEXT}, {"a": {"b": [{"c": TEXT}]}},
    {"type": ["image_url"], "url": TEXT}, {"x": "é" + TEXT}, {"x": TEXT + "!"}, {"x": TEXT[:70_000] + " " + TEXT},
    {TEXT: 1}, {"x": TEXT[:1000]},
])  # fmt: skip
def test_everything_else_is_as_the_client_wrote_it(value: Any) -> None:
    value = [value, "x" * (1 << 20)]
    assert parse_cut(body(value)) == value
    assert not any(isinstance(text, DetachedText) for text in str(value))


@given(st.integers(0, 300_000), st.integers(0, 300_000), st.sampled_from(["", " ", "=", "\\n", "é"]))
@settings(max_examples=30, deadline=None)
def test_wherever_a_text_begins_and_ends(before: int, n: int, behind: str) -> None:
    value = {"a": "!" * before, "b": "A" * n + behind, "c": ["B" * 300_000]}
    assert parse_cut(body(value) + b" " * (1 << 20)) == value


@pytest.mark.parametrize(
    "broken",
    [b"[" + b"1" * 2_000_000 + b"]", b"A" * 2_000_000, b'{"a": ' + b"A" * 2_000_000 + b'"}', b'["' + b"A" * 2_000_000],
)
def test_what_is_no_json_is_refused_all_the_same(broken: bytes) -> None:
    for read in (parse, parse_cut):
        with pytest.raises(InvalidRequest):
            read(broken)


def test_nobody_can_write_the_words() -> None:
    value = {"a": "<0123456789abcdef0123456789abcdef:0>", "b": [part(TEXT)], "c": TEXT}
    told = parse_cut(body(value))
    assert told["a"] == value["a"]  # type: ignore[index]
    assert told["c"] == TEXT  # type: ignore[index]


def test_short_bodies_and_deep_ones() -> None:
    assert cut(b"{}") is None
    deep = b"[" * 5000 + b'"' + TEXT.encode() + b'"' + b"]" * 5000
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        parse_cut(deep)
