"""POST /v1/chat/completions: replies and streams, field by field."""

from __future__ import annotations

import re
from typing import Any

import pytest
from msgspec.structs import replace
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import INFO, FakeEngine, play, say
from support.where_it_runs import beside_the_loop

from llamafast.engine.types import Event
from llamafast.errors import ConfigError

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


async def test_a_reply_field_by_field(client: AsgiClient) -> None:
    body = (await client.post(PATH, {"messages": MESSAGES, "model": "org/fake-model", "n": 2})).json
    assert re.fullmatch(r"chatcmpl-[0-9a-f]{32}", body.pop("id"))
    assert isinstance(body.pop("created"), int)
    message = {"role": "assistant", "content": "Hello world", "refusal": None}
    assert body == {
        "object": "chat.completion",
        "model": "org/fake-model",
        "service_tier": "default",
        "system_fingerprint": "fp_llamafast",
        "choices": [
            {"index": index, "message": message, "finish_reason": "stop", "logprobs": None, "stop_reason": None}
            for index in range(2)
        ],
        "usage": {
            "prompt_tokens": 21,
            "completion_tokens": 6,
            "total_tokens": 27,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


async def test_a_stream_byte_by_byte(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = say("né", "\\")
    response = await client.post(
        PATH, {"messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True}}
    )
    first = response.events[0]
    head = (
        f'data: {{"id":"{first["id"]}","object":"chat.completion.chunk","created":{first["created"]},'
        '"model":"org/fake-model","service_tier":"default","system_fingerprint":"fp_llamafast","choices":['
    )
    usage = (
        '"usage":{"prompt_tokens":21,"completion_tokens":3,"total_tokens":24,'
        '"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}'
    )
    rest = '"finish_reason":null,"logprobs":null}],"usage":null}'
    expected = [
        head + '{"index":0,"delta":{"role":"assistant","content":"","refusal":null},' + rest,
        head + '{"index":0,"delta":{"content":"né"},' + rest,
        head + r'{"index":0,"delta":{"content":"\\"},' + rest,
        head + '{"index":0,"delta":{},"finish_reason":"stop","logprobs":null,"stop_reason":null}],"usage":null}',
        head + "]," + usage + "}",
        "data: [DONE]",
    ]
    assert response.body.decode() == "".join(f"{frame}\n\n" for frame in expected)


async def test_token_ids(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = play([Event(0, "ab", 2, token_ids=[97, 98])], [Event(0, "", 1, "stop", token_ids=[257])])
    body = (await client.post(PATH, {"messages": MESSAGES, "return_token_ids": True})).json
    assert body["choices"][0]["token_ids"] == [97, 98, 257]
    assert body["prompt_token_ids"] == engine.plan.prompts[0].tolist()
    first, *rest = (await client.post(PATH, {"messages": MESSAGES, "return_token_ids": True, "stream": True})).events
    assert first["prompt_token_ids"] == body["prompt_token_ids"]
    assert [event["choices"][0]["token_ids"] for event in rest if "token_ids" in event["choices"][0]] == [
        [97, 98],
        [257],
    ]
    plain = (await client.post(PATH, {"messages": MESSAGES})).json
    assert "prompt_token_ids" not in plain
    assert "token_ids" not in plain["choices"][0]


@pytest.mark.parametrize("stop", ["END", 7])
async def test_which_stop_was_met(client: AsgiClient, engine: FakeEngine, stop: str | int) -> None:
    engine.script = play([Event(0, "a", 1)], [Event(0, "", 1, "stop", matched_stop=stop)])
    fields = {"messages": MESSAGES, "stop": ["END"], "stop_token_ids": [7]}
    assert (await client.post(PATH, fields)).json["choices"][0]["stop_reason"] == stop
    *before, last = (await client.post(PATH, {**fields, "stream": True})).events
    assert last["choices"][0]["stop_reason"] == stop
    assert not any("stop_reason" in event["choices"][0] for event in before)


async def test_every_choice_gets_its_role_first_in_one_write(client: AsgiClient) -> None:
    response = await client.post(PATH, {"messages": MESSAGES, "stream": True, "n": 3})
    assert response.writes[0].count(b'"role":"assistant"') == 3
    seen = set()
    for event in response.events:
        (choice,) = event["choices"]
        assert ("role" in choice["delta"]) == (choice["index"] not in seen)
        seen.add(choice["index"])
    assert seen == {0, 1, 2}


async def test_the_role_is_sent_before_any_token(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = lambda plan: [60.0]
    async with client.open_post(PATH, {"messages": MESSAGES, "stream": True}) as connection:
        await connection.until_writes(1)
        assert b'"role":"assistant"' in connection.response.body


async def test_messages_reach_the_template(client: AsgiClient, engine: FakeEngine) -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "brief"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "h\u00e9"},
    ]
    await client.post(PATH, {"messages": messages})
    (tokens,) = engine.plan.prompts
    assert engine.tokenizer.detokenize(tokens) == "<s><system>be brief</s><assistant></s><user>hé</s><assistant>"


async def test_accepted_fields_without_effect(client: AsgiClient) -> None:
    fields = {
        "store": True,
        "metadata": {"a": "b"},
        "user": "u",
        "safety_identifier": "s",
        "service_tier": "flex",
        "prompt_cache_key": "k",
        "prompt_cache_options": {},
        "prompt_cache_retention": "24h",
        "moderation": {},
        "prediction": {"type": "content", "content": "x"},
        "parallel_tool_calls": False,
        "reasoning_effort": "high",
        "verbosity": "low",
        "modalities": ["text"],
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "none",
        "logprobs": False,
        "unheard_of": {"deep": [1]},
    }
    assert (await client.post(PATH, {"messages": MESSAGES, **fields})).status == 200


async def test_a_templates_refusal_is_quoted() -> None:
    info = replace(INFO, chat_template="{{ raise_exception('Roles must alternate') }}")
    client = AsgiClient(make_app(FakeEngine(info=info), max_body_bytes=1000))
    response = await client.post(PATH, {"messages": MESSAGES})
    assert (response.status, response.error["param"]) == (400, "messages")
    assert "Roles must alternate" in response.error["message"]


async def test_a_model_without_template_serves_completions_only() -> None:
    info = replace(INFO, chat_template=None)
    client = AsgiClient(make_app(FakeEngine(info=info), max_body_bytes=1000))
    assert (await client.post(PATH, {"messages": MESSAGES})).status == 400
    assert (await client.post("/v1/completions", {"prompt": "a"})).status == 200


def test_a_broken_template_stops_the_start() -> None:
    with pytest.raises(ConfigError):
        make_app(FakeEngine(info=replace(INFO, chat_template="{% if %}")), max_body_bytes=1)


RESPONSE_TEMPLATE = {
    "start_anchor": "<assistant>",
    "fields": {
        "thinking": {"open": "<think>", "close": "</think>"},
        "content": {},
        "tool_calls": {"open": "<call>", "close": "</call>", "content": "json", "repeats": True},
    },
}
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("stream", [False, True])
async def test_replies_are_read_as_the_config_declares(stream: bool) -> None:
    script = say("<think>wh", "y</think>", "Look: <ca", 'll>{"name": "now", "argum', 'ents": {"a": "\\n"}}</call>')
    source = f"{{{{ tools | tojson }}}}{INFO.chat_template}"
    engine = FakeEngine(script, info=replace(INFO, chat_template=source))
    client = AsgiClient(make_app(engine, model={"response_template": RESPONSE_TEMPLATE}, max_body_bytes=10_000))
    response = await client.post(PATH, {"messages": MESSAGES, "tools": [NOW], "stream": stream})
    if not stream:
        (choice,) = response.json["choices"]
        (call,) = choice["message"]["tool_calls"]
        said = [(choice["message"]["reasoning_content"], choice["message"]["content"], call["function"])]
    else:
        choices = [event["choices"][0] for event in response.events if event["choices"]]
        deltas = [choice["delta"] for choice in choices]
        functions = [call["function"] for delta in deltas for call in delta.get("tool_calls") or ()]
        whole = {key: "".join(function.get(key, "") for function in functions) for key in ("name", "arguments")}
        texts = ["".join(delta.get(key) or "" for delta in deltas) for key in ("reasoning_content", "content")]
        said, choice = [(*texts, whole)], choices[-1]
    assert said == [("why", "Look:", {"name": "now", "arguments": '{"a":"\\n"}'})]
    assert choice["finish_reason"] == "tool_calls"


async def test_many_choices_are_put_together_beside_the_loop(
    client: AsgiClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = beside_the_loop(
        monkeypatch, "llamafast.api.chat.endpoint._collected", "llamafast.api.completions._collected"
    )
    engine.script = say(*"many words" * 4)
    message = {"role": "user", "content": "Hi"}
    for n in (1, 128):
        assert (await client.post("/v1/chat/completions", {"messages": [message], "n": n})).status == 200
        assert (await client.post("/v1/completions", {"prompt": "Hi", "n": n})).status == 200
    assert told == [False, False, True, True]


@pytest.mark.parametrize("content", ["abc", [{"type": "text", "text": "a"}, {"type": "text", "text": "bc"}]])
async def test_a_prediction_reaches_the_plan_and_is_counted(client: AsgiClient, engine: FakeEngine, content) -> None:
    body = {"messages": MESSAGES, "prediction": {"type": "content", "content": content}}
    details = (await client.post(PATH, body)).json["usage"]["completion_tokens_details"]
    assert engine.tokenizer.detokenize(engine.plan.prediction) == "abc"
    assert engine.plan.speculative
    assert details == {
        "reasoning_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": len(engine.plan.prediction),
    }
    await client.post(PATH, {"messages": MESSAGES, "speculative": False})
    assert not engine.generations[-1].plan.speculative
    assert not engine.generations[-1].plan.prediction


@pytest.mark.parametrize(
    "prediction", ["abc", {"content": "a"}, {"type": "x", "content": "a"}, {"type": "content", "content": [1]}]
)
async def test_what_is_no_prediction_is_refused(client: AsgiClient, prediction) -> None:
    reply = await client.post(PATH, {"messages": MESSAGES, "prediction": prediction})
    assert reply.status == 400
    assert reply.json["error"]["param"].startswith("prediction")


async def test_a_prediction_longer_than_any_answer_is_refused(client: AsgiClient) -> None:
    body = {"messages": MESSAGES, "prediction": {"type": "content", "content": "a" * (INFO.max_seq_len + 1)}}
    reply = await client.post(PATH, body)
    assert (reply.status, reply.json["error"]["param"]) == (400, "prediction")


@pytest.mark.parametrize("said", [{"continue_final_message": True}, {}])
async def test_an_echo_is_what_is_continued(client: AsgiClient, said: dict[str, Any]) -> None:
    last = {"role": "assistant", "content": "Sure, "} | ({} if said else {"prefix": True})
    body = {"messages": [{"role": "user", "content": "a"}, last], "echo": True, "n": 2, **said}
    whole = (await client.post(PATH, body)).json
    assert [choice["message"]["content"] for choice in whole["choices"]] == ["Sure, Hello world"] * 2
    streamed = (await client.post(PATH, {**body, "stream": True})).events
    for index in range(2):
        deltas = [event["choices"][0]["delta"] for event in streamed if event["choices"][0]["index"] == index]
        assert [delta["content"] for delta in deltas if delta.get("content")] == ["Sure, ", "Hello", " world"]
    for wrong in ({"messages": body["messages"][:1]}, {"continue_final_message": False}):
        error = (await client.post(PATH, {**body, **wrong})).error
        assert error["param"] == "echo"
