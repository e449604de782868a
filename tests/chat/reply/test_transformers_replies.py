"""What replies say according to ``transformers``, which is told the form of each family by a response template."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.replies import REPLIES, TOOLS
from transformers.utils.chat_parsing import parse_response

from llamafast.chat.reply.deltas import assemble
from llamafast.chat.reply.dialects.parser import DialectParser
from llamafast.chat.reply.dialects.tables import dialect_named

NAMED = {"function": {"name": "{name}", "arguments": "{content}"}}
OBJECT = {"function": {"name": "{content.name}", "arguments": "{content.arguments}"}}
THINK = {"open": "<think>", "close": "</think>"}


def template(calls: dict[str, Any], reasoning: dict[str, Any] = THINK, content: dict[str, Any] | None = None) -> Any:
    fields = {"reasoning": reasoning, "content": content or {"repeats": True, "join": ""}, "tool_calls": calls}
    return {"start_anchor": "no anchor", "fields": fields}


def listed(begin: str, end: str | None, name: str = "name", arguments: str = "arguments") -> dict[str, Any]:
    """A JSON list of calls."""
    each = {"function": {"name": f"{{{name}}}", "arguments": f"{{{arguments}}}"}}
    close = {} if end is None else {"close": end}
    return {"open": begin, **close, "content": "json", "transform": each, "transform_each": True}


def named(begin: str, end: str, **arguments: Any) -> dict[str, Any]:
    """A call whose name is in the pattern ``begin`` and whose text is JSON."""
    call = {"open_pattern": begin, "close_pattern": end, "repeats": True, "content": "json", "transform": NAMED}
    return call | ({"content_args": arguments} if arguments else {})


def tagged(begin: str, end: str, tag: str) -> dict[str, Any]:
    call = {"open_pattern": begin, "close_pattern": end, "repeats": True, "transform": NAMED}
    return call | {"content": "xml-inline", "content_args": {"tag_pattern": tag}}


FORMS = {
    "hermes": template(
        {"open": "<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json", "transform": OBJECT}
    ),
    "qwen-xml": template(
        tagged(
            r"<tool_call>\s*<function=(?P<name>[^>]+)>",
            "</tool_call>",
            r"<parameter=(?P<key>[^>]+)>\n(?P<value>.*?)\n</parameter>",
        )
    ),
    "mistral": template(listed("[TOOL_CALLS]", None)),
    "gemma-4": template(
        named(
            r"<\|tool_call>call:(?P<name>\w+)",
            r"<tool_call\|>",
            string_delims=[['<|"|>', '<|"|>']],
            unquoted_keys=True,
        ),
        {"open": "<|channel>thought\n", "close": "<channel|>"},
    ),
    "harmony": template(
        named(
            r"<\|channel\|>commentary to=functions\.(?P<name>[\w.-]+)[^<]*(?:<\|constrain\|>json)?<\|message\|>",
            r"<\|call\|>",
        ),
        {"open": "<|channel|>analysis<|message|>", "close": "<|end|>"},
        {
            "open": ["<|channel|>final<|message|>", "<|channel|>commentary<|message|>"],
            "close": ["<|return|>", "<|end|>"],
            "repeats": True,
            "join": "",
        },
    ),
    "deepseek-r1": template(
        named(
            r"(?:<｜tool▁calls▁begin｜>)?<｜tool▁call▁begin｜>function<｜tool▁sep｜>(?P<name>\w+)\n```json\n",
            r"\n```<｜tool▁call▁end｜>(?:<｜tool▁calls▁end｜>)?",
        )
    ),
    "deepseek-v3.1": template(
        named(
            r"(?:<｜tool▁calls▁begin｜>)?<｜tool▁call▁begin｜>(?P<name>\w+)<｜tool▁sep｜>",
            r"<｜tool▁call▁end｜>(?:<｜tool▁calls▁end｜>)?",
        )
    ),
    "deepseek-v3.2": template(
        tagged(
            r'(?:<｜DSML｜function_calls>\s*)?<｜DSML｜invoke name="(?P<name>\w+)">',
            r"</｜DSML｜invoke>\s*(?:</｜DSML｜function_calls>)?",
            r'<｜DSML｜parameter name="(?P<key>[^"]+)" string="\w+">(?P<value>.*?)</｜DSML｜parameter>',
        )
    ),
    "glm-4": template(
        tagged(
            r"<tool_call>(?P<name>\w+)",
            "</tool_call>",
            r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>",
        )
    ),
    "phi-4": template(listed("<|tool_call|>", "<|/tool_call|>")),
    "granite-3": template(listed("<|tool_call|>", None)),
    "nemotron": template(listed("<TOOLCALL>", "</TOOLCALL>")),
    "command": template(
        listed("<|START_ACTION|>", "<|END_ACTION|>", "tool_name", "parameters"),
        {"open": "<|START_THINKING|>", "close": "<|END_THINKING|>"},
        {"open": "<|START_RESPONSE|>", "close": "<|END_RESPONSE|>"},
    ),
    "kimi-k2": template(
        named(
            r"(?:<\|tool_calls_section_begin\|>)?<\|tool_call_begin\|>functions\.(?P<name>\w+):\d+"
            r"<\|tool_call_argument_begin\|>",
            r"<\|tool_call_end\|>(?:<\|tool_calls_section_end\|>)?",
        )
    ),
    "minimax-m2": template(
        tagged(
            r'(?:<minimax:tool_call>\s*)?<invoke name="(?P<name>\w+)">',
            r"</invoke>\s*(?:</minimax:tool_call>)?",
            r'<parameter name="(?P<key>[^"]+)">(?P<value>.*?)</parameter>',
        )
    ),
    "seed-oss": template(
        tagged(
            r"<seed:tool_call>\s*<function=(?P<name>[^>]+)>",
            "</seed:tool_call>",
            r"<parameter=(?P<key>[^>]+)>(?P<value>.*?)</parameter>",
        ),
        {"open": "<seed:think>", "close": "</seed:think>"},
    ),
}
# transformers follows no $ref
DEFINITIONS = json.loads(
    json.dumps([tool.definition for tool in TOOLS]).replace('"$ref": "#/$defs/Place"', '"type": "object"')
)


@pytest.mark.parametrize("name", FORMS)
def test_transformers_reads_the_same(name: str) -> None:
    dialect, begun, text, _ = REPLIES[name]
    theirs = parse_response(text, FORMS[name], prefix=begun, tools=DEFINITIONS)
    parser = DialectParser(dialect_named(dialect), TOOLS, begun=begun)
    ours = assemble(parser.feed(text) + parser.finish())
    assert ours.content.strip() == theirs.get("content", "")
    assert ours.reasoning == theirs.get("reasoning", "")
    calls = [call["function"] for call in theirs.get("tool_calls", [])]
    assert [{"name": c.name, "arguments": json.loads(c.arguments)} for c in ours.tool_calls] == calls
