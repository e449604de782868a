"""Which tokens a reply's texts consist of, however tokens and text arrive."""

from __future__ import annotations

from codecs import getincrementaldecoder

from hypothesis import given
from hypothesis import strategies as st
from support.fake_engine import ByteTokenizer

from llamafast.chat.reply.deltas import ContentDelta, ReasoningDelta, ToolCallBegin, ToolCallEnd
from llamafast.chat.reply.dialects.parser import DialectParser
from llamafast.chat.reply.dialects.tables import GENERIC
from llamafast.chat.reply.spelled import SpelledTexts
from llamafast.chat.tools import Tool
from llamafast.engine.types import TokenLogprob

TOOLS = (Tool("get_weather", {"type": "object", "properties": {"city": {"type": "string"}}}, False, {}),)
REPLY = (
    "<think>Well, « done » then.</think>\n\nIs it « done »?\n"
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Is it « done »?"}}\n</tool_call>\nIt is « done » 🎉.'
)


def spelled() -> SpelledTexts:
    return SpelledTexts(ByteTokenizer().piece)


def tokens_of(text: bytes) -> list[TokenLogprob]:
    return [TokenLogprob(byte, -byte / 256, []) for byte in text]


@given(st.lists(st.integers(1, 9), min_size=1))
def test_the_content_is_spelled_by_its_own_tokens(sizes: list[int]) -> None:
    texts, parser, decoder = spelled(), DialectParser(GENERIC, TOOLS), getincrementaldecoder("utf-8")()
    raw, content, bytes_of_content, at = REPLY.encode(), "", [], 0
    while at < len(raw):
        piece = raw[at : at + sizes[at % len(sizes)]]
        at += len(piece)
        deltas = parser.feed(decoder.decode(piece)) + (parser.finish() if at == len(raw) else [])
        for delta, logprobs in zip(deltas, texts.of(deltas, tokens_of(piece)), strict=True):
            if isinstance(delta, ContentDelta):
                content += delta.text
                bytes_of_content += [logprob.token for logprob in logprobs]
            else:
                assert not logprobs
    assert content.startswith("Is it « done »?")
    assert content.endswith("It is « done » 🎉.")
    # white space before a mark is said once text follows, when it does not stand there any more
    assert bytes(bytes_of_content).decode().split() == content.split()


def test_a_token_that_ends_a_mark_and_begins_the_text_belongs_to_the_text() -> None:
    pieces = {1: b"<x>", 2: b"> A", 3: b"B"}
    texts = SpelledTexts(pieces.__getitem__)
    tokens = [TokenLogprob(token, -1.0, []) for token in pieces]
    assert texts.of([ContentDelta("AB")], tokens) == [tokens[1:]]


def test_a_text_that_was_not_written_so_has_no_tokens() -> None:
    texts = spelled()
    deltas = [ReasoningDelta("a"), ContentDelta("x-y"), ContentDelta("c")]
    assert [len(logprobs) for logprobs in texts.of(deltas, tokens_of(b"a b c"))] == [0, 0, 1]


def test_arguments_are_not_content() -> None:
    texts = spelled()
    assert texts.of([ToolCallBegin(0, "c", "f")], tokens_of(b"f(yes")) == [[]]
    _, content = texts.of([ToolCallEnd(0), ContentDelta("yes")], tokens_of(b")yes"))
    assert [logprob.logprob for logprob in content] == [-byte / 256 for byte in b"yes"]
    assert not texts.of([ContentDelta("yes")], [])[0]
