"""What a reply is made of, and what is known of it at the end."""

from __future__ import annotations

import pytest

from llamafast.chat.reply.deltas import (
    ContentDelta,
    Delta,
    PlainReply,
    ReasoningDelta,
    ToolCall,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
    assemble,
)
from llamafast.chat.reply.reader import Reply
from llamafast.engine.types import Event

CALL: list[Delta] = [ToolCallBegin(0, "call_a", "f"), ToolCallArguments(0, "{}"), ToolCallEnd(0)]
SECOND: list[Delta] = [ToolCallBegin(1, "call_b", "g"), ToolCallArguments(1, "{}"), ToolCallEnd(1)]


class Recorded:
    """A parser that says what it was told to, one list a feed."""

    def __init__(self, *feeds: list[Delta], rest: list[Delta] | None = None) -> None:
        self._feeds = iter(feeds)
        self._rest = rest or []

    def feed(self, text: str) -> list[Delta]:
        return list(next(self._feeds, []))

    def finish(self) -> list[Delta]:
        return list(self._rest)


def test_plain_text_is_content_and_nothing_is_held_back() -> None:
    parser = PlainReply()
    assert parser.feed("<think>") == [ContentDelta("<think>")]
    assert parser.feed("") == []
    assert parser.finish() == []


def test_assembled_calls_have_their_arguments_in_one_piece() -> None:
    deltas: list[Delta] = [
        ReasoningDelta("a"), ContentDelta("b"), ReasoningDelta("c"), CALL[0], ToolCallArguments(0, "{"),
        ToolCallArguments(0, "}"), CALL[2], *SECOND, ContentDelta("d"),
    ]  # fmt: skip
    assert assemble(deltas) == ("bd", "ac", [ToolCall("call_a", "f", "{}"), ToolCall("call_b", "g", "{}")])


@pytest.mark.parametrize(("engine", "wire"), [("stop", "tool_calls"), ("length", "length")])
def test_the_finish_reason_of_a_reply_with_calls(engine: str, wire: str) -> None:
    reply = Reply(Recorded(CALL))
    assert reply.read(Event(0, "x", 1)).finish_reason is None
    assert reply.read(Event(0, "", 1, engine)).finish_reason == wire  # type: ignore[arg-type]
    assert Reply(Recorded()).read(Event(0, "", 1, engine)).finish_reason == engine  # type: ignore[arg-type]


def test_what_was_held_back_comes_with_the_end() -> None:
    reply = Reply(Recorded([ContentDelta("a")], rest=[ContentDelta("b")]))
    assert reply.read(Event(3, "ab", 1, "stop")) == (
        3,
        [ContentDelta("a"), ContentDelta("b")],
        "stop",
        (),
        None,
        (),
        (),
    )


def test_without_parallel_calls_the_end_of_the_first_one_is_the_end() -> None:
    reply = Reply(Recorded([ContentDelta("a"), *CALL, ContentDelta("bcde")], SECOND), parallel=False)
    assert reply.read(Event(0, "a{}_bcde", 8)) == (0, [ContentDelta("a"), *CALL], "tool_calls", (), None, (), ())
    assert (reply.ended, reply.n_tokens) == (True, 4)
    assert reply.read(Event(0, "x", 1, "length")) == (0, [], None, (), None, (), ())
    assert reply.n_tokens == 4


def test_a_first_call_that_is_certain_only_at_the_end() -> None:
    reply = Reply(Recorded([CALL[0]], rest=[*CALL[1:], ContentDelta("c")]), parallel=False)
    assert reply.read(Event(0, "x", 1, "length")) == (0, CALL, "length", (), None, (), ())
    assert not reply.ended


def test_reasoning_tokens_include_the_opening_mark() -> None:
    reply = Reply(Recorded([], [ReasoningDelta("abc")], [], [ContentDelta("d")]))
    for text in ("<think>", "abc", "</think>", "d"):
        reply.read(Event(0, text, 1))
    reply.read(Event(0, "", 1, "stop"))
    assert reply.reasoning_tokens == 2


def test_tokens_of_one_event_are_divided_by_characters() -> None:
    reply = Reply(Recorded([ReasoningDelta("abcdef"), ContentDelta("gh")]))
    reply.read(Event(0, "<think>abcdef</think>gh", 8))
    assert reply.reasoning_tokens == 6


def test_a_reply_cut_while_reasoning_was_all_reasoning() -> None:
    reply = Reply(Recorded([ReasoningDelta("a")]))
    reply.read(Event(0, "a", 1))
    reply.read(Event(0, "", 2, "length"))
    assert reply.reasoning_tokens == 3
