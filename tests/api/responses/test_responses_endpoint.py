"""POST /v1/responses over a scripted engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.asgi_client import AsgiClient, Response
from support.fake_engine import INFO, FakeEngine, play, say
from support.where_it_runs import beside_the_loop

from llamafast.engine.types import Event, TokenLogprob
from llamafast.errors import EngineFailure, QueueFull

URL = "/v1/responses"
KEYS = {
    "id", "object", "created_at", "completed_at", "status", "incomplete_details", "model", "previous_response_id",
    "instructions", "output", "error", "tools", "tool_choice", "truncation", "parallel_tool_calls", "text", "top_p",
    "presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage", "max_output_tokens",
    "max_tool_calls", "store", "background", "service_tier", "metadata", "safety_identifier", "prompt_cache_key",
}  # fmt: skip
FUNCTION = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}


def events_of(response: Response) -> list[dict[str, Any]]:
    """The events of a stream: named, numbered from 0, ended by [DONE]."""
    *frames, done = response.frames
    assert done == "data: [DONE]"
    events = []
    for number, frame in enumerate(frames):
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        events.append(event)
    return events


async def stream(client: AsgiClient, **body: Any) -> list[dict[str, Any]]:
    response = await client.post(URL, {"stream": True, **body})
    assert response.status == 200
    return events_of(response)


def prompt(engine: FakeEngine) -> str:
    return engine.tokenizer.detokenize(engine.generations[-1].plan.prompts[0])


async def test_a_text(client: AsgiClient, engine: FakeEngine) -> None:
    engine.cached_tokens = 3
    response = await client.post(URL, {"input": "Hi", "instructions": "Be kind.", "metadata": {"a": "b"}})
    body = response.json
    assert response.status == 200
    assert body.keys() >= KEYS
    assert prompt(engine) == "<s><system>Be kind.</s><user>Hi</s><assistant>"
    assert body["status"] == "completed"
    assert (body["error"], body["incomplete_details"]) == (None, None)
    assert body["metadata"] == {"a": "b"}
    assert body["instructions"] == "Be kind."
    assert body["temperature"] == engine.generations[-1].plan.sampling.temperature
    assert body["text"] == {"format": {"type": "text"}, "verbosity": "medium"}
    (message,) = body["output"]
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello world", "annotations": [], "logprobs": []}],
    }
    n_prompt = len(engine.generations[-1].plan.prompts[0])
    assert body["usage"] == {
        "input_tokens": n_prompt,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": n_prompt + 3,
    }


async def test_a_stream_says_what_the_whole_answer_says(client: AsgiClient) -> None:
    whole = (await client.post(URL, {"input": "Hi"})).json
    events = await stream(client, input="Hi")
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"].keys() == whole.keys()
    last = events[-1]["response"]
    assert last["output"][0]["content"] == whole["output"][0]["content"]
    assert last["usage"] == whole["usage"]
    assert {event["response"]["id"] for event in events if "response" in event} == {last["id"]}


async def test_no_more_room_is_incomplete(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = say("Hello", reason="length")
    events = await stream(client, input="Hi", max_output_tokens=1)
    assert engine.plan.max_tokens == 1
    assert events[-1]["type"] == "response.incomplete"
    response = events[-1]["response"]
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"
    assert response["max_output_tokens"] == 1


async def test_silence_is_an_empty_message(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = say()
    body = (await client.post(URL, {"input": "Hi"})).json
    assert [part["text"] for part in body["output"][0]["content"]] == [""]


async def test_a_failing_engine(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = play([Event(0, "Hel", 1)], EngineFailure("broken"))
    events = await stream(client, input="Hi")
    assert events[-1]["type"] == "response.failed"
    assert events[-1]["response"]["error"] == {"code": "server_error", "message": "broken"}
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"
    response = await client.post(URL, {"input": "Hi"})
    assert (response.status, response.error["code"]) == (500, "engine_failure")
    engine.script = play(RuntimeError("a bug"))
    events = await stream(client, input="Hi")
    assert events[-1]["response"]["error"]["message"] == "the server had an internal error"


async def test_log_probabilities(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = play(
        [Event(0, "H", 1, logprobs=[TokenLogprob(72, -0.5, [(72, -0.5), (73, -2.0)])])],
        [Event(0, "i", 1, logprobs=[TokenLogprob(105, -1.0, [(105, -1.0), (33, -9e9)])])],
        [Event(0, "", 1, "stop")],
    )
    first = {"token": "H", "logprob": -0.5, "bytes": [72]}
    second = {"token": "i", "logprob": -1.0, "bytes": [105]}
    told = [
        {**first, "top_logprobs": [first, {"token": "I", "logprob": -2.0, "bytes": [73]}]},
        {**second, "top_logprobs": [second, {"token": "!", "logprob": -9999.0, "bytes": [33]}]},
    ]
    asked = {"input": "Hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    events = await stream(client, **asked)
    assert [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"] == [
        [told[0]], [told[1]],
    ]  # fmt: skip
    (done,) = (event for event in events if event["type"] == "response.output_text.done")
    (part,) = (event["part"] for event in events if event["type"] == "response.content_part.done")
    assert done["logprobs"] == part["logprobs"] == told
    body = (await client.post(URL, asked)).json
    assert body["output"][0]["content"][0]["logprobs"] == told
    assert body["top_logprobs"] == 2
    assert [generation.plan.top_logprobs for generation in engine.generations] == [2, 2]


async def test_how_many_alternatives(client: AsgiClient, engine: FakeEngine) -> None:
    asked = [{"include": ["message.output_text.logprobs"]}, {"top_logprobs": 3}, {"top_logprobs": 0}, {"include": []}]
    for fields in asked:
        await client.post(URL, {"input": "Hi", **fields})
    assert [generation.plan.top_logprobs for generation in engine.generations] == [0, 3, None, None]


async def test_what_is_refused_before_it_starts(client: AsgiClient, engine: FakeEngine) -> None:
    engine.refusal = QueueFull("full")
    response = await client.post(URL, {"input": "Hi", "stream": True})
    assert (response.status, response.error["code"]) == (429, "rate_limit_exceeded")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 1}, "input"),
        ({"input": [1]}, "input[0]"),
        ({"input": [{}]}, "input[0].role"),
        ({"input": [{"role": "tool", "content": ""}]}, "input[0].role"),
        ({"input": [{"role": [], "content": ""}]}, "input[0].role"),
        ({"input": [{"type": []}]}, "input[0].type"),
        ({"input": [{"type": "banana"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": 1}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": {}}]}, "input[0].arguments"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]}, "input[0].call_id"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].id"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id"),
        ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "x", "temperature": 3}, "temperature"),
        ({"input": "x", "truncation": "some"}, "truncation"),
        ({"input": "x", "background": True}, "background"),
        ({"input": "x", "top_logprobs": 21}, "top_logprobs"),
        ({"input": "x", "conversation": "conv_1"}, "conversation"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ({"input": "x", "context_management": [{"type": "compaction"}]}, "context_management"),
        ({"input": "x", "metadata": {"a": 1}}, "metadata"),
        ({"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "x" * 3000}, "input"),
    ],
)
async def test_bad_requests(client: AsgiClient, fields: dict[str, Any], param: str) -> None:
    for path in (URL, f"{URL}/input_tokens"):
        response = await client.post(path, fields)
        assert (response.status, response.error["param"]) == (400, param)


async def test_hosted_tools_and_null_fields_are_taken(
    client: AsgiClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    tools = [{"type": "web_search"}, {"type": "file_search"}, {"type": "mcp", "server_label": "x"}, FUNCTION]
    nothing = dict.fromkeys(("instructions", "tools", "store", "text", "reasoning", "truncation", "include", "stream"))
    assert (await client.post(URL, {"input": "Hi", **nothing})).status == 200
    body = (await client.post(URL, {"input": "Hi", "tools": tools, "include": ["reasoning.encrypted_content"]})).json
    assert body["tools"] == [*tools[:3], {**FUNCTION, "strict": False}]
    await client.post(URL, {"input": "Hi", "tools": [*tools, {"type": "only_here"}]})
    assert [line for line in caplog.messages if "only_here" in line] == [
        "tools of type 'only_here' do not run here: the model is not shown them"
    ]


@pytest.mark.parametrize("fields", [{}, {"stream": True}])
async def test_a_header_names_the_tools_that_are_not_shown(client: AsgiClient, fields: dict[str, Any]) -> None:
    """An answer without web search is not taken for one with it."""
    tools = [{"type": "web_search"}, FUNCTION, {"type": "a,\r\né"}, {"type": "web_search"}]
    response = await client.post(URL, {"input": "Hi", "tools": tools, **fields})
    assert response.headers["x-llamafast-ignored"] == "tools.a%2C%0D%0A%C3%A9, tools.web_search"
    more = [{"type": "additional_tools", "role": "developer", "tools": tools[:1]}, {"role": "user", "content": "Hi"}]
    response = await client.post(URL, {"input": more, **fields})
    assert (response.status, response.headers.get("x-llamafast-ignored")) == (200, "tools.web_search")
    many = [{"type": f"{i}é" * 99} for i in range(500)]
    response = await client.post(URL, {"input": "Hi", "tools": many, **fields})
    assert (response.status, len(response.headers["x-llamafast-ignored"]) < 2000) == (200, True)
    response = await client.post(URL, {"input": "Hi", "tools": [FUNCTION], **fields})
    assert "x-llamafast-ignored" not in response.headers
    counted = await client.post(f"{URL}/input_tokens", {"input": "Hi", "tools": tools[:1]})
    assert counted.headers["x-llamafast-ignored"] == "tools.web_search"


async def test_truncation_drops_the_oldest_turns(client: AsgiClient, engine: FakeEngine) -> None:
    turns = [{"role": role, "content": f"{i}{'.' * 100}"} for i in range(4) for role in ("user", "assistant")] + [
        {"role": "user", "content": "last"}
    ]
    response = await client.post(URL, {"input": turns, "instructions": "Stay."})
    assert (response.status, response.error["code"]) == (400, "context_length_exceeded")
    body = (await client.post(URL, {"input": turns, "instructions": "Stay.", "truncation": "auto"})).json
    assert body["truncation"] == "auto"
    text = prompt(engine)
    assert len(engine.generations[-1].plan.prompts[0]) <= INFO.max_seq_len
    assert text.startswith("<s><system>Stay.</s><user>")
    assert text.endswith("<user>last</s><assistant>")
    assert [f"<user>{i}." in text for i in range(4)] == [False, False, True, True]
    response = await client.post(URL, {"input": "x" * 600, "truncation": "auto"})
    assert response.error["code"] == "context_length_exceeded"


async def test_input_tokens(client: AsgiClient, engine: FakeEngine) -> None:
    body = (await client.post(f"{URL}/input_tokens", {"input": "Hi"})).json
    await client.post(URL, {"input": "Hi"})
    assert body == {"object": "response.input_tokens", "input_tokens": len(engine.plan.prompts[0])}


async def test_a_client_that_leaves(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = play([Event(0, "Hel", 1)], 60.0)
    async with client.open_post(URL, {"input": "Hi", "stream": True}) as connection:
        await connection.until_writes(2)
    assert engine.generations[0].cancelled


async def test_upgrades_over_http(client: AsgiClient) -> None:
    response = await client.get(URL)
    assert (response.status, response.headers["upgrade"]) == (426, "websocket")


async def test_truncation_is_tried_beside_the_loop(
    client: AsgiClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that is small for one prompt is not for as many as its truncation tries."""
    told = beside_the_loop(monkeypatch, "llamafast.api.responses.plan.ResponsePlanner.plan")
    turns = [{"role": "user", "content": f"message {i}"} for i in range(200)]
    assert (await client.post(URL, {"input": turns})).status == 400
    assert (await client.post(URL, {"input": turns, "truncation": "auto"})).status == 200
    assert told == [False, True]


