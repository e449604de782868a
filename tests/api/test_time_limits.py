"""How long clients may take, by a clock that stands still while anything can run: bodies, readers, WebSockets."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Sequence
from typing import Any

import pytest
from support.apps import make_app
from support.asgi_client import Response
from support.asgi_websocket import websocket
from support.fake_engine import FakeEngine, play, say
from support.standing_clock import StandingClock, stand_still

from llamafast.api import client_wait, http
from llamafast.api import websocket as websocket_module
from llamafast.api.app import App
from llamafast.api.body_size import FREE_BYTES
from llamafast.api.client_wait import LOOKS_PER_LIMIT, ClientWaits
from llamafast.api.http import BYTES_PER_SECOND, PIECE_BYTES, Exchange
from llamafast.api.responses import intake, lanes
from llamafast.api.responses import socket as socket_module
from llamafast.api.websocket import WebSocket
from llamafast.config import ServerConfig
from llamafast.engine.types import Event

LIMIT = 0.1
# Of a client whose limit is not kept to.
MUCH_LATER = 5.0
COMPLETIONS = "/v1/completions"
STREAM = json.dumps({"prompt": "a", "stream": True}).encode()
WHOLE = json.dumps({"prompt": "a"}).encode()
GET_MODELS = ("GET", "/v1/models")
CLIENT = ("127.0.0.1", "4711")


class Connections:
    """What an App tells of its clients."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def begun(self, client: tuple[str, str]) -> None:
        self._tell("begun", client)

    def ended(self, client: tuple[str, str], send_seconds: float) -> None:
        assert send_seconds == LIMIT
        self._tell("ended", client)

    def close(self, client: tuple[str, str]) -> None:
        self._tell("close", client)

    def _tell(self, what: str, client: tuple[str, str]) -> None:
        assert client == CLIENT
        self.told.append(what)


class Client:
    """One request. ``body`` are pieces and seconds to wait before the next; it never ends without ``whole``. After
    ``reads`` writes nothing is taken any more."""

    def __init__(
        self, app: App, body: Sequence[bytes | float], *, whole: bool = True, reads: int = 1000, version: str = "1.1"
    ) -> None:
        self.response = Response()
        self._app = app
        self._body = list(body)
        self._whole = whole
        self._reads = reads
        self._version = version

    async def ask(self, method: str = "POST", path: str = COMPLETIONS) -> Response:
        """Until the App is done with it."""
        scope = {
            "type": "http", "http_version": self._version, "method": method, "path": path, "headers": [],
            "client": CLIENT,
        }  # fmt: skip
        await asyncio.wait_for(self._app(scope, self._receive, self._send), MUCH_LATER)
        return self.response

    async def _receive(self) -> dict[str, Any]:
        while self._body:
            piece = self._body.pop(0)
            if isinstance(piece, bytes):
                more = not self._whole or any(isinstance(rest, bytes) for rest in self._body)
                return {"type": "http.request", "body": piece, "more_body": more}
            await asyncio.sleep(piece)
        await asyncio.Event().wait()
        raise AssertionError

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.response.status = message["status"]
            return
        if len(self.response.writes) >= self._reads:
            await asyncio.Event().wait()
        self.response.writes.append(message["body"])
        self.response.complete = not message["more_body"]


@pytest.fixture(autouse=True)
async def clock(monkeypatch: pytest.MonkeyPatch) -> StandingClock:
    return stand_still(monkeypatch, client_wait, http, websocket_module, intake, lanes, socket_module)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def connections() -> Connections:
    return Connections()


def make(engine: FakeEngine, *, send_seconds: float = LIMIT, **options: float) -> App:
    return make_app(engine, body_seconds=LIMIT, send_seconds=send_seconds, max_body_bytes=2**20, **options)


@pytest.fixture
def app(engine: FakeEngine, connections: Connections) -> App:
    waits = ClientWaits(ServerConfig(body_seconds=LIMIT, send_seconds=LIMIT))
    waits.connections = connections  # type: ignore[assignment]
    return make_app(engine, max_body_bytes=2**20, waits=waits)


def is_kept_to(seconds: float) -> bool:
    """The limit, as far as it is looked at."""
    return LIMIT - 1e-6 < seconds < LIMIT * (1 + 2 / LOOKS_PER_LIMIT)


def endless(piece: bytes) -> list[bytes | float]:
    return [piece, LIMIT / 4] * 1000


# What would be worth ten seconds at the rate that is asked for.
MUCH = b" " * (10 * BYTES_PER_SECOND)


