"""Streams that fail, wait, or lose their reader; and replies whose client hangs up."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import FakeEngine, play
from support.standing_clock import stand_still

from llamafast.engine.types import Event
from llamafast.errors import (
    AnswerTimeout,
    EngineFailure,
    EngineUnavailable,
    QueueFull,
    QueueTimeout,
)

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
REQUESTS = [
    (COMPLETIONS, {"prompt": "a"}),
    (CHAT, {"messages": [{"role": "user", "content": "hi"}]}),
]
both = pytest.mark.parametrize(("path", "request_body"), REQUESTS)


@both
async def test_an_error_in_mid_stream_is_the_last_event(
    client: AsgiClient, engine: FakeEngine, path: str, request_body: Any
) -> None:
    engine.script = play([Event(0, "so far", 1)], EngineFailure("llama_decode failed"))
    response = await client.post(path, {**request_body, "stream": True})
    assert response.status == 200
    assert response.complete
    *_, before, last = response.frames
    assert "so far" in before
    assert json.loads(last.removeprefix("data: ")) == {
        "error": {
            "message": "llama_decode failed",
            "type": "server_error",
            "param": None,
            "code": "engine_failure",
        }
    }


@both
async def test_the_same_error_without_a_stream_has_its_status(
    client: AsgiClient, engine: FakeEngine, path: str, request_body: Any
) -> None:
    engine.script = play([Event(0, "so far", 1)], EngineFailure("llama_decode failed"))
    response = await client.post(path, request_body)
    assert (response.status, response.error["code"]) == (500, "engine_failure")


@both
@pytest.mark.parametrize("stream", [True, False])
async def test_a_bug_tells_nothing_of_itself(
    client: AsgiClient,
    engine: FakeEngine,
    caplog: pytest.LogCaptureFixture,
    path: str,
    request_body: Any,
    stream: bool,
) -> None:
    engine.script = play([Event(0, "x", 1)], ZeroDivisionError("secret"))
    with caplog.at_level(logging.ERROR):
        response = await client.post(path, {**request_body, "stream": stream})
    assert response.status == (200 if stream else 500)
    assert b"secret" not in response.body
    assert b'"type":"server_error"' in response.body
    assert b"[DONE]" not in response.body
    assert "ZeroDivisionError: secret" in caplog.text
    assert engine.generations[0].finished


@both
@pytest.mark.parametrize(
    ("refusal", "told"),
    [(QueueFull("full"), "8"), (QueueTimeout("waited"), "8"), (EngineUnavailable("stopping"), "1")],
)
async def test_who_finds_no_place_is_told_when_there_will_be_one(
    client: AsgiClient, engine: FakeEngine, path: str, request_body: Any, refusal: Exception, told: str
) -> None:
    engine.refusal, engine.retry_seconds = refusal, 7.25
    response = await client.post(path, request_body)
    assert response.headers["retry-after"] == told
    assert "x-should-retry" not in response.headers


@both
async def test_what_took_too_long_is_not_asked_again(
    client: AsgiClient, engine: FakeEngine, path: str, request_body: Any
) -> None:
    engine.script = play(AnswerTimeout("too long"))
    response = await client.post(path, request_body)
    assert (response.status, response.headers["x-should-retry"]) == (504, "false")
    assert "retry-after" not in response.headers


@both
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("refusal", "status"), [(QueueFull("the queue is full"), 429), (EngineUnavailable("loading"), 503)]
)
async def test_a_refusal_by_the_engine_keeps_its_status(
    client: AsgiClient,
    engine: FakeEngine,
    path: str,
    request_body: Any,
    stream: bool,
    refusal: Exception,
    status: int,
) -> None:
    engine.refusal = refusal
    response = await client.post(path, {**request_body, "stream": stream})
    assert response.status == status
    assert response.headers["content-type"] == "application/json"
    assert response.headers["retry-after"] == "1"
    assert response.headers["retry-after-ms"] == "1000"
    assert response.error["message"] == str(refusal)


@both
@pytest.mark.parametrize("stream", [True, False])
async def test_hanging_up_cancels_while_waiting_for_the_first_token(
    client: AsgiClient, engine: FakeEngine, path: str, request_body: Any, stream: bool
) -> None:
    engine.script = play(60.0)
    async with client.open_post(path, {**request_body, "stream": stream}) as connection:
        await engine.submitted.wait()
        connection.disconnect()
        await asyncio.wait_for(connection.task, 30)
    assert engine.generations[0].cancelled
    assert not connection.response.complete


@both
async def test_hanging_up_cancels_in_mid_stream(
    client: AsgiClient, engine: FakeEngine, path: str, request_body: Any
) -> None:
    engine.script = play([Event(0, "x", 1)], [Event(0, "y", 1)], 60.0)
    async with client.open_post(path, {**request_body, "stream": True}) as connection:
        await connection.until_writes(2)
        connection.disconnect()
        await asyncio.wait_for(connection.task, 30)
    assert engine.generations[0].cancelled


async def test_hanging_up_cancels_one_stream_among_others(client: AsgiClient, engine: FakeEngine) -> None:
    go_on = asyncio.Event()
    engine.script = lambda plan: [[Event(0, "x", 1)], go_on, [Event(0, "y", 1, "stop")]]
    request = {"prompt": "a", "stream": True}
    async with client.open_post(COMPLETIONS, request) as leaving, client.open_post(COMPLETIONS, request) as staying:
        await leaving.until_writes(1)
        await staying.until_writes(1)
        leaving.disconnect()
        await asyncio.wait_for(leaving.task, 30)
        assert [generation.cancelled for generation in engine.generations] == [True, False]
        go_on.set()
        await asyncio.wait_for(staying.task, 30)
    assert len(staying.response.events) == 3


async def test_hanging_up_while_the_server_cannot_write(engine: FakeEngine) -> None:
    engine.script = play([Event(0, "x", 1)], [Event(0, "y", 1, "stop")])
    app = make_app(engine, max_body_bytes=1000)
    blocked, gone = asyncio.Event(), asyncio.Event()
    body = iter([{"type": "http.request", "body": b'{"prompt":"a","stream":true}', "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in body:
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            blocked.set()
            await asyncio.sleep(60)

    scope = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": []}
    task = asyncio.create_task(app(scope, receive, send))
    await blocked.wait()
    gone.set()
    await asyncio.wait_for(task, 30)
    assert engine.generations[0].cancelled


async def test_a_client_that_left_while_its_request_was_planned_is_never_submitted(
    client: AsgiClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    planning, release, planned = threading.Event(), threading.Event(), threading.Event()
    tokenize = engine.tokenizer.tokenize

    def slow(*args: Any, **kwargs: Any) -> Any:
        planning.set()
        release.wait(60)
        planned.set()
        return tokenize(*args, **kwargs)

    monkeypatch.setattr(engine.tokenizer, "tokenize", slow)
    async with client.open_post(COMPLETIONS, {"prompt": "a", "user": "x" * 20_000}) as connection:
        assert await asyncio.to_thread(planning.wait, 30)
        connection.disconnect()
        await asyncio.wait_for(connection.task, 30)
        release.set()
    assert await asyncio.to_thread(planned.wait, 30)
    await asyncio.sleep(0.02)
    assert not engine.generations


async def test_a_body_that_breaks_off(engine: FakeEngine) -> None:
    """Its client may have left, have half-closed or have sent malformed chunks: the server is not told which."""
    app = make_app(engine, max_body_bytes=1000)
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "method": "POST", "path": COMPLETIONS, "headers": []}, receive, send)
    assert sent[0]["status"] == 400
    assert b"incomplete" in sent[1]["body"]
    assert not engine.generations


async def test_the_end_of_the_server_cancels_too(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = play(60.0)
    async with client.open_post(COMPLETIONS, {"prompt": "a"}) as connection:
        await engine.submitted.wait()
        connection.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connection.task
        assert engine.generations[0].cancelled
        connection.task = asyncio.create_task(asyncio.sleep(0))


async def test_no_task_outlives_its_request(client: AsgiClient, engine: FakeEngine) -> None:
    before = asyncio.all_tasks()
    for stream in (True, False):
        await client.post(COMPLETIONS, {"prompt": "a", "stream": stream})
    engine.script = play(60.0)
    for stream in (True, False):
        async with client.open_post(COMPLETIONS, {"prompt": "a", "stream": stream}):
            await asyncio.sleep(0.01)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_a_silent_stream_is_kept_alive(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_still(monkeypatch)
    engine.script = play(0.12, [Event(0, "x", 1)], 0.12, [Event(0, "", 1, "stop")])
    client = AsgiClient(make_app(engine, max_body_bytes=1000, ping_seconds=0.05))
    response = await client.post(COMPLETIONS, {"prompt": "a", "stream": True})
    kinds = [":" if write == b": ping\n\n" else "x" for write in response.writes]
    assert "".join(kinds) == "::x::xx"
    assert [event["choices"][0]["text"] for event in response.events] == ["x", ""]


async def test_a_busy_stream_is_not_pinged(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_still(monkeypatch)
    steps: list[Any] = []
    for _ in range(40):
        steps += [[Event(0, "x", 1)], 0.01]
    engine.script = play(*steps, [Event(0, "", 1, "stop")])
    client = AsgiClient(make_app(engine, max_body_bytes=1000, ping_seconds=0.015))
    response = await client.post(COMPLETIONS, {"prompt": "a", "stream": True})
    assert b"ping" not in response.body


async def test_a_ping_never_falls_into_a_write(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_still(monkeypatch)
    engine.script = play(0.03, [Event(0, "x", 1)], [Event(0, "", 1, "stop")])
    app = make_app(engine, max_body_bytes=1000, ping_seconds=0.01)
    busy, overlaps, writes = False, 0, 0
    body = iter([{"type": "http.request", "body": b'{"prompt":"a","stream":true}', "more_body": False}])

    async def receive() -> dict[str, Any]:
        for message in body:
            return message
        return await asyncio.get_running_loop().create_future()

    async def send(message: dict[str, Any]) -> None:
        nonlocal busy, overlaps, writes
        overlaps += busy
        busy = True
        await asyncio.sleep(0.015)
        busy = False
        writes += 1

    await app({"type": "http", "method": "POST", "path": COMPLETIONS, "headers": []}, receive, send)
    assert writes > 4
    assert overlaps == 0
