"""One line per request, whatever became of it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient, asked_from
from support.asgi_websocket import websocket
from support.fake_engine import FakeEngine, play

from llamafast import metrics
from llamafast.engine.types import Event
from llamafast.errors import AnswerTimeout, EngineFailure, LlamafastError, QueueFull, ShuttingDown

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
    word, pairs = line.split(" ", 1)
    assert word == "request"
    found = re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)(?: |$)', pairs)
    assert " ".join(f"{key}={value}" for key, value in found) == pairs
    return {key: json.loads(value) if value.startswith('"') else value for key, value in found}


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
        "id": "abc", "route": path, "status": "200", "stream": stream.decode(), "cached": "1",
        "completion": "3", "finish": "stop", "queue_ms": "1.0", "first_token_ms": "2.0", "traceparent": TRACE,
    }  # fmt: skip


async def test_a_refused_request(client: AsgiClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    await client.post("/v1/completions", b"{")
    engine.refusal = QueueFull("full")
    await client.post("/v1/completions", b'{"prompt": "x"}')
    await client.get("/nowhere\n=\udcff")
    await client.post("/v1/completions", {"prompt": "x", "temperature": 9, "model": "fake"})
    await client.post("/v1/completions", {"prompt": "x", "model": "my model"})
    told = [fields(line) for line in caplog.messages]
    assert [line["status"] for line in told] == ["400", "429", "404", "400", "404"]
    assert "prompt" not in told[0]
    assert told[0]["error"].startswith("the body is not valid JSON: ")
    assert (told[1]["error"], told[1]["code"]) == ("full", "rate_limit_exceeded")
    assert (told[2]["route"], told[2]["path"], told[2]["code"]) == ("other", "/nowhere%0A%3D%3F", "not_found")
    assert (told[3]["param"], told[3]["code"]) == ("temperature", "invalid_request_error")
    assert told[3]["error"] == "`temperature`: expected `float` <= 2.0".replace("float", "number")
    assert (told[4]["model"], told[4]["param"], told[4]["code"]) == ("my model", "model", "model_not_found")
    assert told[4]["error"].startswith("the model ... does not exist")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x", "response_format": {"type": "SECRET"}}),
        ("/v1/completions", {"prompt": "x", "grammar": "root ::= SECRET"}),
        ("/v1/completions", {"prompt": "x", "samplers": ["SECRET"]}),
        ("/v1/completions", {"prompt": "x", "guided_json": '"SECRET'}),
        ("/v1/chat/completions", {"messages": [{"role": "SECRET", "content": "x"}]}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "tool", "tool_call_id": "SECRET", "content": {"a": "SECRET"}}]},
        ),
        ("/v1/responses", {"input": "x", "previous_response_id": "it's SECRET"}),
        ("/v1/responses", {"input": [{"type": "function_call_output", "call_id": "SECRET", "output": "SECRET"}]}),
        ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "SECRET"}]}], "max_tokens": 1}),
        ("/v1/completions", {"prompt": "x", "json_schema": {"type": "object", "SECRET": 1, "if": {"const": "SECRET"}}}),
    ],
)
async def test_why_it_was_refused_is_told_and_not_what_was_said(
    client: AsgiClient, caplog: pytest.LogCaptureFixture, path: str, body: dict[str, object]
) -> None:
    response = await client.post(path, body)
    assert response.status == 400, response.body
    (line,) = caplog.messages
    assert fields(line)["error"]
    assert "SECRET" not in line


@pytest.mark.parametrize("quoted", ["'\\" * 50_000, "'" + "x" * 50_000, '"' + "\\" * 50_001])
def test_a_reason_costs_little_however_long_the_message_is(quoted: str) -> None:
    start = time.thread_time()
    assert LlamafastError(f"there is no {quoted}").reason == "there is no ..."
    assert LlamafastError(f"there is no {quoted!r}").reason == "there is no ..."
    assert time.thread_time() - start < 0.1


async def test_answers_that_the_server_cuts_short(
    client: AsgiClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Some streamed: their status has gone out by then."""
    for error, finish in (
        (ShuttingDown(), "shutdown"),
        (AnswerTimeout("long"), "timeout"),
        (EngineFailure("x"), "failed"),
    ):
        engine.script = play([Event(0, "a", 1)], error)
        await client.post("/v1/completions", {"prompt": "x", "stream": True})
        await client.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]})
        await client.post("/v1/responses", {"input": "x", "stream": True})
        told = [fields(line) for line in caplog.messages[-3:]]
        assert [line["finish"] for line in told] == [finish] * 3
        assert [line["status"] for line in told] == ["200", str(error.status), "200"]
        assert {line["code"] for line in told} == {error.code}


async def test_refusals_are_counted_by_code(client: AsgiClient) -> None:
    def count() -> float:
        text = metrics.render_process().decode()
        name = 'llamafast:requests_refused_total{code="model_not_found",path="/v1/completions"} '
        return next((float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name)), 0.0)

    before = count()
    await client.post("/v1/completions", {"prompt": "x", "model": "y"})
    assert count() == before + 1


async def test_a_client_that_leaves(client: AsgiClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    engine.script = play(asyncio.Event())
    async with client.open_post("/v1/completions", b'{"prompt": "x"}') as connection:
        await engine.submitted.wait()
        connection.disconnect()
        await connection.task
    (line,) = caplog.messages
    assert (fields(line)["status"], fields(line)["finish"]) == ("499", "cancelled")


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"), ("2001:db8::1", "2001:db8::1"),
        ("127.0.0.1", None), ("::1", None), ("::ffff:127.0.0.1", None), ("", None),
    ],
)  # fmt: skip
async def test_who_asks_from_another_machine(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture, address: str, peer: str | None
) -> None:
    app = asked_from(make_app(engine), address)
    await AsgiClient(app).post("/v1/completions", {"prompt": "hi"})
    await AsgiClient(app).post("/api/chat", {})
    async with websocket(app) as socket:
        await socket.answer(input="Hi")
    assert [fields(line).get("peer") for line in caplog.messages] == [peer] * 3


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
