"""Hold-back of stop strings and of incomplete characters."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.inside import TextStream

# few letters, so that stop strings overlap with themselves, each other and the text
LETTERS = st.sampled_from(["a", "b", "é", "日", "🦙"])
TEXTS = st.text(LETTERS, max_size=30)
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=5), max_size=4)


def run(pieces: list[bytes], stops: list[str]) -> tuple[list[bytes], bool]:
    """The chunks a stream shows for these pieces and whether a stop string ended it."""
    stream = TextStream(stops)
    chunks = []
    for piece in pieces:
        chunk, stopped = stream.feed(piece)
        chunks.append(chunk)
        if stopped:
            return chunks, True
    return [*chunks, stream.finish()], False


def cut(raw: bytes, stops: list[str]) -> tuple[bytes, bool]:
    """The truth: the text before the stop string that is complete first, the longest of those that end there."""
    encoded = [stop.encode() for stop in stops]
    for end in range(1, len(raw) + 1):
        found = [len(stop) for stop in encoded if raw[:end].endswith(stop)]
        if found:
            return raw[: end - max(found)], True
    return raw, False


def split(raw: bytes, borders: list[int]) -> list[bytes]:
    marks = sorted({0, len(raw), *(border % (len(raw) + 1) for border in borders)})
    return [raw[begin:end] for begin, end in pairwise(marks)]


@given(TEXTS, STOPS, st.lists(st.integers(0, 200), max_size=20))
def test_any_division_into_tokens_gives_the_text_before_the_first_stop(text, stops, borders):
    chunks, stopped = run(split(text.encode(), borders), stops)
    assert (b"".join(chunks), stopped) == cut(text.encode(), stops)


@given(TEXTS, STOPS, st.lists(st.integers(0, 200), max_size=20))
def test_every_chunk_is_whole_characters(text, stops, borders):
    for chunk in run(split(text.encode(), borders), stops)[0]:
        chunk.decode()


@given(st.binary(max_size=40), st.lists(st.integers(0, 200), max_size=20))
def test_bytes_that_are_not_utf8_read_the_same_in_pieces_as_in_one(raw, borders):
    chunks, _ = run(split(raw, borders), [])
    assert "".join(chunk.decode(errors="replace") for chunk in chunks) == raw.decode(errors="replace")


def test_nothing_is_held_back_without_need():
    stream = TextStream(["stop"])
    assert stream.feed(b"abc") == (b"abc", False)
    assert stream.feed(b"st") == (b"", False)
    assert stream.feed(b"ay") == (b"stay", False)
    assert stream.feed("é".encode()[:1]) == (b"", False)
    assert stream.feed("é".encode()[1:]) == ("é".encode(), False)


def test_an_empty_stop_is_refused():
    with pytest.raises(ValueError, match="empty"):
        TextStream([""])
