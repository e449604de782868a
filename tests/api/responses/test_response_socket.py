"""WS /v1/responses over a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.asgi_websocket import websocket
from support.fake_engine import FakeEngine, play, say
from support.where_it_runs import beside_the_loop

from llamafast.api.app import App
from llamafast.api.responses import lanes
from llamafast.engine.types import Event, OutputOptions
from llamafast.errors import EngineFailure, QueueFull

URL = "/v1/responses"


@pytest.fixture
def app(engine: FakeEngine) -> App:
    return make_app(engine, max_body_bytes=2000)


def prompt(engine: FakeEngine) -> str:
    return engine.tokenizer.detokenize(engine.generations[-1].plan.prompts[0])


async def test_the_events_are_those_of_http(app: App) -> None:
    async with websocket(app) as socket:
        socket.create(input="Hi", stream=True)
        events = await socket.until("response.completed")
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in events] == list(range(10))
    assert not any("stream_id" in event for event in events)


async def test_a_conversation_that_is_not_stored(app: App, engine: FakeEngine) -> None:
    async with websocket(app) as socket, websocket(app) as other:
        first = await socket.answer(input="One", store=False)
        second = await socket.answer(input="Two", store=False, previous_response_id=first["id"])
        assert prompt(engine) == "<s><user>One</s><assistant>Hello world</s><user>Two</s><assistant>"
        other.create(input="Three", previous_response_id=second["id"])
        error = await other.event()
        assert error["type"] == "error"
        assert error["status"] == 400
        assert error["error"]["code"] == "previous_response_not_found"
        socket.create(input="Three", previous_response_id=first["id"])  # not the newest any more
        assert (await socket.event())["error"]["code"] == "previous_response_not_found"
    assert (await AsgiClient(app).get(f"{URL}/{second['id']}")).status == 404


async def test_a_large_conversation_is_encoded_beside_the_loop(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    remembered = beside_the_loop(monkeypatch, "llamafast.api.responses.plan.encode")
    told = beside_the_loop(monkeypatch, "llamafast.api.responses.lanes._encoded")
    async with websocket(app) as socket:
        for inline_bytes, beside in ((1 << 14, False), (64, True)):
            monkeypatch.setattr("llamafast.api.delivery.INLINE_BYTES", inline_bytes)
            await socket.answer(input="One", store=False)
            assert set(remembered) == {beside}
            assert (told[0], told[-1]) == (beside, beside)
            remembered.clear()
            told.clear()


async def test_what_is_stored_is_found_from_everywhere(app: App, engine: FakeEngine) -> None:
    async with websocket(app) as socket:
        first = await socket.answer(input="One")
    async with websocket(app) as socket:
        second = await socket.answer(input="Two", previous_response_id=first["id"])
    response = await AsgiClient(app).post(URL, {"input": "Three", "previous_response_id": second["id"]})
    assert response.status == 200
    assert "<user>One</s>" in prompt(engine)


async def test_a_prefill(app: App, engine: FakeEngine) -> None:
    async with websocket(app) as socket:
        warm = await socket.answer(input="One", generate=False, store=False)
        assert (warm["output"], warm["usage"]["output_tokens"]) == ([], 0)
        assert prompt(engine) == "<s><user>One</s>"
        assert engine.plan.max_tokens == 1
        await socket.answer(input="Two", previous_response_id=warm["id"], store=False)
    assert prompt(engine) == "<s><user>One</s><user>Two</s><assistant>"


async def test_a_prefill_drops_what_is_said_of_its_output(app: App, engine: FakeEngine) -> None:
    said: dict[str, Any] = {"min_tokens": 9, "ignore_eos": True, "include_stop_str_in_output": True}
    async with websocket(app) as socket:
        await socket.answer(input="One", generate=False, **said)
    assert engine.plan.output_options() == OutputOptions().output_options()


async def test_errors_keep_the_socket_open(app: App, engine: FakeEngine) -> None:
    frames: list[tuple[Any, str | None]] = [
        ("{", "invalid_json"),
        ("[1]", "invalid_request_error"),
        ({"type": "response.stop"}, "unknown_event_type"),
        ({}, "unknown_event_type"),
        ({"type": "response.create", "stream_id": "", "input": "x"}, "invalid_stream_id"),
        ({"type": "response.create", "stream_id": 1, "input": "x"}, "invalid_request_error"),
        ({"type": "response.create", "input": "x", "background": True}, "unsupported_parameter"),
        ({"type": "response.create", "input": "x", "model": "other"}, "model_not_found"),
        ({"type": "response.create", "input": "x" * 1500}, "context_length_exceeded"),
        ('{"a":' * 300, "invalid_json"),
        ({"type": "response.create", "input": "x", "temperature": 9}, None),
    ]
    async with websocket(app) as socket:
        for frame, code in frames:
            socket.send(frame)
            error = await socket.event()
            assert error["type"] == "error"
            assert error["status"] >= 400
            assert error["error"].keys() == {"message", "type", "param", "code"}
            assert error["error"]["code"] == code
        engine.refusal = QueueFull("full")
        socket.create(input="Hi")
        assert (await socket.event())["status"] == 429
        engine.refusal = None
        engine.script = play([Event(0, "Hel", 1)], EngineFailure("broken"))
        socket.create(input="Hi")
        assert (await socket.until("response.failed"))[-1]["response"]["error"]["code"] == "server_error"
        engine.script = play(RuntimeError("a bug"))
        socket.create(input="Hi")
        error = (await socket.until("response.failed"))[-1]["response"]["error"]
        assert error == {"code": "server_error", "message": "the server had an internal error"}
        engine.script = say("Fine")
        await socket.answer(input="Hi")


async def test_steering_is_refused(app: App) -> None:
    async with websocket(app) as socket:
        socket.send({"type": "response.steer", "previous_response_id": "resp_1", "input": "More", "stream_id": "a"})
        failed = await socket.event()
    assert (failed["type"], failed["error"]["code"]) == ("response.steer.failed", "steering_not_supported")
    assert failed["steer"] == {"previous_response_id": "resp_1", "input": "More"}
    assert failed["stream_id"] == "a"


async def test_a_continuation_that_fails_is_forgotten(app: App, engine: FakeEngine) -> None:
    async with websocket(app) as socket:
        first = await socket.answer(input="One", store=False)
        socket.create(input="x", temperature=9, previous_response_id=first["id"])
        assert (await socket.event())["error"]["param"] == "temperature"
        engine.refusal = QueueFull("full")
        socket.create(input="Two", previous_response_id=first["id"])
        await socket.event()
        engine.refusal = None
        socket.create(input="Two", previous_response_id=first["id"])
        assert (await socket.event())["error"]["code"] == "previous_response_not_found"


async def test_lanes(app: App, engine: FakeEngine) -> None:
    """Requests of one lane wait for each other, lanes do not."""
    gate = asyncio.Event()
    scripts = iter([play([Event(0, "slow", 1)], gate, [Event(0, "", 1, "stop")]), say("quick"), say("after")])
    engine.script = lambda plan: next(scripts)(plan)
    async with websocket(app) as socket:
        socket.create(input="One", stream_id="a")
        await socket.until("response.output_text.delta")
        socket.create(input="Two", stream_id="a")
        socket.create(input="Three", stream_id="b")
        quick = await socket.until("response.completed")
        assert {event["stream_id"] for event in quick} == {"b"}
        assert len(engine.generations) == 2
        gate.set()
        slow = await socket.until("response.completed")
        assert {event["stream_id"] for event in slow} == {"a"}
        await socket.until("response.completed")
        socket.create(input="x", n=2, stream_id="c")
        assert (await socket.event())["stream_id"] == "c"


async def test_limits_of_lanes(app: App, engine: FakeEngine) -> None:
    engine.script = play(60.0)
    async with websocket(app) as socket:
        for i in range(lanes.MAX_LANES):
            socket.create(input="x", stream_id=str(i))
        while len(engine.generations) < lanes.MAX_RUNNING:
            await socket.event()
        socket.create(input="x", stream_id="more")
        assert (await socket.until("error"))[-1]["error"]["code"] == "websocket_stream_limit_reached"
        for _ in range(lanes.MAX_WAITING + 1):
            socket.create(input="x", stream_id="0")
        assert (await socket.until("error"))[-1]["error"]["code"] == "rate_limit_exceeded"
        assert len(engine.generations) == lanes.MAX_RUNNING
    assert all(generation.cancelled for generation in engine.generations)


async def test_what_waits_is_bounded_in_bytes(app: App, engine: FakeEngine) -> None:
    gate = asyncio.Event()
    scripts = iter([play(gate, [Event(0, "", 1, "stop")])])
    engine.script = lambda plan: next(scripts, say("x"))(plan)
    async with websocket(app) as socket:
        socket.create(input="One")
        await engine.submitted.wait()
        for _ in range(2):
            socket.create(input="x", unknown="y" * 1200)
        error = (await socket.until("error"))[-1]
        assert (error["status"], error["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "bytes wait" in error["error"]["message"]
        gate.set()
        for _ in range(2):
            await socket.until("response.completed")
        # what has been answered waits no more
        await socket.answer(input="x", unknown="y" * 1200)


async def test_a_frame_of_small_values_is_refused(app: App) -> None:
    app._limits.max_work = 1000
    async with websocket(app) as socket:
        socket.create(input=[1] * 100)
        error = await socket.event()
        assert (error["status"], error["error"]["code"]) == (413, "body_too_large")
        await socket.answer(input="x")


async def test_bodies_share_a_budget(engine: FakeEngine) -> None:
    """Eight of the largest size, over whatever they come, and any number of short ones."""
    app = make_app(engine, max_body_bytes=100_000)
    client = AsgiClient(app)
    gate, body = asyncio.Event(), {"input": "One", "unknown": "x" * 90_000}
    engine.script = play(gate, [Event(0, "", 1, "stop")])
    async with AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(client.open_post(URL, body))
        sockets = [await stack.enter_async_context(websocket(app)) for _ in range(5)]
        for socket in sockets:
            socket.create(**body)
        while len(engine.generations) < 10:
            await asyncio.sleep(0.001)
        late = await client.post(URL, [b'{"input": "One", "unknown": "', b"x" * 99_000, b'"}'])
        assert (late.status, late.error["code"]) == (429, "rate_limit_exceeded")
        assert late.headers["retry-after"] == "1"
        sockets[0].create(**body, stream_id="other")
        assert (await sockets[0].until("error"))[-1]["status"] == 429
        engine.script = say("short")
        assert (await client.post(URL, {"input": "One", "unknown": "x" * 16_000})).status == 200
        gate.set()
        for socket in sockets:
            await socket.until("response.completed")
        engine.script = say("long")
        assert (await client.post(URL, body)).status == 200
    assert app._limits.held == 0


@pytest.mark.parametrize(("frame", "code"), [(b"\0", 1003), ("x" * 2001, 1009)])
async def test_frames_that_end_the_connection(app: App, frame: Any, code: int) -> None:
    async with websocket(app) as socket:
        socket.send(frame)
        await socket.task
        assert socket.closed == code


async def test_a_client_that_leaves_is_cancelled(app: App, engine: FakeEngine) -> None:
    engine.script = play([Event(0, "a", 1)], 60.0)
    async with websocket(app) as socket:
        socket.create(input="One")
        await socket.until("response.output_text.delta")
    assert engine.generations[0].cancelled


async def test_a_draining_server_finishes_what_runs(app: App, engine: FakeEngine) -> None:
    gate = asyncio.Event()
    engine.script = play([Event(0, "a", 1)], gate, [Event(0, "b", 1, "stop")])
    async with websocket(app) as busy, websocket(app) as idle:
        busy.create(input="One")
        await busy.until("response.output_text.delta")
        app.drain()
        await idle.task
        assert idle.closed == 1001
        assert busy.closed is None
        gate.set()
        await busy.until("response.completed")
        await busy.task
        assert busy.closed == 1001
    async with websocket(app) as late:
        await late.task
        assert late.closed == 1001


async def test_too_many_sockets(engine: FakeEngine) -> None:
    app = make_app(engine, max_body_bytes=1000, max_websockets=1)
    async with websocket(app) as first:
        await first.answer(input="x")
        async with websocket(app) as second:
            await second.task
            assert second.closed == 1013
    async with websocket(app) as third:
        await third.answer(input="x")


async def test_a_socket_grows_old(engine: FakeEngine) -> None:
    app = make_app(engine, max_body_bytes=1000, websocket_seconds=0.02)
    async with websocket(app) as socket:
        error = await socket.event()
        await socket.task
        assert error["error"]["code"] == "websocket_connection_limit_reached"
        assert socket.closed == 1001


async def test_a_socket_remembers_no_more_than_a_body(app: App, engine: FakeEngine) -> None:
    async with websocket(app) as socket:
        long = "x" * 300
        lanes = [await socket.answer(input=long, store=False, stream_id=str(i)) for i in range(4)]
        codes = []
        for i in (0, 3):
            socket.create(input="y", previous_response_id=lanes[i]["id"], generate=False, stream_id=str(i), store=False)
            last = await one_of(socket.event, "response.completed", "error")
            codes.append(last.get("error", {}).get("code"))
        assert codes == ["previous_response_not_found", None]


async def one_of(event: Callable[[], Any], *kinds: str) -> dict[str, Any]:
    told: dict[str, Any] = {"type": None}
    while told["type"] not in kinds:
        told = await event()
    return told


async def test_what_nothing_reads_is_told_in_the_first_event(app: App) -> None:
    """As over HTTP in a header."""
    body = {"input": "Hi", "keep_alive": "5m", "new_here": 1, "tools": [{"type": "web_search"}]}
    told = ["keep_alive", "new_here", "tools.web_search"]
    reply = await AsgiClient(app).post(URL, body)
    assert sorted(reply.headers["x-llamafast-ignored"].split(", ")) == told
    async with websocket(app) as socket:
        socket.create(**body)
        created, *others = await socket.until("response.completed")
        assert (created["type"], sorted(created["llamafast_ignored"])) == ("response.created", told)
        assert not [event for event in others if "llamafast_ignored" in event]
        socket.create(input="Hi")
        created, *_ = await socket.until("response.completed")
        assert "llamafast_ignored" not in created
