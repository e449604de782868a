"""Deltas to events: order, identity and numbers, for any sequence of Deltas."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter
from support.blank_response import blank_response

from llamafast.api.responses.events import Event
from llamafast.api.responses.tools import ToolTable
from llamafast.api.responses.writer import ResponseWriter
from llamafast.api.schema.fragments import CompletionTokensDetails, PromptTokensDetails, Usage
from llamafast.chat.reply.deltas import (
    ContentDelta,
    Delta,
    ReasoningDelta,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
)
from llamafast.errors import EngineFailure

TOOLS = [
    {"type": "function", "name": "plain"},
    {"type": "custom", "name": "free"},
    {"type": "namespace", "name": "space", "tools": [{"type": "function", "name": "nested"}]},
    {"type": "local_shell"},
    {"type": "shell", "environment": {"type": "local"}},
    {"type": "apply_patch"},
]
USAGE = Usage(3, 4, 7, PromptTokensDetails(1), CompletionTokensDetails(2))
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def writer(summary: Any = None) -> ResponseWriter:
    response = blank_response("resp_1")
    response.reasoning.summary = summary
    return ResponseWriter(response, ToolTable(TOOLS))


def tell(deltas: list[Delta], reason: str = "stop", summary: Any = None) -> list[dict[str, Any]]:
    told = writer(summary)
    return as_json(told.opening() + told.add(deltas) + told.closing(reason, USAGE))


def as_json(events: list[Event]) -> list[dict[str, Any]]:
    return json.loads(msgspec.json.encode(events))


def called(index: int, name: str, arguments: str) -> list[Delta]:
    return [ToolCallBegin(index, f"call_{index}", name), ToolCallArguments(index, arguments), ToolCallEnd(index)]


@pytest.mark.parametrize(
    ("limit", "kinds"),
    [
        (None, ["function_call", "shell_call", "shell_call", "function_call", "local_shell_call"]),
        (2, ["function_call", "shell_call", "shell_call", "function_call"]),
        (1, ["function_call", "shell_call", "function_call"]),
    ],
)
def test_more_calls_of_openais_tools_than_allowed_are_passed_over(limit: int | None, kinds: list[str]) -> None:
    response = blank_response("resp_1")
    response.max_tool_calls = limit
    told = ResponseWriter(response, ToolTable(TOOLS))
    deltas = called(0, "plain", "{}") + called(1, "shell", '{"commands": ["ls"]}')
    deltas += called(2, "shell", '{"commands": ["pwd"]}') + called(3, "plain", "{}")
    deltas += called(4, "local_shell", '{"command": ["ls"]}')
    answer = accumulate(as_json(told.opening() + told.add(deltas) + told.closing("tool_calls", USAGE)))
    assert [item.type for item in answer.output] == kinds


def accumulate(events: list[dict[str, Any]]) -> Any:
    """What the openai package makes of the events; it raises on any that is out of order."""
    state: ResponseStreamState[Any] = ResponseStreamState(input_tools=[], text_format=omit)
    snapshot = None
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        parsed = EVENT.validate_python(event)
        state.handle_event(parsed)
        snapshot = parsed
    return snapshot.response


def call(index: int, name: str, *pieces: str) -> list[Delta]:
    arguments = [ToolCallArguments(index, piece) for piece in pieces]
    return [ToolCallBegin(index, f"call_{index}", name), *arguments, ToolCallEnd(index)]


def test_one_of_each() -> None:
    deltas = [
        ReasoningDelta("Hm"),
        ReasoningDelta("m."),
        ContentDelta("Look: "),
        *call(0, "plain", '{"a"', ": 1}"),
        *call(1, "free", '{"inp', 'ut": "one\\n', 'two"}'),
        *call(2, "space__nested", "{}"),
        *call(3, "made_up", "{}"),
    ]
    events = tell(deltas)
    final = accumulate(events)
    assert [item.type for item in final.output] == [
        "reasoning", "message", "function_call", "custom_tool_call", "function_call", "function_call",
    ]  # fmt: skip
    reasoning, message, plain, free, nested, made_up = final.output
    assert reasoning.content[0].text == "Hmm."
    assert message.content[0].text == "Look: "
    assert (plain.name, plain.arguments, plain.call_id, plain.namespace) == ("plain", '{"a": 1}', "call_0", None)
    assert (free.name, free.input) == ("free", "one\ntwo")
    assert (nested.namespace, nested.name) == ("space", "nested")
    assert (made_up.namespace, made_up.name) == (None, "made_up")
    assert final.usage.input_tokens_details.cached_tokens == 1
    assert final.usage.output_tokens_details.reasoning_tokens == 2
    pieces = [event["delta"] for event in events if event["type"] == "response.custom_tool_call_input.delta"]
    assert "".join(pieces) == "one\ntwo"
    assert len(pieces) > 1


def test_an_item_is_done_as_soon_as_the_next_begins() -> None:
    told = writer()
    told.opening()
    told.add([ReasoningDelta("Hm")])
    kinds = [event.type.removeprefix("response.") for event in told.add([ContentDelta("A")])]
    assert kinds == [
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta",
    ]  # fmt: skip
    told.add([ToolCallBegin(0, "c", "plain")])
    kinds = [event.type.removeprefix("response.") for event in told.add([ToolCallEnd(0)])]
    assert kinds == ["function_call_arguments.done", "output_item.done"]


@pytest.mark.parametrize(
    ("name", "arguments", "kind", "field", "value"),
    [
        ("local_shell", '{"command": ["ls", "-l"]}', "local_shell_call", "action",
         {"type": "exec", "command": ["ls", "-l"], "env": {}}),
        ("shell", '{"commands": ["ls"], "timeout_ms": 5}', "shell_call", "action",
         {"commands": ["ls"], "timeout_ms": 5}),
        ("apply_patch", '{"type": "delete_file", "path": "a"}', "apply_patch_call", "operation",
         {"type": "delete_file", "path": "a"}),
        ("apply_patch", '{"type": "update_file", "path": "a", "diff": "@@\\n-b"}', "apply_patch_call", "operation",
         {"type": "update_file", "path": "a", "diff": "@@\n-b"}),
    ],
)  # fmt: skip
def test_tools_that_clients_run(name: str, arguments: str, kind: str, field: str, value: Any) -> None:
    events = tell(call(0, name, arguments[:9], arguments[9:]))
    final = accumulate(events)
    assert [event["type"].removeprefix("response.") for event in events[2:]] == [
        "output_item.added", "output_item.done", "completed",
    ]  # fmt: skip
    (item,) = final.output
    assert (item.type, item.call_id, item.status) == (kind, "call_0", "completed")
    assert getattr(item, field).model_dump(exclude_none=True) == value


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("shell", '{"command": "ls"}'),
        ("shell", '{"commands": ["ls"'),
        ("local_shell", '{"command": "ls"}'),
        ("apply_patch", '{"type": "update_file", "path": "a"}'),
        ("apply_patch", ""),
    ],
)
def test_arguments_that_are_none_of_the_tool_are_told_as_they_are(name: str, arguments: str) -> None:
    (item,) = accumulate(tell(call(0, name, arguments))).output
    assert (item.type, item.name, item.arguments) == ("function_call", name, arguments)


def test_a_summary_is_the_reasoning_itself() -> None:
    deltas: list[Delta] = [ReasoningDelta("Hm"), ReasoningDelta("m."), ContentDelta("A")]
    events = tell(deltas, summary="auto")
    (reasoning, _) = accumulate(events).output
    assert [part.text for part in reasoning.summary] == [part.text for part in reasoning.content] == ["Hmm."]
    assert [event["type"].removeprefix("response.") for event in events if "summary" in event["type"]] == [
        "reasoning_summary_part.added", "reasoning_summary_text.delta", "reasoning_summary_text.delta",
        "reasoning_summary_text.done", "reasoning_summary_part.done",
    ]  # fmt: skip
    events = tell(deltas)
    assert not any("summary" in event["type"] for event in events)
    assert not accumulate(events).output[0].summary


def test_a_call_that_is_cut_off() -> None:
    events = tell([ToolCallBegin(0, "c", "plain"), ToolCallArguments(0, '{"a')], "length")
    assert events[-1]["type"] == "response.incomplete"
    (item,) = events[-1]["response"]["output"]
    assert (item["status"], item["arguments"]) == ("incomplete", '{"a')


def test_a_failure_closes_what_is_open() -> None:
    told = writer()
    told.opening()
    told.add([ContentDelta("A")])
    events = as_json(told.failure(EngineFailure("broken")))
    assert [event["type"] for event in events[-2:]] == ["response.output_item.done", "response.failed"]
    assert told.response.status == "failed"


TEXTS = st.text(max_size=4)


@st.composite
def replies(draw: st.DrawFn) -> list[Delta]:
    deltas: list[Delta] = []
    n_calls = 0
    for kind in draw(st.lists(st.sampled_from(["content", "reasoning", "call"]), max_size=8)):
        if kind == "call":
            name = draw(st.sampled_from(["plain", "free", "space__nested", "shell", "x"]))
            deltas += call(n_calls, name, *draw(st.lists(TEXTS, max_size=3)))
            n_calls += 1
        else:
            deltas.append((ContentDelta if kind == "content" else ReasoningDelta)(draw(TEXTS)))
    return deltas


# the first draw of text builds hypothesis's tables
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(replies(), st.sampled_from(["stop", "length", "tool_calls"]), st.sampled_from([None, "auto"]))
def test_the_order_suits_openai_whatever_the_model_says(deltas: list[Delta], reason: str, summary: Any) -> None:
    final = accumulate(tell(deltas, reason, summary))
    joined = "".join(delta.text for delta in deltas if isinstance(delta, ContentDelta))
    assert "".join(item.content[0].text for item in final.output if item.type == "message") == joined
    added = [item.id for item in final.output]
    assert len(set(added)) == len(added)
