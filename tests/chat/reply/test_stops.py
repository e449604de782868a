"""Stop strings in a reply's content only."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafast.chat.reply.deltas import (
    ContentDelta,
    Delta,
    PlainReply,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)
from llamafast.chat.reply.reader import Reply
from llamafast.chat.reply.stops import ContentStops
from llamafast.engine.types import Event

# few letters, so that stop strings overlap with themselves, each other and the text
LETTERS = st.sampled_from(["a", "b", "é"])
TEXTS = st.text(LETTERS, max_size=30)
STOPS = st.lists(st.text(LETTERS, min_size=1, max_size=5), min_size=1, max_size=4)


def truth(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The text before the stop string that is complete first, the longest of those that end there."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(TEXTS, STOPS, st.lists(st.integers(0, 200), max_size=20))
def test_any_cut_gives_the_text_before_the_first_stop(text: str, stops: list[str], borders: list[int]) -> None:
    marks = sorted({0, len(text), *(border % (len(text) + 1) for border in borders)})
    reader, shown, met = ContentStops(stops), "", None
    for begin, end in pairwise(marks):
        piece, met = reader.read(text[begin:end])
        shown += piece
        if met is not None:
            break
    assert (shown + reader.rest(), met) == truth(text, stops)


def test_nothing_is_held_back_without_need() -> None:
    reader = ContentStops(["stop"])
    assert [reader.read(text) for text in ("abc", "st", "ay", "s")] == [
        ("abc", None), ("", None), ("stay", None), ("", None),
    ]  # fmt: skip
    assert (reader.rest(), reader.rest()) == ("s", "")


class Said:
    """A parser that says one list of Deltas a feed."""

    def __init__(self, *feeds: list[Delta]) -> None:
        self._feeds = iter(feeds)

    def feed(self, text: str) -> list[Delta]:
        return list(next(self._feeds, []))

    def finish(self) -> list[Delta]:
        return []


CALL: list[Delta] = [ToolCallBegin(0, "call_a", "f"), ToolCallArguments(0, '"END"'), ToolCallEnd(0)]


def test_reasoning_and_calls_may_hold_a_stop_string() -> None:
    feeds: list[list[Delta]] = [[ReasoningDelta("an END")], [ContentDelta("E")], CALL, [ContentDelta("ND. EN")], []]
    reply = Reply(Said(*feeds), stops=["END"])
    parts = [reply.read(Event(0, "x", 1)) for _ in feeds[:-1]] + [reply.read(Event(0, "", 1, "stop"))]
    assert [part.deltas for part in parts] == [
        feeds[0], [], [ContentDelta("E"), *CALL], [ContentDelta("ND. ")], [ContentDelta("EN")],
    ]  # fmt: skip
    assert (parts[-1].finish_reason, parts[-1].matched_stop, reply.ended) == ("tool_calls", None, False)


def test_a_stop_string_ends_the_reply_before_its_events_do() -> None:
    reply = Reply(Said([ContentDelta("a E")], [ContentDelta("ND b"), *CALL], [ContentDelta("c")]), stops=["END"])
    assert reply.read(Event(0, "x", 1)) == (0, [ContentDelta("a ")], None, (), None, (), ())
    assert reply.read(Event(0, "x", 1)) == (0, [], "stop", (), "END", (), ())
    assert reply.ended
    assert reply.read(Event(0, "x", 1, "length")) == (0, [], None, (), None, (), ())


def test_tokens_behind_a_stop_string_do_not_count() -> None:
    reply = Reply(PlainReply(), stops=["END"])
    reply.read(Event(0, "ab", 2))
    reply.read(Event(0, "c END def ", 5))
    assert (reply.n_tokens, reply.ended) == (2 + 5 - round(5 * 5 / 10), True)
    reply.read(Event(0, "gh", 2))
    assert reply.n_tokens == 5


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_what_was_held_back_is_said_at_the_end(reason: str) -> None:
    reply = Reply(Said([ContentDelta("a EN")]), stops=["END"])
    assert reply.read(Event(0, "x", 1, reason)).deltas == [ContentDelta("a "), ContentDelta("EN")]  # type: ignore[arg-type]