async def test_log_probabilities_are_told_beside_the_loop_and_encoded_once(
    client: AsgiClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = [(token, -1.0 * token) for token in range(20)]
    engine.script = play(
        [Event(0, "Hi " * 100, 100, logprobs=[TokenLogprob(token, -0.5, top) for token in b"Hi " * 100])],
        [Event(0, "", 1, "stop")],
    )
    tokens = beside_the_loop(monkeypatch, "llamafast.api.logprobs.encode")
    frames = beside_the_loop(monkeypatch, "llamafast.api.responses.endpoint._frames")
    whole = beside_the_loop(monkeypatch, "llamafast.api.responses.endpoint.encode")
    asked = {"input": "Hi", "top_logprobs": 20}
    events = await stream(client, **asked)
    assert tokens == [True] * 300
    assert frames == [False, True, True]  # the opening, the text, all that ends it
    del whole[:]
    told = (await client.post(URL, asked)).json["output"][0]["content"][0]["logprobs"]
    assert len(told) == 300
    assert told == events[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert whole == [True]


@pytest.mark.parametrize("streamed", [False, True])
async def test_what_is_repeated_of_a_large_request_is_encoded_beside_the_loop(
    client: AsgiClient, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    told = beside_the_loop(monkeypatch, "llamafast.api.responses.endpoint.encode")
    user = "u" * 20_000
    response = await client.post(URL, {"input": "Hi", "user": user, "stream": streamed})
    events = events_of(response) if streamed else [{"response": response.json}]
    answers = [event["response"] for event in events if "response" in event]
    assert [answer["user"] for answer in answers] == [user] * len(answers)
    assert sum(told) >= len(answers)