@pytest.mark.parametrize(
    "body",
    [[], [b"{"], endless(b" "), [MUCH], [MUCH, *endless(b" ")]],
    ids=["none", "half", "by bytes", "much and none", "much and by bytes"],
)
async def test_a_body_that_does_not_come_is_a_timeout(
    app: App, connections: Connections, clock: StandingClock, body: list[bytes | float]
) -> None:
    began = clock()
    response = await Client(app, body, whole=False).ask()
    assert is_kept_to(clock() - began)
    assert response.status == 408
    assert response.complete
    assert (response.error["type"], response.error["code"]) == ("invalid_request_error", "request_timeout")
    # the reply was sent: Granian closes the connection, as a part of the body was not read
    assert connections.told == ["begun", "ended"]


async def test_a_body_that_timed_out_is_not_held(app: App) -> None:
    await Client(app, [b" " * (FREE_BYTES + 1)], whole=False).ask()
    assert app._limits.held == 0


async def test_bytes_give_a_body_time(engine: FakeEngine) -> None:
    app = make_app(engine, body_seconds=3 * LIMIT, send_seconds=LIMIT, max_body_bytes=2**20)
    body: list[bytes | float] = [b" " * BYTES_PER_SECOND, LIMIT] * 5
    response = await Client(app, [*body, WHOLE]).ask()
    assert response.status == 200


async def test_a_body_that_comes_at_once_takes_no_timer(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio, "timeout", None)
    assert (await Client(app, [WHOLE]).ask()).status == 200


@pytest.mark.parametrize("piece", [b" ", b" " * BYTES_PER_SECOND], ids=["bytes", "much"])
async def test_a_body_that_nobody_wants_is_not_read_for_ever(app: App, clock: StandingClock, piece: bytes) -> None:
    began = clock()
    response = await Client(app, endless(piece), whole=False).ask(path="/nowhere")
    assert is_kept_to(clock() - began)
    assert response.status == 404


