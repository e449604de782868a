"""Replies as families of models write them, and what they say."""

from __future__ import annotations

from typing import Any, NamedTuple

from llamafast.chat.tools import read_tools

WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "where": {"$ref": "#/$defs/Place"},
            "unit": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        },
        "$defs": {"Place": {"type": "object"}},
    },
}
TOOLS = read_tools([{"type": "function", "function": f} for f in (WEATHER, {"name": "now"})])
PARIS = {"city": "Paris", "days": 3}


class Said(NamedTuple):
    content: str
    reasoning: str
    calls: list[tuple[str, Any]]


# name: dialect, what the prompt ends with, the text, what it says
REPLIES: dict[str, tuple[str, str, str, Said]] = {
    "hermes": (
        "hermes",
        "",
        "<think>\nI need it.\n</think>\n\nLet me look.\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        Said("Let me look.", "I need it.", [("get_weather", PARIS), ("now", {})]),
    ),
    "hermes, arguments first, further keys": (
        "hermes",
        "",
        '<tool_call>{"id": "1", "arguments": {"city": "Paris", "days": 3}, "type": "function", "name": "get_weather"}'
        '</tool_call><tool_call>{"type": "function", "function": {"name": "now", "arguments": "{}"}}</tool_call>',
        Said("", "", [("get_weather", PARIS), ("now", {})]),
    ),
    "qwen-xml": (
        "qwen-xml",
        "<think>",
        "I should call.\n</think>\n\nLet me look.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\n"
        'Pa"ris\n\\n\n</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=where>\n{"lat": 1.5, "tags": '
        "[true, null]}\n</parameter>\n<parameter=unit>\nnull\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        Said(
            "Let me look.",
            "I should call.",
            [
                (
                    "get_weather",
                    {"city": 'Pa"ris\n\\n', "days": 3, "where": {"lat": 1.5, "tags": [True, None]}, "unit": None},
                ),
                ("now", {}),
            ],
        ),
    ),
    "qwen-xml without its first mark": (
        "qwen-xml",
        "",
        "<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
        Said("", "", [("get_weather", {"city": "Paris"})]),
    ),
    "llama-3": (
        "llama-3",
        "",
        '{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}; {"name": "now", "parameters": {}}',
        Said("", "", [("get_weather", PARIS), ("now", {})]),
    ),
    "llama-3 with its tag": (
        "llama-3",
        "",
        '<|python_tag|>{"type": "function", "name": "now", "parameters": null}',
        Said("", "", [("now", {})]),
    ),
    "mistral": (
        "mistral",
        "",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}, "id": "abcDEF123"}, '
        '{"name": "now", "arguments": {}}]',
        Said("", "", [("get_weather", PARIS), ("now", {})]),
    ),
    "devstral": (
        "devstral",
        "",
        '[THINK]Hm.[/THINK]Sure.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 3}'
        "[TOOL_CALLS]now[CALL_ID]abcDEF123[ARGS]{}",
        Said("Sure.", "Hm.", [("get_weather", PARIS), ("now", {})]),
    ),
    "gemma-4": (
        "gemma-4",
        "",
        '<|channel>thought\nHm.<channel|>Sure. <|tool_call>call:get_weather{city:<|"|>Pa"ris, {x}<|"|>,days:3,'
        'where:{tags:[<|"|>a<|"|>,true,null]}}<tool_call|><|tool_call>call:now{}<tool_call|>',
        Said(
            "Sure.",
            "Hm.",
            [
                ("get_weather", {"city": 'Pa"ris, {x}', "days": 3, "where": {"tags": ["a", True, None]}}),
                ("now", {}),
            ],
        ),
    ),
    "harmony": (
        "harmony",
        "<|start|>assistant",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": '
        '"Paris", "days": 3}<|call|>',
        Said("Let me look.", "Hm.", [("get_weather", PARIS)]),
    ),
    "harmony, recipient before the channel": (
        "harmony",
        "<|start|>assistant",
        " to=functions.get_weather<|channel|>commentary json<|message|>{}",
        Said("", "", [("get_weather", {})]),
    ),
    "harmony, final": (
        "harmony",
        "<|start|>assistant",
        "<|channel|>analysis<|message|>A.<|end|><|start|>assistant<|channel|>final<|message|>Paris!\n<|return|>",
        Said("Paris!\n", "A.", []),
    ),
    "deepseek-r1": (
        "deepseek-r1",
        "<think>",
        "Hm.\n</think>\n\nSure.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Paris", "days": 3}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n'
        "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        Said("Sure.", "Hm.", [("get_weather", PARIS), ("now", {})]),
    ),
    "deepseek-v3.1": (
        "deepseek-v3.1",
        "",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris", "days": 3}'
        "<｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        Said("", "", [("get_weather", PARIS), ("now", {})]),
    ),
    "deepseek-v3.2": (
        "deepseek-v3.2",
        "",
        'Sure.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" '
        'string="true">Paris</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n'
        '</｜DSML｜invoke>\n<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>',
        Said("Sure.", "", [("get_weather", PARIS), ("now", {})]),
    ),
    "glm-4": (
        "glm-4",
        "",
        "\n<think>Hm.</think>\nSure.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        Said("Sure.", "Hm.", [("get_weather", PARIS), ("now", {})]),
    ),
    "glm-4 in one line": (
        "glm-4",
        "<think>",
        "Hm.</think><tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>",
        Said("", "Hm.", [("get_weather", {"city": "Paris"})]),
    ),
    "granite-3": (
        "granite-3",
        "",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}, {"name": "now", '
        '"arguments": {}}]',
        Said("", "", [("get_weather", PARIS), ("now", {})]),
    ),
    "phi-4": (
        "phi-4",
        "",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]<|/tool_call|>',
        Said("", "", [("get_weather", PARIS)]),
    ),
    "command": (
        "command",
        "",
        "<|START_THINKING|>I will look.<|END_THINKING|><|START_ACTION|>[\n    "
        '{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Paris", "days": 3}},\n    '
        '{"tool_call_id": "1", "tool_name": "now", "parameters": {}}\n]<|END_ACTION|>',
        Said("", "I will look.", [("get_weather", PARIS), ("now", {})]),
    ),
    "command, answer": (
        "command",
        "<|START_THINKING|>",
        "Hm.<|END_THINKING|><|START_RESPONSE|>Paris.<|END_RESPONSE|>",
        Said("Paris.", "Hm.", []),
    ),
    "command-r-plus": (
        "command-r-plus",
        "",
        'I will look.\nAction:\n```json\n[\n    {\n        "tool_name": "get_weather",\n        "parameters": '
        '{\n            "city": "Paris",\n            "days": 3\n        }\n    }\n]\n```',
        Said("I will look.", "", [("get_weather", PARIS)]),
    ),
    "kimi-k2": (
        "kimi-k2",
        "",
        "<think>Hm.</think>Sure.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        '<|tool_call_argument_begin|>{"city": "Paris", "days": 3}<|tool_call_end|><|tool_call_begin|>functions.now:1'
        "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        Said("Sure.", "Hm.", [("get_weather", PARIS), ("now", {})]),
    ),
    "kimi-k2, calls while thinking": (
        "kimi-k2",
        "",
        "<think>Hm. <|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}"
        "<|tool_call_end|><|tool_calls_section_end|>",
        Said("", "Hm.", [("now", {})]),
    ),
    "minimax-m2": (
        "minimax-m2",
        "<think>",
        'Hm.\n</think>\n\nSure.\n<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Paris'
        '</parameter>\n<parameter name="days">3</parameter>\n</invoke>\n<invoke name="now">\n</invoke>\n'
        "</minimax:tool_call>",
        Said("Sure.", "Hm.", [("get_weather", PARIS), ("now", {})]),
    ),
    "minimax-m1": (
        "minimax-m1",
        "",
        '<tool_calls>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n{"name": "now", '
        '"arguments": {}}\n</tool_calls>',
        Said("", "", [("get_weather", PARIS), ("now", {})]),
    ),
    "lfm2": (
        "lfm2",
        "",
        "<|tool_call_start|>[get_weather(city='Pa\\'r\"is', days=3, where={'tags': [True, None, ('a', 1)]}), now()]"
        "<|tool_call_end|>I am looking.",
        Said(
            "I am looking.",
            "",
            [("get_weather", {"city": "Pa'r\"is", "days": 3, "where": {"tags": [True, None, ["a", 1]]}}), ("now", {})],
        ),
    ),
    "nemotron": (
        "nemotron",
        "<think>",
        'Hm.\n</think>\n\n<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}]</TOOLCALL>',
        Said("", "Hm.", [("get_weather", PARIS)]),
    ),
    "seed-oss": (
        "seed-oss",
        "",
        "<seed:think>Hm.</seed:think>\n<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n"
        "<parameter=days>3</parameter>\n</function>\n</seed:tool_call>",
        Said("", "Hm.", [("get_weather", PARIS)]),
    ),
    "generic": (
        "generic",
        "",
        '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}',
        Said("", "", [("get_weather", PARIS)]),
    ),
}
