"""``model.response_template``: the message of ``transformers``' own parser, however the text was cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.chunked import chunkings, message_of
from transformers.utils.chat_parsing import parse_response

from llamafast.chat.reply.declared.response_template import ResponseTemplate
from llamafast.chat.reply.deltas import ContentDelta, ReasoningDelta, assemble
from llamafast.chat.tools import read_tools
from llamafast.errors import ConfigError

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer"},
                "wind": {"type": "number"},
                "deep": {"type": "object"},
                "list": {"type": "array"},
                "yes": {"type": "boolean"},
                "some": {"type": ["integer", "null"]},
                "any": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            },
        },
    },
}
THINK = {"open": "<think>", "close": "</think>"}
FUNCTION = {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}}

TEMPLATES: dict[str, dict[str, Any]] = {
    "json in tags": {
        "start_anchor": "<|im_start|>assistant\n",
        "defaults": {"role": "assistant"},
        "fields": {
            "reasoning_content": THINK,
            "content": {"close": "<|im_end|>"},
            "tool_calls": {
                "open": "<tool_call>",
                "close": "</tool_call>",
                "content": "json",
                "repeats": True,
                "transform": {
                    "type": "function",
                    "function": {"name": "{content.name}", "arguments": "{content.arguments}"},
                },
            },
        },
    },
    "xml parameters": {
        "start_anchor_pattern": r"<\|im_start\|>assistant\n",
        "fields": {
            "thinking": THINK,
            "content": {},
            "tool_calls": {
                "open_pattern": r"<tool_call>\s*<function=(?P<name>[^>\n]+)>",
                "close_pattern": r"</function>\s*</tool_call>",
                "content": "xml-inline",
                "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\n(?P<value>.*?)\n</parameter>"},
                "repeats": True,
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
        },
    },
    "bare keys": {
        "start_anchor": "<|turn>model\n",
        "fields": {
            "reasoning": {"open": "<|channel>thought\n", "close": "<channel|>"},
            "content": {"close": ["<turn|>", "<turn|>\n"]},
            "tool_calls": {
                "open_pattern": r"<\|tool_call>call:(?P<name>\w+)",
                "close": "<tool_call|>",
                "content": "json",
                "content_args": {"unquoted_keys": True, "string_delims": [['<|"|>', '<|"|>']]},
                "repeats": True,
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
        },
    },
    "channels": {
        "start_anchor": "<|start|>assistant",
        "fields": {
            "thinking": {
                "open": "<|channel|>analysis<|message|>", "close": ["<|end|>"], "repeats": True, "join": "\n\n",
            },
            "content": {"open": "<|channel|>final<|message|>", "close": ["<|end|>", "<|return|>"]},
            "tool_calls": {
                "open_pattern": r"<\|channel\|>commentary to=functions\.(?P<name>[\w-]+).*?<\|message\|>",
                "close": "<|call|>",
                "content": "json",
                "repeats": True,
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
        },
    },
    "one list": {
        "start_anchor": "[/INST]",
        "fields": {
            "content": {},
            "tool_calls": {
                "open": "[TOOL_CALLS]",
                "content": "json",
                "transform": FUNCTION,
                "transform_each": True,
            },
        },
    },
    "lines": {
        "start_anchor": "A:",
        "fields": {
            "content": {"content_args": {"strip": False}},
            "tool_calls": {
                "open_pattern": r"\nCALL (?P<name>\w+)\n",
                "close": "\nEND",
                "content": "kv-lines",
                "content_args": {"kv_sep": "="},
                "repeats": True,
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
        },
    },
    "fields of its own": {
        "start_anchor": "A:",
        "fields": {
            "summary": {"open": "<sum>", "close": "</sum>"},
            "scores": {
                "open_pattern": "<score of=(?P<of>[a-z]+)>", "close": "</score>", "content": "json", "repeats": True,
                "transform": {"{of}": "{content}"},
            },
            "content": {},
        },
    },
    "notes only": {"start_anchor": "A:", "fields": {"notes": {"content_args": {"strip": False}}}},
}  # fmt: skip
PROMPTS = {
    "fields of its own": "Q: hi\nA:",
    "notes only": "Q: hi\nA:",
    "json in tags": "<|im_start|>user\n<think>x</think><|im_end|>\n<|im_start|>assistant\n",
    "xml parameters": "<|im_start|>assistant\nold<|im_end|>\n<|im_start|>assistant\n<think>\n",
    "bare keys": "<|turn>user\nhi<turn|>\n<|turn>model\n",
    "channels": "<|start|>user<|message|>hi<|end|><|start|>assistant",
    "one list": "[INST]hi[/INST]",
    "lines": "Q: hi\nA:",
}
NESTED = '{"name": "weather", "arguments": {"city": "Li\\"l\\n\\u00e9", "deep": {"a": [1, null, true]}, "yes": false}}'
XML = (
    '<tool_call>\n<function=weather>\n<parameter=city>\nPar"is"\n\nnow\n</parameter>\n<parameter=days>\n3\n</parameter>\n'
    "<parameter=wind>\n2.5\n</parameter>\n<parameter=yes>\nTrue\n</parameter>\n<parameter=some>\nnull\n</parameter>\n"
    '<parameter=any>\n7\n</parameter>\n<parameter=list>\n[1, "a"]\n</parameter>\n<parameter=else>\n5\n</parameter>\n'
    "</function>\n</tool_call>"
)
REPLIES = [
    ("json in tags", "Hello there."),
    ("json in tags", "  Hello < there <|im  \n"),
    ("json in tags", "<think>\nwhy <not>\n</think>\n\nBecause.\n<|im_end|>"),
    ("json in tags", f"<think>t</think>Let me see.\n\n<tool_call>{NESTED}</tool_call>"),
    ("json in tags", f"<tool_call>\n{NESTED}\n</tool_call><tool_call>{NESTED}</tool_call>"),
    ("json in tags", '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'),
    ("json in tags", "<think>cut in the middle of a thought"),
    ("json in tags", ""),
    ("xml parameters", f"I should call.\n</think>\n\nLet me look.\n{XML}"),
    ("xml parameters", f"a</think>{XML}{XML}"),
    ("xml parameters", "a</think><tool_call><function=weather></function></tool_call>"),
    ("bare keys", '<|tool_call>call:weather{city:<|"|>Par"is,<|"|>,days:3,deep:{a:[1,null,true]}}<tool_call|>'),
    ("bare keys", "<|channel>thought\nhm<channel|>Yes.<turn|>"),
    ("channels", "<|channel|>analysis<|message|>User asks<|end|><|start|>assistant<|channel|>final<|message|>Paris!"),
    ("channels", "<|channel|>analysis<|message|>a<|end|><|channel|>analysis<|message|>b<|end|>"),
    ("channels", '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"days": 3}<|call|>'),
    ("one list", f"Sure.[TOOL_CALLS][{NESTED}, {NESTED}]"),
    ("fields of its own", "<sum>Short.</sum>Long."),
    ("fields of its own", "Long.\n<sum>Short.\n</sum>"),
    ("fields of its own", "<sum>Short."),
    ("fields of its own", '<score of=tone>{"a": [1]}</score>Good.'),
    ("notes only", " only notes"),
    ("lines", " Sure. \nCALL weather\ncity = Paris: 1\ndays=3\nother\nEND"),
]  # fmt: skip


def parsed(name: str, chunks: list[str], tools=(TOOL,), **options: Any):
    options = {"split_reasoning": True, **options}
    parser = ResponseTemplate(TEMPLATES[name]).parser(PROMPTS[name], read_tools(list(tools)), **options)()
    return [delta for chunk in chunks for delta in parser.feed(chunk)] + parser.finish()


def expected(name: str, text: str) -> dict[str, Any]:
    """What ``transformers`` finds, in the shape of ``message_of``."""
    message = parse_response(text, TEMPLATES[name], prefix=PROMPTS[name], tools=[TOOL])
    calls = message.get("tool_calls", [])
    reasoning = next(
        (message[field] for field in ("reasoning_content", "thinking", "reasoning") if field in message), ""
    )
    return {
        "content": message.get("content", ""),
        "reasoning": reasoning,
        "calls": [(call["function"]["name"], call["function"]["arguments"]) for call in calls],
    }


@pytest.mark.parametrize(("name", "text"), REPLIES)
def test_the_message_of_transformers_however_the_text_is_cut(name: str, text: str) -> None:
    wanted = expected(name, text)
    for chunks in chunkings(text):
        assert message_of(parsed(name, chunks)) == wanted


def test_prose_is_passed_on_as_it_comes() -> None:
    deltas = [parsed("json in tags", ["<thi", "nk> a", "b\n", "c</th"])[i] for i in range(3)]
    assert deltas == [ReasoningDelta("a"), ReasoningDelta("b"), ReasoningDelta("\nc")]
    parser = ResponseTemplate(TEMPLATES["json in tags"]).parser("", (), split_reasoning=True)()
    assert parser.feed("Hello") == [ContentDelta("Hello")]
    assert parser.feed(" <") == []
    assert parser.feed("b") == [ContentDelta(" <b")]


@pytest.mark.parametrize(
    ("name", "text", "content"),
    [
        ("json in tags", 'a <tool_call>{"name": </tool_call> b', 'a<tool_call>{"name": </tool_call>\nb'),
        ("json in tags", '<tool_call>{"name": "weather"', '<tool_call>{"name": "weather"'),
        ("json in tags", "<tool_call>5</tool_call>", "<tool_call>5</tool_call>"),
        ("json in tags", f"<tool_call>{'[' * 100_000}</tool_call>", f"<tool_call>{'[' * 100_000}</tool_call>"),
        (
            "json in tags",
            '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
            '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>',
        ),
        (
            "json in tags",
            '<tool_call>{"name": "f", "arguments": "no json"}</tool_call>',
            '<tool_call>{"name": "f", "arguments": "no json"}</tool_call>',
        ),
        ("one list", "[TOOL_CALLS]{}", "[TOOL_CALLS]{}"),
        ("channels", "no channel at all", "no channel at all"),
    ],
)
def test_what_cannot_be_read_is_content(name: str, text: str, content: str) -> None:
    for chunks in ([text], list(text)) if len(text) < 1000 else ([text],):
        assert message_of(parsed(name, chunks)) == {"content": content, "reasoning": "", "calls": []}


def test_text_fields_keep_what_all_their_regions_say() -> None:
    text = f"First.\n<tool_call>{NESTED}</tool_call>\n<think>hm</think> Then.\n"
    assert message_of(parsed("json in tags", list(text)))["content"] == "First.\nThen."


def test_a_field_of_another_name_is_dropped_even_where_it_cannot_be_read() -> None:
    assert message_of(parsed("fields of its own", list("<score of=tone>no JSON</score>Good.")))["content"] == "Good."
    assert parsed("fields of its own", list("<sum>Short.</sum>")) == []


def test_reasoning_may_stay_in_the_content() -> None:
    deltas = parsed("json in tags", ["<think>a\n</think>\nb"], split_reasoning=False)
    assert assemble(deltas).content == "<think>a\n</think>b"


def test_the_prompts_own_text_is_in_no_reply() -> None:
    template = ResponseTemplate(TEMPLATES["channels"])
    parser = template.parser(PROMPTS["channels"] + "<|channel|>final<|message|>Sure, ", (), split_reasoning=True)()
    assert assemble(parser.feed("yes") + parser.finish()).content == "yes"
    parser = template.parser("<|start|>assistant<|channel|>", (), split_reasoning=True)()
    assert assemble(parser.feed("words") + parser.finish()).content == "words"


PIECES = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<|im_end|>",
    NESTED,
    "{",
    "<",
    "a",
    " ",
    "\n",
    "é",
    "1",
]


@given(
    st.sampled_from(sorted(TEMPLATES)), st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=12), st.data()
)
def test_any_text_in_any_pieces_gives_one_message(name: str, pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert message_of(parsed(name, chunks)) == message_of(parsed(name, [text]))


def test_the_cost_of_a_token_does_not_grow() -> None:
    parser = ResponseTemplate(TEMPLATES["json in tags"]).parser("", (), split_reasoning=True)()
    for _ in range(20_000):
        parser.feed("word <b> ")
    assert len(parser._scanner._text) < 4096


def template(**changes: Any) -> dict[str, Any]:
    return {"start_anchor": "A", "fields": {"content": {}}, **changes}


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ([], "model.response_template: must be an object"),
        (template(more=1), "unknown keys more"),
        (template(version=2), "version"),
        (template(fields={}), "fields"),
        (template(defaults=[]), "defaults"),
        ({"fields": {"content": {}}}, "start_anchor"),
        (template(start_anchor_pattern="x"), "exclude each other"),
        (template(start_anchor=["a", ""]), "start_anchor"),
        (template(fields={"content": {}, "thinking": {}}), "only one"),
        (template(fields={"content": {"more": 1}}), "fields.content: unknown keys more"),
        (template(fields={"content": {"content": "yaml"}}), "fields.content.content"),
        (template(fields={"content": {"content": "json"}}), "as it comes"),
        (template(fields={"content": {"open_pattern": "("}}), "open_pattern: not a regular expression"),
        (template(fields={"content": {"open_pattern": 5}}), "open_pattern: not a regular expression"),
        (template(fields={"content": {"open_pattern": "(?P<x>a)"}}), "the groups x"),
        (template(fields={"content": {"join": ","}}), "join"),
        (template(fields={"tool_calls": {"open": "x", "transform": {"a": "b {content}"}}}), "whole string"),
        (template(fields={"tool_calls": {"open": "x", "transform_each": True}}), "transform_each"),
        (template(fields={"tool_calls": {"open": "x", "content": "xml-inline"}}), "tag_pattern"),
        (template(fields={"tool_calls": {"content": "xml-inline", "content_args": {"tag_pattern": "a"}}}), "named key"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_used_names_the_place(spec: Any, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ResponseTemplate(json.loads(json.dumps(spec)))
    assert path in str(caught.value)
    assert str(caught.value).startswith("model.response_template")
