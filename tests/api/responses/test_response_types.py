"""Responses and their events against the types of the ``openai`` package, taken strictly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace
from openai.types import responses
from pydantic import TypeAdapter
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import INFO, FakeEngine, play, say

from llamafast.engine.types import Event
from llamafast.errors import EngineFailure, QueueFull

URL = "/v1/responses"
WHOLE: TypeAdapter[Any] = TypeAdapter(responses.Response)
EVENT: TypeAdapter[Any] = TypeAdapter(responses.ResponseStreamEvent)

FUNCTION = {"type": "function", "name": "f"}
TOOLS = [
    {**FUNCTION, "parameters": {"type": "object", "properties": {}}},
    {"type": "function", "name": "g", "strict": None, "description": None, "parameters": None},
    {**FUNCTION, "name": "h", "strict": True, "parameters": {"type": "object", "properties": {}, "required": []}},
    {"type": "custom", "name": "c"},
    {"type": "namespace", "name": "n", "description": "d", "tools": [{"type": "function", "name": "i"}]},
    {"type": "web_search"},
    {"type": "local_shell"},
    {"type": "shell"},
    {"type": "apply_patch"},
]
CALLS = [
    ("f", {}),
    ("c", {"input": "x"}),
    ("n__i", {}),
    ("shell", {"commands": ["ls"]}),
    ("local_shell", {"command": ["ls"]}),
    ("apply_patch", {"type": "create_file", "path": "p", "diff": "d"}),
]
CALLING = "\n".join(
    f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>" for name, arguments in CALLS
)
SCHEMA = {"type": "json_schema", "name": "n", "schema": {"type": "object", "properties": {}}}
OPTIONS = {
    "instructions": "x",
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"verbosity": "low", "format": SCHEMA},
    "metadata": {"a": "b"},
    "max_tool_calls": 3,
    "max_output_tokens": 12,
    "top_logprobs": 2,
    "user": "u",
    "safety_identifier": "s",
    "prompt_cache_key": "k",
    "truncation": "auto",
}
FIELDS = [*OPTIONS, "tools", "tool_choice", "parallel_tool_calls", "temperature", "top_p", "store", "include"]
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, "Hello."),
    "options": (OPTIONS, "{}"),
    "nulls": (dict.fromkeys(FIELDS), "Hello."),
    "inner nulls": ({"text": {"format": None, "verbosity": None}, "reasoning": {"effort": None}}, "Hello."),
    "json object": ({"text": {"format": {"type": "json_object"}}}, "{}"),
    "reasoning": ({"reasoning": {"summary": "auto"}}, "<think>Hm.</think>Hello."),
    "tools": ({"tools": TOOLS}, CALLING),
    "forced": ({"tools": [FUNCTION], "tool_choice": FUNCTION}, CALLING.split("\n<")[0]),
    "allowed": (
        {"tools": [FUNCTION], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [FUNCTION]}},
        "Hello.",
    ),
}


def serving(*, script: Any) -> AsgiClient:
    engine = FakeEngine()
    source = "{{ messages | tojson }}{{ tools | tojson }}{# <think> </think> #}"
    engine.info = replace(INFO, max_seq_len=1 << 15, chat_template=source)
    engine.script = script
    return AsgiClient(make_app(engine, max_body_bytes=1 << 20))


def events_in(body: bytes) -> list[str]:
    return [line[6:] for line in body.decode().splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize(("fields", "reply"), CASES.values(), ids=CASES)
async def test_every_object_is_of_its_type(fields: dict[str, Any], reply: str) -> None:
    client = serving(script=say(reply))
    response = await client.post(URL, {"input": "Hi", **fields})
    WHOLE.validate_json(response.body, strict=True)
    asked = fields.get("text") or {}
    assert response.json["text"]["verbosity"] == (asked.get("verbosity") or "medium")
    assert response.json["text"]["format"]["type"] == (asked.get("format") or {"type": "text"})["type"]
    streamed = await client.post(URL, {"input": "Hi", "stream": True, **fields})
    events = events_in(streamed.body)
    for event in events:
        EVENT.validate_json(event, strict=True)
    last = json.loads(events[-1])["response"]
    assert [item["type"] for item in last["output"]] == [item["type"] for item in response.json["output"]]
    assert "message" in str(last["output"]) or "call" in str(last["output"])


async def test_functions_say_whether_they_are_strict() -> None:
    response = await serving(script=say("Hello.")).post(URL, {"input": "Hi", "tools": TOOLS})
    tools = response.json["tools"]
    assert [tool["strict"] for tool in tools if tool["type"] == "function"] == [False, False, True]
    assert [tool["strict"] for tool in tools[4]["tools"]] == [False]
    assert tools[3] == TOOLS[3]
    assert tools[5:] == TOOLS[5:]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineFailure("broken"), "server_error"),
        (QueueFull("full"), "rate_limit_exceeded"),
        (RuntimeError("a bug"), "server_error"),
    ],
)
async def test_a_response_that_fails(error: Exception, code: str) -> None:
    client = serving(script=play([Event(0, "Hel", 1)], error))
    response = await client.post(URL, {"input": "Hi", "stream": True})
    events = events_in(response.body)
    for event in events:
        EVENT.validate_json(event, strict=True)
    assert json.loads(events[-1])["response"]["error"]["code"] == code
