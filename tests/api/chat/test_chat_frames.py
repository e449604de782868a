"""Deltas → chunks: streamed and collected replies of a parser that is told what to say."""

from __future__ import annotations

from typing import Any

import pytest
from support.asgi_client import AsgiClient
from support.fake_engine import FakeEngine, say

from llamafast.chat.format import ChatFormat
from llamafast.chat.reply.deltas import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)

PATH = "/v1/chat/completions"
TOOLS = {"tools": [{"type": "function", "function": {"name": "f"}}]}
FUNCTIONS = {"functions": [{"name": "f"}]}
MESSAGES = [{"role": "user", "content": "hi"}]

MEANING: dict[str, list[Delta]] = {
    "think": [ReasoningDelta("hm\n")],
    "say": [ContentDelta('"yes"')],
    "call": [ToolCallBegin(0, "call_a", "f"), ToolCallArguments(0, '{"a":')],
    "more": [ToolCallArguments(0, " 1}"), ToolCallEnd(0)],
    "again": [ToolCallBegin(1, "call_b", "f"), ToolCallArguments(1, "{}"), ToolCallEnd(1)],
}


class Told:
    def feed(self, text: str) -> list[Delta]:
        return list(MEANING.get(text, []))

    def finish(self) -> list[Delta]:
        return []


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> None:
    monkeypatch.setattr(ChatFormat, "parser", lambda *_, **__: Told)
    engine.script = say(*MEANING)


async def deltas(client: AsgiClient, **fields: Any) -> list[dict[str, Any]]:
    response = await client.post(PATH, {"messages": MESSAGES, "stream": True, **fields})
    return [event["choices"][0]["delta"] for event in response.events]


async def test_a_stream_of_every_kind_of_delta(client: AsgiClient) -> None:
    def more(index: int, arguments: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}

    def begin(index: int, call: str) -> dict[str, Any]:
        function = {"name": "f", "arguments": ""}
        return {"tool_calls": [{"index": index, "id": call, "type": "function", "function": function}]}

    assert await deltas(client, **TOOLS) == [
        {"role": "assistant", "content": None, "refusal": None},
        {"reasoning_content": "hm\n"},
        {"content": '"yes"'},
        begin(0, "call_a"),
        more(0, '{"a":'),
        more(0, " 1}"),
        begin(1, "call_b"),
        more(1, "{}"),
        {},
    ]


async def test_the_same_collected(client: AsgiClient) -> None:
    body = (await client.post(PATH, {"messages": MESSAGES, **TOOLS})).json
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": '"yes"',
        "refusal": None,
        "reasoning_content": "hm\n",
        "tool_calls": [
            {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
            {"id": "call_b", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        ],
    }
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}


async def test_content_is_null_beside_calls_and_empty_without(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = say("call", "more")
    body = (await client.post(PATH, {"messages": MESSAGES, **TOOLS})).json
    assert body["choices"][0]["message"]["content"] is None
    engine.script = say()
    body = (await client.post(PATH, {"messages": MESSAGES, **TOOLS})).json
    assert body["choices"][0]["message"]["content"] == ""


async def test_one_call_where_parallel_calls_are_not_wanted(client: AsgiClient) -> None:
    body = (await client.post(PATH, {"messages": MESSAGES, **TOOLS, "parallel_tool_calls": False})).json
    assert [call["id"] for call in body["choices"][0]["message"]["tool_calls"]] == ["call_a"]
    assert body["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
async def test_behind_the_only_call_nothing_is_computed(client: AsgiClient, engine: FakeEngine, stream: bool) -> None:
    engine.script = say("call", "more", *"unseen" * 9, reason="length")
    options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    response = await client.post(PATH, {"messages": MESSAGES, **TOOLS, "parallel_tool_calls": False, **options})
    (last,) = response.events[-2]["choices"] if stream else response.json["choices"]
    usage = (response.events[-1] if stream else response.json)["usage"]
    assert (last["finish_reason"], engine.generations[-1].cancelled) == ("tool_calls", True)
    assert usage["completion_tokens"] <= 2


async def test_the_old_form_of_a_call(client: AsgiClient) -> None:
    function = {"name": "f", "arguments": '{"a": 1}'}
    (choice,) = (await client.post(PATH, {"messages": MESSAGES, **FUNCTIONS})).json["choices"]
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == function
    assert "tool_calls" not in choice["message"]
    calls = [delta["function_call"] for delta in await deltas(client, **FUNCTIONS) if "function_call" in delta]
    assert calls == [{"name": "f", "arguments": ""}, {"arguments": '{"a":'}, {"arguments": " 1}"}]


async def test_reasoning_tokens_in_the_usage_of_a_stream(client: AsgiClient) -> None:
    response = await client.post(
        PATH, {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert response.events[-1]["usage"]["completion_tokens_details"] == {"reasoning_tokens": 1}


async def test_timings_are_told_to_who_asks(client: AsgiClient, engine: FakeEngine) -> None:
    engine.cached_tokens = 1
    for stream in (False, True):
        response = await client.post(PATH, {"messages": MESSAGES, "timings_per_token": True, "stream": stream})
        told = response.events[-1] if stream else response.json
        assert told["choices"][0]["finish_reason"] == "tool_calls"
        assert (told["timings"]["cache_n"], told["timings"]["predicted_n"]) == (1, len(MEANING) + 1)
        plain = await client.post(PATH, {"messages": MESSAGES, "stream": stream})
        assert "timings" not in (plain.events[-1] if stream else plain.json)
