"""Replies as families of models write them → Deltas, however the text is cut."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.replies import REPLIES, TOOLS, Said

from llamafast.chat.reply.deltas import AssistantMessage, Delta, ToolCallArguments, ToolCallBegin, ToolCallEnd, assemble
from llamafast.chat.reply.dialects.parser import DialectParser
from llamafast.chat.reply.dialects.source import Marks
from llamafast.chat.reply.dialects.tables import DIALECTS, GENERIC, NAMES, dialect_named, recognised
from llamafast.chat.tools import read_tools
from llamafast.errors import ConfigError


def deltas(name: str, pieces: list[str], *, begun: str = "", tools: Any = TOOLS, split: bool = True) -> list[Delta]:
    parser = DialectParser(dialect_named(name), tools, split_reasoning=split, begun=begun)
    said = [delta for piece in pieces for delta in parser.feed(piece)]
    return said + parser.finish()


def parse(name: str, *pieces: str, **options: Any) -> AssistantMessage:
    return assemble(deltas(name, list(pieces), **options))


def said(message: AssistantMessage) -> Said:
    """The message without ids, its arguments decoded."""
    calls = [(call.name, json.loads(call.arguments)) for call in message.tool_calls]
    return Said(message.content, message.reasoning, calls)


def raw(message: AssistantMessage) -> tuple[str, str, list[tuple[str, str]]]:
    return message.content, message.reasoning, [(call.name, call.arguments) for call in message.tool_calls]


replies = pytest.mark.parametrize(("name", "begun", "text", "expected"), REPLIES.values(), ids=REPLIES)


@replies
def test_what_a_reply_says(name: str, begun: str, text: str, expected: Said) -> None:
    assert said(parse(name, text, begun=begun)) == expected


def test_every_dialect_is_among_them() -> None:
    assert {name for name, *_ in REPLIES.values()} == set(NAMES)


def cuts(text: str) -> list[list[str]]:
    """``text`` in pieces of 1, 2, 3, 5, 7, 13 and 31 characters and in 50 random ways."""
    ways = [[text[i : i + n] for i in range(0, len(text), n)] for n in (1, 2, 3, 5, 7, 13, 31)]
    draw = random.Random(text)
    for _ in range(50):
        ends = sorted(draw.sample(range(len(text) + 1), k=min(len(text), draw.randint(1, 20))))
        ways.append([text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)])
    return ways


@replies
def test_the_result_does_not_depend_on_how_the_text_is_cut(name: str, begun: str, text: str, expected: Said) -> None:
    whole = parse(name, text, begun=begun)
    for pieces in cuts(text):
        assert raw(parse(name, *pieces, begun=begun)) == raw(whole), pieces


@replies
def test_a_reply_cut_short_says_a_beginning(name: str, begun: str, text: str, expected: Said) -> None:
    """Wherever it ends: nothing is raised, and calls before the last one are what they were."""
    for end in range(len(text)):
        message = parse(name, text[:end], begun=begun)
        names = [call.name for call in message.tool_calls]
        assert names == [call for call, _ in expected.calls][: len(names)]
        for call, (_, arguments) in zip(message.tool_calls[:-1], expected.calls, strict=False):
            assert json.loads(call.arguments) == arguments


@replies
def test_the_order_of_deltas(name: str, begun: str, text: str, expected: Said) -> None:
    """A call begins, has arguments, ends, and only then the next one begins."""
    open_call = None
    for delta in deltas(name, list(text), begun=begun):
        match delta:
            case ToolCallBegin(index):
                assert open_call is None
                open_call = index
            case ToolCallArguments(index):
                assert index == open_call
            case ToolCallEnd(index):
                assert index == open_call
                open_call = None
    assert open_call is None


@replies
def test_without_tools_nothing_is_a_call(name: str, begun: str, text: str, expected: Said) -> None:
    assert not parse(name, text, begun=begun, tools=()).tool_calls


ALPHABET = st.sampled_from(
    [
        *dict.fromkeys(mark for dialect in (*DIALECTS, GENERIC) for mark in dialect.marks()),
        *'{}[]()",:=\\ \n<a1',
        *("get_weather", '{"name": "get_weather", "arguments": {', "null", "é", "<|", "functions."),
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(NAMES), st.lists(ALPHABET | st.text(max_size=3), max_size=30), st.booleans(), st.data())
def test_any_text_is_read_the_same_however_it_is_cut(
    name: str, pieces: list[str], split: bool, data: st.DataObject
) -> None:
    text = "".join(pieces)
    whole = parse(name, text, split=split)
    assert raw(parse(name, *pieces, split=split)) == raw(whole)
    assert raw(parse(name, *text, split=split)) == raw(whole)


@given(st.sampled_from(NAMES), st.text())
def test_text_without_marks_is_content_to_the_letter(name: str, text: str) -> None:
    if not any(mark in text for mark in dialect_named(name).marks()):
        assert parse(name, text) == (text, "", [])


@pytest.mark.parametrize(
    "text",
    [
        "a <tool_call> b",
        "<tool_call>",
        "<tool_call>\n{broken\n</tool_call>",
        '<tool_call>\n{"nome": "get_weather"}\n</tool_call>',
        '<tool_call>{"name": "get weather", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
        '<tool_call>[{"name": "now"}]</tool_call>',
        '<tool_call>{"name": "\\ud800"}</tool_call>',
        "it ends with <tool_ca",
        "two\n\n",
        " leading",
        "1 < 2 <",
    ],
)
def test_what_is_no_call_is_content_to_the_letter(text: str) -> None:
    for pieces in ([text], list(text)):
        assert parse("hermes", *pieces) == (text, "", [])


def test_after_a_broken_call_a_good_one_is_still_a_call() -> None:
    text = '<tool_call> is the mark: <tool_call>{"name": "now", "arguments": {}}</tool_call>'
    assert said(parse("hermes", text)) == Said("<tool_call> is the mark:", "", [("now", {})])


def test_arguments_that_break_off_stay_as_they_were_written() -> None:
    """What was streamed cannot be taken back; a client must not take half an object for a whole one."""
    message = parse("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Par')
    assert [call.arguments for call in message.tool_calls] == ['{"city": "Par']
    message = parse("qwen-xml", "<tool_call>\n<function=get_weather>\n<parameter=city>\nPar")
    assert [call.arguments for call in message.tool_calls] == ['{"city": "Par']


def test_arguments_come_in_pieces() -> None:
    pieces = ["<tool_call>\n<function=get_weather>\n<parameter=city>\n", "Pa", "ris", "\n</parameter>", "\n</function>"]
    parts = [delta.text for delta in deltas("qwen-xml", pieces) if isinstance(delta, ToolCallArguments)]
    assert parts == ['{"city": "', "Pa", "ris", '"', "}"]


def test_a_call_is_told_before_its_arguments_are_there() -> None:
    """Where a grammar forces the text up to them, that is a step sooner."""
    parser = DialectParser(dialect_named("hermes"), TOOLS)
    told = list(parser.feed('<tool_call>\n{"name": "get_weather", "arguments":'))
    assert [delta.name for delta in told if isinstance(delta, ToolCallBegin)] == ["get_weather"]
    assert not list(parser.feed(" "))
    assert assemble([*told, *parser.feed("{}}\n</tool_call>"), *parser.finish()]).tool_calls[0].arguments == "{}"


def test_a_bare_object_is_a_call_only_by_the_name_of_a_tool() -> None:
    for text in ('{"name": "other", "parameters": {}}', '{"answer": 42, "name": "now"}', '{"name": "now"}'):
        for pieces in ([text], list(text)):
            assert parse("llama-3", *pieces) == (text, "", [])


def test_json_that_is_no_call_is_not_held_back() -> None:
    parser = DialectParser(dialect_named("llama-3"), TOOLS)
    assert assemble([*parser.feed('{"ans'), *parser.feed('wer"'), *parser.feed(": 42")]).content == '{"answer": 42'


def test_arguments_are_repaired_where_their_meaning_is_plain() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": "x\ny", b: True, "c": [1, 2,], "d": "\\d"}}</tool_call>'
    assert said(parse("hermes", text)).calls == [("f", {"a": "x\ny", "b": True, "c": [1, 2], "d": "\\d"})]


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "integer"}, "3.0", 3),
        ({"type": "integer"}, "x", "x"),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "number"}, "nan", "nan"),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "0", False),
        ({"type": ["integer", "null"]}, "None", None),
        ({"type": ["integer", "null"]}, "5", 5),
        ({"type": "array"}, "['a', True]", ["a", True]),
        ({"type": "array"}, "{}", "{}"),
        ({"type": "object"}, "{" * 5000, "{" * 5000),
        ({"type": "string"}, "3", "3"),
        ({}, "3", "3"),
        ({"allOf": [{"$ref": "#/nowhere"}]}, "3", "3"),
        ({"$ref": "#/properties/x"}, "3", "3"),
        ({"type": 5, "anyOf": 3, "$ref": []}, "3", "3"),
        ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, "3", 3),
        ({"type": "integer", "nullable": True}, "null", None),
    ],
)
def test_values_get_the_type_that_the_schema_names(schema: Any, text: str, value: Any) -> None:
    function = {"name": "f", "parameters": {"type": "object", "properties": {"x": schema}}}
    tools = read_tools([{"type": "function", "function": function}])
    call = f"<tool_call>\n<function=f>\n<parameter=x>\n{text}\n</parameter>\n</function>\n</tool_call>"
    assert said(parse("qwen-xml", call, tools=tools)).calls == [("f", {"x": value})]


def test_reasoning_that_is_not_to_be_split_off_stays_in_the_content() -> None:
    text = "<think>\nHm.\n</think>\n\nYes."
    assert parse("hermes", text, split=False) == (text, "", [])
    harmony = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes."
    assert parse("harmony", harmony, split=False, begun="<|start|>assistant") == ("Hm.Yes.", "", [])


def test_no_mark_of_a_dialect_begins_another() -> None:
    for dialect in (d for d in (*DIALECTS, GENERIC) if not d.channels):
        openers = [opener for form in dialect.forms for opener in form.openers]
        marks = {*openers, *dialect.dropped, *(begin for begin, _ in dialect.reasoning)}
        assert not [(a, b) for a in marks for b in marks if a != b and b.startswith(a)], dialect.name


def test_every_dialect_is_recognised_by_its_evidence() -> None:
    for dialect in DIALECTS:
        assert recognised(" ".join(dialect.evidence)).name == dialect.name
    assert recognised("{{ messages }}") == GENERIC.__class__(name="generic", forms=GENERIC.forms, reasoning=())
    assert recognised("… </think> …").reasoning == (("<think>", "</think>"),)
    with pytest.raises(ConfigError, match="hermes"):
        dialect_named("klingon")


@given(st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=4), st.text("ab<c"), st.integers(0, 5))
def test_marks_are_found_leftmost_and_beginnings_only_at_the_end(texts: list[str], text: str, at: int) -> None:
    found = Marks(texts).search(text, min(at, len(text)))
    places = [
        (i, text.startswith(mark, i))
        for i in range(min(at, len(text)), len(text))
        for mark in texts
        if text.startswith(mark, i) or mark.startswith(text[i:])
    ]
    if found is None:
        assert not places
    else:
        assert found.start() == min(place for place, _ in places)
        assert (found[1] is not None) == any(whole for place, whole in places if place == found.start())
