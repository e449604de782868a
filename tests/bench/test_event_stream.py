"""Answers become events, however the bytes are cut."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.streamed_answers import GOOD, HEAD, answer, chunk

from llamafast.bench.event_stream import BadAnswer, EventStream, WholeBody


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1), max_size=6),
    chunk_cuts=st.lists(st.integers(0, 10_000), max_size=8),
    read_cuts=st.lists(st.integers(0, 10_000), max_size=12),
)
def test_events_do_not_depend_on_how_the_bytes_are_cut(
    texts: list[str], chunk_cuts: list[int], read_cuts: list[int]
) -> None:
    events = [b"data: " + text.encode() for text in texts]
    body = b"".join(event + b"\n\n" for event in events)
    wire = HEAD + b"".join(chunk(piece) for piece in pieces(body, chunk_cuts) if piece) + b"0\r\n\r\n"
    stream = EventStream()
    seen = []
    for piece in pieces(wire, read_cuts):
        assert not stream.finished or not piece
        seen += stream.feed(piece)
    assert seen == events
    assert stream.finished


def test_byte_by_byte() -> None:
    stream = EventStream()
    assert [event for byte in answer(GOOD) for event in stream.feed(bytes([byte]))] == GOOD
    assert stream.finished


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 429 Too Many Requests\r\ntransfer-encoding: chunked\r\n\r\n" + chunk(b"full") + b"0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        HEAD + b"zz\r\n",
        HEAD + b"0\r\n\r\nmore",
    ],
    ids=["status", "not chunked", "chunk size", "bytes after the end"],
)
def test_other_answers_are_bad(wire: bytes) -> None:
    with pytest.raises(BadAnswer):
        EventStream().feed(wire)


def test_a_whole_body_comes_in_any_pieces() -> None:
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\r\n\r\n"
    body = WholeBody()
    assert [event for byte in wire for event in body.feed(bytes([byte]))] == [b"\r\n\r\n"]
    assert body.finished
    assert WholeBody().feed(wire) == [b"\r\n\r\n"]


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}more",
    ],
    ids=["status", "no length", "more bytes"],
)
def test_other_answers_are_no_whole_body(wire: bytes) -> None:
    with pytest.raises(BadAnswer):
        WholeBody().feed(wire)


def test_a_refusal_is_quoted() -> None:
    with pytest.raises(BadAnswer, match=r"(?s)429.*full"):
        EventStream().feed(b'HTTP/1.1 429 Too Many Requests\r\ncontent-length: 8\r\n\r\n{"full"}')


def test_a_refusal_is_told_when_all_of_it_is_there() -> None:
    stream = EventStream()
    assert stream.feed(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 8\r\n\r\n{") == []
    with pytest.raises(BadAnswer, match=r'^503 Service Unavailable: {"load"}$'):
        stream.feed(b'"load"}')


def test_a_whole_body_may_come_in_chunks() -> None:
    body = WholeBody()
    assert body.feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n") == []
    assert body.feed(b"1\r\n}\r\n0\r\n\r\n") == [b"{}"]
    assert body.finished


def test_lines_may_end_as_those_of_http_do() -> None:
    stream = EventStream()
    wire = HEAD + chunk(b"data: a\r\n\r") + chunk(b"\ndata: b\r\n\r\n") + b"0\r\n\r\n"
    assert [event for byte in wire for event in stream.feed(bytes([byte]))] == [b"data: a", b"data: b"]
