"""POST /v1/completions: replies and streams, field by field."""

from __future__ import annotations

import re
import struct
import threading
import time
from typing import Any

import pytest
from support.asgi_client import AsgiClient
from support.fake_engine import FakeEngine, play, say

from llamafast.engine.types import Alternatives, Event, TokenLogprob

PATH = "/v1/completions"


async def test_a_reply_field_by_field(client: AsgiClient, engine: FakeEngine) -> None:
    engine.cached_tokens = 2
    response = await client.post(PATH, {"prompt": "hey", "model": ""})
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.body)
    body = response.json
    assert re.fullmatch(r"cmpl-[0-9a-f]{32}", body.pop("id"))
    assert abs(time.time() - body.pop("created")) < 60
    assert body == {
        "object": "text_completion",
        "model": "org/fake-model",
        "system_fingerprint": "fp_llamafast",
        "choices": [
            {"text": "Hello world", "index": 0, "finish_reason": "stop", "logprobs": None, "stop_reason": None}
        ],
        "usage": {
            "prompt_tokens": 4,
            "completion_tokens": 3,
            "total_tokens": 7,
            "prompt_tokens_details": {"cached_tokens": 2},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
    assert engine.generations[0].finished
    assert not engine.generations[0].cancelled


async def test_prompts_times_choices(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = lambda plan: [[Event(i, f"t{i}", 1, "length")] for i in (3, 0, 2, 1)]
    body = (await client.post(PATH, {"prompt": ["a", "b"], "n": 2, "max_tokens": 1})).json
    assert [(c["index"], c["text"], c["finish_reason"]) for c in body["choices"]] == [
        (0, "t0", "length"), (1, "t1", "length"), (2, "t2", "length"), (3, "t3", "length"),
    ]  # fmt: skip
    # Each prompt is counted once, not once per choice.
    assert body["usage"]["prompt_tokens"] == 4
    assert body["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [("é", ["é!"]), (["a", "b"], ["a!", "b!"]), ([104, 105], ["hi!"]), ([[104], [105, 257]], ["h!", "i</s>!"])],
)
async def test_echo(client: AsgiClient, engine: FakeEngine, prompt, texts) -> None:
    engine.script = say("!")
    body = (await client.post(PATH, {"prompt": prompt, "echo": True})).json
    assert [choice["text"] for choice in body["choices"]] == texts


async def test_echo_with_nothing_generated(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = play([Event(0, "", 0, "length")])
    body = (await client.post(PATH, {"prompt": "ab", "echo": True, "max_tokens": 0})).json
    (choice,) = body["choices"]
    assert choice == {"text": "ab", "index": 0, "finish_reason": "length", "logprobs": None, "stop_reason": None}
    assert body["usage"]["completion_tokens"] == 0


async def test_a_stream_byte_by_byte(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = say('a"\n', "é🙂\u2028\0")
    response = await client.post(PATH, {"prompt": "x", "stream": True})
    assert response.status == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in response.headers
    first = response.events[0]
    head = (
        f'data: {{"id":"{first["id"]}","object":"text_completion","created":{first["created"]},'
        '"model":"org/fake-model","system_fingerprint":"fp_llamafast","choices":['
    )
    expected = [
        head + r'{"text":"a\"\n","index":0,"finish_reason":null,"logprobs":null}]}',
        head + '{"text":"é🙂\u2028\\u0000","index":0,"finish_reason":null,"logprobs":null}]}',
        head + '{"text":"","index":0,"finish_reason":"stop","logprobs":null,"stop_reason":null}]}',
        "data: [DONE]",
    ]
    assert response.body.decode() == "".join(f"{frame}\n\n" for frame in expected)


async def test_a_prompt_may_be_asked_not_to_be_cached(client: AsgiClient, engine: FakeEngine) -> None:
    for cached in (True, False, None):
        await client.post(PATH, {"prompt": "x", "cache_prompt": cached})
    assert [generation.plan.cache_prompt for generation in engine.generations] == [True, False, True]


async def test_token_ids(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = lambda plan: [
        [Event(i, "ab", 2, token_ids=[97, 98]), Event(1 - i, "", 1, "stop", token_ids=[257])] for i in range(2)
    ]
    fields = {"prompt": ["x", "yz"], "return_token_ids": True}
    choices = (await client.post(PATH, fields)).json["choices"]
    assert [choice["prompt_token_ids"] for choice in choices] == [[256, 120], [256, 121, 122]]
    assert [choice["token_ids"] for choice in choices] == [[97, 98, 257], [257, 97, 98]]
    told: dict[int, list[int]] = {0: [], 1: []}
    prompts: dict[int, list[list[int]]] = {0: [], 1: []}
    for event in (await client.post(PATH, {**fields, "stream": True})).events:
        (choice,) = event["choices"]
        told[choice["index"]] += choice.get("token_ids", [])
        prompts[choice["index"]] += [choice["prompt_token_ids"]] if "prompt_token_ids" in choice else []
    assert told == {0: [97, 98, 257], 1: [257, 97, 98]}
    assert prompts == {0: [[256, 120]], 1: [[256, 121, 122]]}
    assert "token_ids" not in (await client.post(PATH, {"prompt": ["x", "y"]})).json["choices"][0]


@pytest.mark.parametrize("stop", ["END", 7])
async def test_which_stop_was_met(client: AsgiClient, engine: FakeEngine, stop: str | int) -> None:
    engine.script = play([Event(0, "a", 1)], [Event(0, "", 1, "stop", matched_stop=stop)])
    fields = {"prompt": "x", "stop": ["END"], "stop_token_ids": [7]}
    assert (await client.post(PATH, fields)).json["choices"][0]["stop_reason"] == stop
    *before, last = (await client.post(PATH, {**fields, "stream": True})).events
    assert last["choices"][0]["stop_reason"] == stop
    assert not any("stop_reason" in event["choices"][0] for event in before)


async def test_a_stream_of_many_choices(client: AsgiClient) -> None:
    events = (await client.post(PATH, {"prompt": ["a", "b"], "n": 2, "stream": True, "echo": True})).events
    texts = dict.fromkeys(range(4), "")
    reasons = {}
    for event in events:
        (choice,) = event["choices"]
        assert choice["index"] not in reasons
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"]:
            reasons[choice["index"]] = choice["finish_reason"]
    assert texts == {0: "aHello world", 1: "aHello world", 2: "bHello world", 3: "bHello world"}
    assert reasons == dict.fromkeys(range(4), "stop")
    assert len({event["id"] for event in events}) == 1
    assert not any("usage" in event for event in events)


async def test_one_write_per_wake_up(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = play(
        [Event(0, "a", 1), Event(1, "b", 1)],
        [Event(0, "", 1), Event(1, "", 1)],
        [Event(0, "c", 3, "stop"), Event(1, "", 1, "length")],
    )
    response = await client.post(PATH, {"prompt": "x", "n": 2, "stream": True})
    counts = [write.count(b"data: ") for write in response.writes]
    # An Event without text sends nothing; text and finish of one Event are two frames.
    assert counts == [2, 3, 1]
    assert all(write.endswith(b"\n\n") for write in response.writes)


async def test_usage_in_a_stream(client: AsgiClient, engine: FakeEngine) -> None:
    engine.cached_tokens = 1
    request = {"prompt": "ab", "stream": True, "stream_options": {"include_usage": True, "include_obfuscation": True}}
    *chunks, last = (await client.post(PATH, request)).events
    assert [chunk["usage"] for chunk in chunks] == [None, None, None]
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 3,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert last.keys() == chunks[0].keys()


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False}, {"include_usage": None}])
async def test_no_usage_in_a_stream_that_did_not_ask(client: AsgiClient, options) -> None:
    events = (await client.post(PATH, {"prompt": "a", "stream": True, "stream_options": options})).events
    assert len(events) == 3
    assert not any("usage" in event for event in events)


async def test_stream_null_is_no_stream(client: AsgiClient) -> None:
    assert (await client.post(PATH, {"prompt": "a", "stream": None})).json["object"] == "text_completion"


@pytest.mark.parametrize("best_of", [None, 2])
async def test_best_of_n_is_n(client: AsgiClient, best_of: int | None) -> None:
    assert len((await client.post(PATH, {"prompt": "a", "n": 2, "best_of": best_of})).json["choices"]) == 2


@pytest.mark.parametrize(("best_of", "said"), [(3, "cannot be streamed"), (1, "smaller")])
async def test_best_of_anything_else(client: AsgiClient, best_of: int, said: str) -> None:
    response = await client.post(PATH, {"prompt": "a", "n": 2, "best_of": best_of, "stream": True})
    assert (response.status, response.error["param"]) == (400, "best_of")
    assert said in response.error["message"]


async def test_a_long_prompt_takes_the_way_through_a_thread(client: AsgiClient, engine: FakeEngine) -> None:
    padding = "x" * 40_000
    response = await client.post(PATH, {"prompt": "a", "user": padding})
    assert response.json["choices"][0]["text"] == "Hello world"
    response = await client.post(PATH, {"prompt": padding})
    assert response.error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/responses", {"input": "x"}),
    ],
)
async def test_what_would_hold_up_the_event_loop_is_prepared(client, engine, path, body):
    assert (await client.post(path, body)).status == 200
    assert engine.prepared == [engine.generations[0].plan]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "request_body"),
    [(PATH, {"prompt": "hey", "logprobs": 2, "echo": True}),
     ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 2})],
)  # fmt: skip
async def test_long_replies_are_built_beside_the_event_loop(
    client: AsgiClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, path: str, request_body: Any, stream: bool
) -> None:
    """They are the same ones."""
    packed = Alternatives(struct.pack("ifif", 101, -0.5, -1, 0.0))
    of_prompt = [TokenLogprob(token, -1.0, packed) for token in b"hey"]
    said = [TokenLogprob(72, -0.25, packed)]
    event = Event(0, "H", 1, "stop", said, of_prompt if path == PATH else None)
    engine.script = play([event])
    threads: set[str] = set()

    def finite(logprob: float) -> float:
        threads.add(threading.current_thread().name)
        return logprob

    monkeypatch.setattr("llamafast.api.logprobs.finite", finite)
    bodies = []
    for inline_bytes in (1 << 20, 0):
        monkeypatch.setattr("llamafast.api.delivery.INLINE_BYTES", inline_bytes)
        response = await client.post(path, request_body | {"stream": stream})
        assert response.status == 200
        bodies.append(re.sub(rb'"(id|created)":[^,]*', b"", response.body))
    assert bodies[0] == bodies[1]
    assert b'"e"' in bodies[0]
    assert len(threads) == 2
