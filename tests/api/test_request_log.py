"""One line per request, whatever became of it."""

from __future__ import annotations

import asyncio
import logging

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.asgi_websocket import websocket
from support.fake_engine import FakeEngine, play

from llamafast import metrics
from llamafast.engine.types import Event
from llamafast.errors import EngineFailure, QueueFull

PATHS = {
    "/v1/completions": b'{"prompt": "hi", "stream": %b}',
    "/v1/chat/completions": b'{"messages": [{"role": "user", "content": "hi"}], "stream": %b}',
}
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Filled by the request log."""
    caplog.set_level(logging.INFO, "llamafast.requests")
    return caplog.messages


def fields(line: str) -> dict[str, str]:
    word, *pairs = line.split(" ")
    assert word == "request"
    return dict(pair.split("=", 1) for pair in pairs)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [b"true", b"false"])
async def test_a_good_request(
    client: AsgiClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture, path: str, stream: bytes
) -> None:
    engine.cached_tokens = 1
    await client.post(path, PATHS[path] % stream, x_request_id="abc", traceparent=TRACE)
    (line,) = caplog.messages
    told = fields(line)
    assert float(told.pop("total_ms")) >= 0
    prompt = told.pop("prompt")
    assert int(prompt) == engine.generations[0].prompt_tokens
    assert told == {
        "id": "abc", "route": path, "status": "200", "cached": "1", "completion": "3", "finish": "stop",
        "queue_ms": "1.0", "first_token_ms": "2.0", "traceparent": TRACE,
    }  # fmt: skip


async def test_a_refused_request(client: AsgiClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    await client.post("/v1/completions", b"{")
    engine.refusal = QueueFull("full")
    await client.post("/v1/completions", b'{"prompt": "x"}')
    await client.get("/nowhere\n=")
    assert [fields(line)["status"] for line in caplog.messages] == ["400", "429", "404"]
    assert fields(caplog.messages[-1])["route"] == "other"
    assert "prompt" not in fields(caplog.messages[0])


async def test_a_client_that_leaves(client: AsgiClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    engine.script = play(asyncio.Event())
    async with client.open_post("/v1/completions", b'{"prompt": "x"}') as connection:
        await engine.submitted.wait()
        connection.disconnect()
        await connection.task
    (line,) = caplog.messages
    assert (fields(line)["status"], fields(line)["finish"]) == ("499", "none")


async def test_requests_over_a_socket(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line and a count each, under the id of the upgrade."""
    counted: list[tuple[str, int]] = []
    monkeypatch.setattr(metrics, "observe_http", lambda path, status: counted.append((path, status)))
    app = make_app(engine, max_body_bytes=1000)
    async with websocket(app, headers=[(b"x-request-id", b"abc"), (b"traceparent", TRACE.encode())]) as socket:
        await socket.answer(input="Hi")
        socket.create(input="Hi", temperature=9)
        await socket.event()
        socket.send("{")
        await socket.event()
        engine.script = play(EngineFailure("broken"))
        socket.create(input="Hi")
        await socket.until("response.failed")
        engine.script = play([Event(0, "a", 1)], 60.0)
        socket.create(input="Hi")
        await socket.until("response.output_text.delta")
    told = [fields(line) for line in caplog.messages]
    assert [line["id"] for line in told] == [f"abc-{n}" for n in range(1, 6)]
    assert [line["status"] for line in told] == ["200", "400", "400", "200", "499"]
    assert counted == [("ws:/v1/responses", int(line["status"])) for line in told]
    assert {line["route"] for line in told} == {"ws:/v1/responses"}
    assert {line["traceparent"] for line in told} == {TRACE}
    assert int(told[0]["prompt"]) == engine.generations[0].prompt_tokens
    assert (told[0]["completion"], told[0]["finish"], told[0]["first_token_ms"]) == ("3", "stop", "2.0")
    assert "prompt" not in told[1]


async def test_sockets_that_are_turned_away(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(engine, max_body_bytes=1000, max_websockets=0)
    for path in ("/v1/responses", "/v1/completions"):
        async with websocket(app, path) as socket:
            await socket.task
    assert [(fields(line)["route"], fields(line)["status"]) for line in caplog.messages] == [
        ("ws:/v1/responses", "503"), ("other", "403"),
    ]  # fmt: skip


async def test_probes_leave_no_line_and_it_can_be_switched_off(
    client: AsgiClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    await client.get("/healthz")
    silent = AsgiClient(make_app(engine, max_body_bytes=1000, request_log=False))
    await silent.post("/v1/completions", b'{"prompt": "x"}')
    assert not caplog.messages


@pytest.mark.parametrize("path", ["/healthz", "/nowhere"])
async def test_a_trace_is_passed_through(client: AsgiClient, path: str) -> None:
    assert (await client.get(path, traceparent=TRACE)).headers["traceparent"] == TRACE


@pytest.mark.parametrize("given", ["", "00-xyz", TRACE.upper(), TRACE + "\r\nx: y", TRACE + "-00"])
async def test_an_invalid_trace_is_not(client: AsgiClient, given: str) -> None:
    assert "traceparent" not in (await client.get("/healthz", traceparent=given)).headers
