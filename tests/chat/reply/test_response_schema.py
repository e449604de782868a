"""``model.response_schema``: streamed and whole replies say the same, and none of them is an error."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chunked import chunkings, message_of

from llamafast.chat.reply.declared.evaluate import evaluate
from llamafast.chat.reply.declared.response_schema import ResponseSchema
from llamafast.chat.reply.deltas import ContentDelta, ReasoningDelta
from llamafast.chat.tools import read_tools
from llamafast.errors import ConfigError

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "some": {"type": ["integer", "null"]},
        "any": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "yes": {"type": "boolean"},
        "deep": {"type": "object"},
    },
    "required": ["city"],
}
TOOLS = read_tools([{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}])


def calls(pattern: str, name: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    function = {
        "type": "object",
        "properties": {"name": name, "arguments": arguments},
        "required": ["name", "arguments"],
    }
    item = {"type": "object", "properties": {"type": {"const": "function"}, "function": function}}
    return {"type": "array", "x-regex-iterator": pattern, "items": {**item, "required": ["type", "function"]}}


def schema(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"role": {"const": "assistant"}, **properties}, "required": ["role"]}


def text(pattern: str) -> dict[str, Any]:
    return {"type": "string", "x-regex": pattern}


SCHEMAS = {
    "xml": schema(
        reasoning_content=text(r"^(?:<\|im_start\|>assistant\n)?(?:<think>\n)?(.*?)(?=</think>)"),
        content=text(
            r"^(?:<\|im_start\|>assistant\n)?(?:(?:<think>\n)?.*?</think>\s*)?(.*?)(?=\s*<tool_call>\n|<\|im_end\|>$|$)"
        ),
        tool_calls=calls(
            r"<tool_call>\n(.*?)\n</tool_call>",
            text(r"^<function=([^>]+)>\n"),
            {
                "type": "object",
                "x-regex": r"^<function=[^>]+>\n(.*?)\n</function>$",
                "x-regex-key-value": r"<parameter=(?P<key>[^>]+)>\n(?P<value>.*?)\n</parameter>",
                "additionalProperties": True,
            },
        ),
    ),
    "gemma": schema(
        thinking=text(r"^(?:<\|turn>model\n)?<\|channel>thought\n(.*?)<channel\|>"),
        content=text(r"^(?:<\|turn>model\n)?(?:<\|channel>thought\n.*?<channel\|>)?(.*?)(?=<\|tool_call>|<turn\|>|$)"),
        tool_calls=calls(
            r"<\|tool_call>(call:.*?)<tool_call\|>",
            text(r"^call:(\w+)"),
            {"type": "object", "x-regex": r"^call:\w+(\{.*\})$", "x-parser": "gemma4-tool-call"},
        ),
    ),
    "channels": schema(
        reasoning_content=text(r"^(?:<\|start\|>assistant)?<\|channel\|>analysis<\|message\|>(.*?)(?=<\|end\|>|<\|start\|>assistant|$)"),
        content=text(r"^(?:.*?<\|start\|>assistant)?<\|channel\|>final<\|message\|>(.*?)(?=<\|return\|>|<\|end\|>|$)"),
        tool_calls=calls(
            r"(<\|start\|>assistant<\|channel\|>commentary to=functions\.[\w-]+ json<\|message\|>.*?<\|call\|>)",
            text(r"to=functions\.([\w-]+)"),
            {"type": "object", "x-regex": r"<\|message\|>(.*?)<\|call\|>$", "x-parser": "json"},
        ),
    ),
    # nothing literal before the answer: read when it is complete
    "whole": schema(
        reasoning=text(r"^why:(.*?)\n"),
        content=text(r"(?:^|\n)[Aa]nswer(?::| is) ([^\n]+)"),
    ),
    "json": {
        "type": "object",
        "x-parser": "json",
        "properties": {"role": {"const": "assistant"}, "content": {"type": "string"}, "tool_calls": {"type": "array"}},
    },
}  # fmt: skip
PROMPTS = {
    "xml": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n",
    "gemma": "<|turn>user\nhi<turn|>\n<|turn>model\n",
    "channels": "<|start|>user<|message|>hi<|end|><|start|>assistant",
    "whole": "",
    "json": "",
}


def xml(**arguments: str) -> str:
    pairs = "\n".join(f"<parameter={key}>\n{value}\n</parameter>" for key, value in arguments.items())
    return f"<tool_call>\n<function=weather>\n{pairs}\n</function>\n</tool_call>"


def parsed(name: str, chunks: list[str], prompt: str | None = None, *, split_reasoning: bool = True):
    reader = ResponseSchema(SCHEMAS[name])
    new = reader.parser(PROMPTS[name] if prompt is None else prompt, TOOLS, split_reasoning=split_reasoning)
    parser = new()
    return [delta for chunk in chunks for delta in parser.feed(chunk)] + parser.finish()


def said(content: str = "", reasoning: str = "", *called: dict[str, Any]) -> dict[str, Any]:
    return {"content": content, "reasoning": reasoning, "calls": [("weather", arguments) for arguments in called]}


REPLIES = [
    ("xml", f"I should.\n</think>\n\nLet me look.\n\n{xml(city='Paris', days='3')}<|im_end|>",
     said("Let me look.", "I should.\n", {"city": "Paris", "days": 3})),
    ("xml", "why</think>\n\nBecause <b> & more <", said("Because <b> & more <", "why")),
    ("gemma", "<|channel>thought\nhm<channel|>Yes.<turn|>", said("Yes.", "hm")),
    ("gemma", '<|tool_call>call:weather{city:<|"|>Par"is<|"|>,yes:true,deep:{a:[1,null]}}<tool_call|>',
     said("", "", {"city": 'Par"is', "yes": True, "deep": {"a": [1, None]}})),
    ("channels", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
     said("Yes.", "hm")),
    ("channels", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary to=functions.weather "
     'json<|message|>{"city": "Paris", "yes": false, "some": null, "deep": {"a": "b"}}<|call|>',
     said("", "hm", {"city": "Paris", "yes": False, "some": None, "deep": {"a": "b"}})),
    ("whole", "why: so\nAnswer is 42\n", said("42", " so")),
    ("json", '{"content": "hi", "tool_calls": [{"function": {"name": "weather", "arguments": {"yes": true}}}]}',
     said("hi", "", {"yes": True})),
]  # fmt: skip


@pytest.mark.parametrize(("name", "reply", "message"), REPLIES)
def test_streams_and_whole_replies_say_the_same(name: str, reply: str, message: dict[str, Any]) -> None:
    for chunks in chunkings(reply):
        assert message_of(parsed(name, chunks)) == message


@pytest.mark.parametrize(("name", "reply", "message"), REPLIES[:-2])
def test_the_regions_find_what_the_schema_finds(name: str, reply: str, message: dict[str, Any]) -> None:
    header = {"xml": "<|im_start|>assistant\n", "gemma": "<|turn>model\n", "channels": "<|start|>assistant"}[name]
    found = evaluate(SCHEMAS[name], PROMPTS[name][PROMPTS[name].rfind(header) :] + reply)
    reasoning = found.get("reasoning_content") or found.get("thinking") or ""
    assert (found.get("content") or "", reasoning) == (message["content"], message["reasoning"])
    assert len(found.get("tool_calls", [])) == len(message["calls"])


@pytest.mark.parametrize("name", ["xml", "gemma", "channels"])
def test_schemas_between_literals_are_streamed(name: str) -> None:
    assert ResponseSchema(SCHEMAS[name])._regions
    deltas = parsed(name, {"xml": ["a"], "gemma": ["<|channel>thought\na"], "channels": [
        "<|channel|>analysis<|message|>a"]}[name])  # fmt: skip
    assert deltas == [ReasoningDelta("a")]


def test_other_schemas_are_read_at_the_end() -> None:
    parser = ResponseSchema(SCHEMAS["whole"]).parser("", (), split_reasoning=True)()
    assert parser.feed("Answer: 42\n") == []
    assert parser.finish() == [ContentDelta("42")]


# What the example server, whose schemas these are, got wrong.
REGRESSIONS = {
    "quotes and newlines in streamed arguments": (
        xml(city='a "b"\n\\c'), said("", "", {"city": 'a "b"\n\\c'})),
    "booleans as Python writes them": (xml(yes="True"), said("", "", {"yes": True})),
    "null, nested objects and lists of types": (
        xml(some="null", deep='{"a": [{"b": null}]}'), said("", "", {"some": None, "deep": {"a": [{"b": None}]}})),
    "anyOf in a parameter": (xml(any="3"), said("", "", {"any": 3})),
    "a value that does not fit its type": (xml(days="soon"), said("", "", {"days": "soon"})),
    "an argument nobody declared": (xml(other="1"), said("", "", {"other": "1"})),
    "a call without arguments": (
        "<tool_call>\n<function=weather>\n</function>\n</tool_call>", said("", "", {})),
    "text after a call sends nothing again": (
        f"{xml(city='Lyon')}\nand more", said("and more", "", {"city": "Lyon"})),
    "text held back is not lost": ("a <", said("a <")),
    "a reply that ends within a call": (
        "ok\n<tool_call>\n<function=weather>\n<parameter=ci",
        said("ok\n<tool_call>\n<function=weather>\n<parameter=ci")),
    "a call that is none": ("<tool_call>\nnothing\n</tool_call>", said("<tool_call>\nnothing\n</tool_call>")),
    "white space split from its mark": ("\n\nhi\n\n" + xml(city="a"), said("hi", "", {"city": "a"})),
}  # fmt: skip


@pytest.mark.parametrize(("reply", "message"), REGRESSIONS.values(), ids=REGRESSIONS)
def test_regressions(reply: str, message: dict[str, Any]) -> None:
    for chunks in chunkings(f"t</think>{reply}"):
        assert message_of(parsed("xml", chunks)) == {**message, "reasoning": "t"}


def test_a_thought_cut_short_is_a_thought() -> None:
    for chunks in chunkings("I think <"):
        assert message_of(parsed("xml", chunks)) == said("", "I think <")


def test_thinking_that_the_prompt_has_closed() -> None:
    prompt = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert message_of(parsed("xml", ["hi"], prompt)) == said("hi")
    assert message_of(parsed("xml", ["hi"], "no header")) == said("hi")


def test_an_undeclared_tool_is_passed_on() -> None:
    reply = "a</think>" + xml(city="1").replace("weather", "other-tool")
    (call,) = message_of(parsed("xml", [reply]))["calls"]
    assert call == ("other-tool", {"city": "1"})


def test_both_orders_of_reasoning_fields_and_names_with_a_dash() -> None:
    reply = '<|channel|>commentary to=functions.a-b json<|message|>{"x": 1}<|call|>'
    assert message_of(parsed("channels", list(reply)))["calls"] == [("a-b", {"x": 1})]


@pytest.mark.parametrize("reply", ["words", '<|channel|>commentary to=functions.f json<|message|>{"x": <|call|>'])
def test_what_fits_no_region_is_content(reply: str) -> None:
    assert message_of(parsed("channels", list(reply)))["content"].endswith(reply)


@pytest.mark.parametrize("reply", ["no answer", '{"content": 5', "[]", "[" * 100_000, "null", '{"tool_calls": [5]}'])
@pytest.mark.parametrize("name", ["json", "whole"])
def test_a_whole_reply_that_cannot_be_read_is_content(name: str, reply: str) -> None:
    message = message_of(parsed(name, [reply]))
    assert message["content"] == reply


PIECES = ["<think>\n", "</think>", "<tool_call>\n", "\n</tool_call>", "<function=weather>", "<|im_end|>", xml(city="a")]


@given(st.sampled_from(sorted(SCHEMAS)), st.lists(st.sampled_from([*PIECES, *"<a \n{"]), max_size=14), st.data())
def test_any_text_in_any_pieces_gives_one_message(name: str, pieces: list[str], data: st.DataObject) -> None:
    reply = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(reply)), max_size=6)))
    chunks = [reply[a:b] for a, b in zip([0, *cuts], [*cuts, len(reply)], strict=True)]
    assert message_of(parsed(name, chunks)) == message_of(parsed(name, [reply]))


@pytest.mark.parametrize(
    ("node", "value", "found"),
    [
        ({"const": 5}, None, 5),
        ({"type": "string", "default": "d", "x-regex": "x"}, "y", "d"),
        ({"x-regex": "(?P<a>x)|(?P<b>y)"}, "y", {"b": "y"}),
        ({"x-regex": "x."}, "ax\n", "x\n"),
        ({"type": "array", "x-regex-iterator": r"\d", "items": {"type": "integer"}}, "1a2", [1, 2]),
        ({"type": "array", "x-regex-iterator": r"\d"}, "a", None),
        ({"type": "object", "x-regex-key-value": r"(?P<key>\w)=(?P<value>\w)"}, "a=1 b=2", {"a": "1", "b": "2"}),
        ({"x-regex-substitutions": [["a+", "b"], ["c", ""]]}, "aacd", "bd"),
        ({"x-mapping": {"yes": True}}, "yes", True),
        ({"x-mapping-regex": [[r"\s", ""]]}, "a b", "ab"),
        ({"x-parser": "json", "type": "object"}, '{"a": null}', {"a": None}),
        ({"x-parser": "json", "x-parser-args": {"allow_non_json": True}}, "{", "{"),
        ({"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}},
         {"a": "1", "b": 2}, {"a": 1, "b": "2"}),
        ({"type": "object", "properties": {"a": {}}}, {"a": 1, "b": 2}, {"a": 1}),
        ({"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}}, ["1", "2"], [1, "2"]),
        ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, "x", "x"),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, "3", 3),
        ({"type": ["boolean", "string"]}, "maybe", "maybe"),
        ({"type": "boolean"}, 1, True),
        ({"type": "boolean"}, "False", False),
        ({"type": "number"}, "2.5", 2.5),
        ({"type": "number"}, "7", 7),
        ({"type": "integer"}, "3.0", 3),
        ({"type": "integer"}, "3.5", None),
        ({"type": "integer"}, "9" * 400, None),
        ({"type": "number"}, True, None),
        ({"type": "number"}, [], None),
        ({"type": "null"}, "x", None),
        ({"type": "any"}, "x", "x"),
        (True, "x", "x"),
        (False, "x", None),
    ],
)  # fmt: skip
def test_the_language_of_schemas(node: Any, value: Any, found: Any) -> None:
    assert evaluate(node, value) == found


@pytest.mark.parametrize(
    ("node", "path"),
    [
        ({"type": "record"}, "model.response_schema.type"),
        ({"properties": {"content": {"x-regex": "("}}}, "model.response_schema.properties.content.x-regex"),
        ({"properties": {"content": {"x-regex": 5}}}, "model.response_schema.properties.content.x-regex"),
        ({"properties": {"content": 5}}, "model.response_schema.properties.content"),
        ({"properties": []}, "model.response_schema.properties"),
        ({"x-regex-key-value": "a"}, "model.response_schema.x-regex-key-value"),
        ({"x-parser": "yaml"}, "model.response_schema.x-parser"),
        ({"x-mapping": []}, "model.response_schema.x-mapping"),
        ({"x-mapping-regex": ["a"]}, "model.response_schema.x-mapping-regex"),
        ({"x-regex-substitutions": [["(", ""]]}, "model.response_schema.x-regex-substitutions"),
        ({"properties": {"summary": {}}}, "model.response_schema.properties.summary"),
        ({"items": {"oneOf": [{"x-regex": "["}]}}, "model.response_schema.items.oneOf[0].x-regex"),
    ],
)
def test_a_schema_that_cannot_be_used_names_the_place(node: Any, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ResponseSchema(node)
    assert str(caught.value).startswith(f"{path}: ")