async def test_a_body_that_nobody_wants_is_not_read_without_end(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafast.api.http.DISCARDED_BYTES", 100)
    client = Client(app, [b" " * 40] * 1000)
    assert (await client.ask(path="/nowhere")).status == 404
    assert len(client._body) == 1000 - 3


@pytest.mark.parametrize("reads", [0, 1, 3])
async def test_a_stream_that_nobody_reads_is_cancelled(
    app: App,
    engine: FakeEngine,
    connections: Connections,
    clock: StandingClock,
    caplog: pytest.LogCaptureFixture,
    reads: int,
) -> None:
    engine.script = say(*"many texts")
    began = clock()
    with caplog.at_level(logging.INFO):
        response = await Client(app, [STREAM], reads=reads).ask()
    assert is_kept_to(clock() - began)
    assert len(response.writes) == reads
    assert not response.complete
    assert engine.generations[0].cancelled
    assert connections.told == ["begun", "close", "ended"]
    assert re.search(r"route=/v1/completions status=499 .*finish=cancelled", caplog.text)


async def test_a_ping_that_nobody_reads_ends_the_stream(engine: FakeEngine) -> None:
    engine.script = play([Event(0, "a", 1)], 60.0)
    app = make(engine, ping_seconds=0.01)
    response = await Client(app, [STREAM], reads=3).ask()
    assert response.writes[-1] == b": ping\n\n"
    assert engine.generations[0].cancelled


@pytest.mark.parametrize("method_and_path", [("POST", COMPLETIONS), GET_MODELS, ("POST", "/nowhere")])
async def test_an_answer_that_nobody_reads_ends(
    app: App, connections: Connections, caplog: pytest.LogCaptureFixture, method_and_path: tuple[str, str]
) -> None:
    with caplog.at_level(logging.INFO):
        await Client(app, [WHOLE], reads=0).ask(*method_and_path)
    assert "status=499" in caplog.text
    assert connections.told == ["begun", "close", "ended"]


async def test_others_keep_an_http2_connection(app: App, engine: FakeEngine, connections: Connections) -> None:
    await Client(app, [STREAM], reads=1, version="2").ask()
    assert engine.generations[0].cancelled
    assert connections.told == ["begun", "ended"]


async def test_a_reader_that_takes_something_in_time_gets_everything(engine: FakeEngine) -> None:
    engine.script = say(*"slow reading")

    class Slow(Client):
        async def _send(self, message: dict[str, Any]) -> None:
            await asyncio.sleep(LIMIT / 2)
            await super()._send(message)

    response = await Slow(make(engine, send_seconds=5 * LIMIT), [STREAM]).ask()
    assert response.events


async def test_a_large_answer_is_sent_in_pieces(app: App, engine: FakeEngine) -> None:
    engine.script = say("x" * (2 * PIECE_BYTES))
    response = await Client(app, [WHOLE]).ask()
    assert [len(piece) for piece in response.writes[:2]] == [PIECE_BYTES] * 2
    assert 0 < len(response.writes[2]) < PIECE_BYTES
    assert response.json["choices"][0]["text"] == "x" * (2 * PIECE_BYTES)
    # the first piece is taken, the second is not
    assert not (await Client(app, [WHOLE], reads=1).ask()).complete


async def test_whoever_cancels_the_app_is_heard(app: App, engine: FakeEngine) -> None:
    engine.script = play(60.0)
    task = asyncio.create_task(Client(app, [WHOLE]).ask())
    await engine.submitted.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.generations[0].cancelled


@pytest.mark.parametrize("body", [[], [WHOLE]], ids=["body", "reader"])
async def test_whoever_cancels_the_app_just_when_time_is_up_is_heard(app: App, body: list[bytes | float]) -> None:
    task = asyncio.create_task(Client(app, body, reads=0).ask())
    while not any(wait.deadline for wait in app._waits._open):
        await asyncio.sleep(0)
    (wait,) = app._waits._open
    assert wait._task is not None
    wait.expire()
    wait._task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_connection_that_cannot_be_closed_keeps_no_reader(
    app: App, engine: FakeEngine, connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(client: tuple[str, str]) -> None:
        raise OSError("no descriptor left")

    monkeypatch.setattr(connections, "close", fail)
    await asyncio.gather(*(Client(app, [STREAM], reads=0).ask() for _ in range(3)))
    await Client(app, [STREAM], reads=0).ask()
    assert [generation.cancelled for generation in engine.generations] == [True] * 4


async def test_a_send_that_is_cancelled_waits_for_nobody() -> None:
    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    with ClientWaits(ServerConfig()).of(scope) as wait:
        sending = asyncio.create_task(Exchange(scope, never, never, wait).write(b"x"))
        await asyncio.sleep(0)
        assert wait.deadline > 0
        sending.cancel()
        await asyncio.wait([sending])
        assert wait.deadline == 0


async def test_frames_that_nobody_reads_end_the_socket(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamafast.api.websocket.DROP_SECONDS", LIMIT)
    engine.script = say(*"many texts")
    app = make(engine)
    with caplog.at_level(logging.INFO):
        async with websocket(app) as socket:
            await socket.answer(input="a")
            socket.stop_reading()
            socket.create(input="a")
            socket.create(input="b", stream_id="other")
            await asyncio.wait_for(socket.task, MUCH_LATER)
    assert [generation.cancelled for generation in engine.generations] == [False, True, True]
    assert caplog.text.count("route=ws:/v1/responses status=499") == 2
    assert socket.sent[-1] == "websocket.close"
    assert app._limits.held == 0


async def test_a_silent_socket_is_closed(engine: FakeEngine, clock: StandingClock) -> None:
    began = clock()
    async with websocket(make(engine, websocket_idle_seconds=LIMIT)) as socket:
        await asyncio.wait_for(socket.task, MUCH_LATER)
        assert socket.closed == 1001
    assert is_kept_to(clock() - began)


async def test_a_socket_on_which_something_runs_or_comes_is_not_idle(engine: FakeEngine) -> None:
    idle = 5 * LIMIT
    engine.script = play([Event(0, "a", 1)], idle + LIMIT, [Event(0, "", 1, "stop")])
    async with websocket(make(engine, websocket_idle_seconds=idle)) as socket:
        answer = await socket.answer(input="a")
        assert answer["status"] == "completed"
        for _ in range(6):
            await asyncio.sleep(LIMIT)
            socket.send("nonsense")
            assert (await socket.event())["type"] == "error"
        assert socket.closed is None
        await asyncio.wait_for(socket.task, MUCH_LATER)
        assert socket.closed == 1001


async def test_a_large_frame_has_as_much_time_as_its_pieces_would_whoever_sends_beside_it() -> None:
    turn = asyncio.Lock()
    sent = []

    async def take(message: dict[str, Any]) -> None:
        async with turn:
            await asyncio.sleep(len(message["text"]) / PIECE_BYTES * LIMIT / 2)
            sent.append(len(message["text"]))

    scope = {"type": "websocket", "path": "/", "headers": []}
    with ClientWaits(ServerConfig(body_seconds=LIMIT, send_seconds=LIMIT)).of(scope) as wait:
        socket = WebSocket(scope, asyncio.Event().wait, take, wait, 0)  # type: ignore[arg-type]
        await asyncio.gather(*(socket.send(b"x" * n * PIECE_BYTES) for n in (1, 6, 1)))
        assert wait.deadline == 0
    assert sent == [PIECE_BYTES, 6 * PIECE_BYTES, PIECE_BYTES]
