"""What probes are told: while the model loads, while the server serves, once it drains."""

from __future__ import annotations

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.asgi_websocket import websocket
from support.fake_engine import FakeEngine

from llamafast import metrics
from llamafast.api.app import App
from llamafast.api.client_wait import ClientWaits
from llamafast.api.loading import Gate
from llamafast.api.websocket import TRY_AGAIN_LATER
from llamafast.config import ServerConfig
from llamafast.errors import EngineUnavailable

COMPLETIONS = "/v1/completions"
CONFIG = ServerConfig()
PROBES = ("/live", "/ready", "/health", "/v1/health", "/healthz")


@pytest.fixture
def app(engine: FakeEngine) -> App:
    return make_app(engine, max_body_bytes=1 << 20, stall_seconds=5)


async def told(client: AsgiClient, path: str) -> tuple[int, object]:
    """The status and body of a probe. HEAD gets the same without the body, and what is red says when to ask again."""
    response, head = await client.get(path), await client.get(path, "HEAD")
    assert (head.status, head.body) == (response.status, b"")
    for answer in (response, head):
        assert answer.headers.get("retry-after") == (None if response.status == 200 else "1")
    return response.status, response.json


async def test_all_probes_of_a_server_that_serves_are_green(app: App) -> None:
    for path in PROBES:
        assert await told(AsgiClient(app), path) == (200, {"status": "ok"})


async def test_an_engine_that_stands_still_is_alive_but_not_ready(app: App, engine: FakeEngine) -> None:
    client = AsgiClient(app)
    engine.stalled_seconds = 5.0
    assert await told(client, "/ready") == (200, {"status": "ok"})
    assert app.is_alive()
    engine.stalled_seconds = 5.1
    assert not app.is_alive()  # as systemd's watchdog has it
    assert await told(client, "/live") == (200, {"status": "ok"})
    for path in ("/ready", "/health", "/healthz"):
        assert await told(client, path) == (503, {"status": "stalled", "seconds": 5.1})


async def test_a_drain_that_is_announced_turns_readiness_red_and_nothing_else(app: App, engine: FakeEngine) -> None:
    client = AsgiClient(app)
    app.announce_drain()
    for path in ("/live", "/healthz"):
        assert await told(client, path) == (200, {"status": "ok"})
    for path in ("/ready", "/health"):
        assert await told(client, path) == (503, {"status": "draining"})
    assert (await client.post(COMPLETIONS, {"prompt": "a"})).status == 200
    async with websocket(app) as socket:
        await socket.answer(input="Hi")
    engine.stalled_seconds = 5.1
    assert await told(client, "/ready") == (503, {"status": "draining"})
    assert await told(client, "/healthz") == (503, {"status": "stalled", "seconds": 5.1})


@pytest.mark.parametrize("path", PROBES)
async def test_probes_are_read_only(app: App, path: str) -> None:
    response = await AsgiClient(app).get(path, "PUT")
    assert (response.status, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_a_model_that_loads_is_alive_but_not_ready() -> None:
    client = AsgiClient(Gate(ClientWaits(CONFIG), CONFIG))
    assert await told(client, "/live") == (200, {"status": "ok"})
    for path in ("/ready", "/health", "/healthz"):
        assert await told(client, path) == (503, {"status": "loading"})


@pytest.mark.parametrize(
    ("path", "method"),
    [(COMPLETIONS, "POST"), (COMPLETIONS, "OPTIONS"), ("/v1/models", "GET"), ("/nowhere", "GET"), ("/live", "PUT")],
)
async def test_what_needs_a_model_is_refused_while_it_loads(
    path: str, method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counted: list[tuple[str, int]] = []
    monkeypatch.setattr(metrics, "observe_http", lambda route, status: counted.append((route, status)))
    client = AsgiClient(Gate(ClientWaits(CONFIG), CONFIG))
    await client.get("/ready")
    with caplog.at_level("INFO"):
        async with client.open(method, path, [b'{"prompt": ', b'"a"}']) as connection:
            await connection.task
    response = connection.response
    assert (response.status, response.error["code"]) == (503, "engine_unavailable")
    assert response.error["message"] == "the model is loading"
    assert response.headers["retry-after"] == "1"
    assert counted == [("other", 503)]
    assert "route=other status=503" in caplog.text


async def test_a_socket_is_turned_away_while_the_model_loads() -> None:
    async with websocket(Gate(ClientWaits(CONFIG), CONFIG)) as socket:
        await socket.task
    assert socket.closed == TRY_AGAIN_LATER


async def test_a_client_that_leaves_before_it_is_turned_away() -> None:
    sent: list[object] = []

    async def receive() -> dict[str, object]:
        return {"type": "websocket.disconnect", "code": 1006}

    async def send(message: object) -> None:
        sent.append(message)

    await Gate(ClientWaits(CONFIG), CONFIG)(
        {"type": "websocket", "path": "/v1/responses", "headers": []}, receive, send
    )
    assert sent == []


async def test_an_open_gate_is_the_application(app: App) -> None:
    gate = Gate(ClientWaits(CONFIG), CONFIG)
    client = AsgiClient(gate)
    gate.open(app)
    for path in PROBES:
        assert await told(client, path) == (200, {"status": "ok"})
    assert (await client.post(COMPLETIONS, {"prompt": "a"})).status == 200
    async with websocket(gate) as socket:
        await socket.answer(input="Hi")


async def test_a_server_that_drains_keeps_no_connection(app: App, engine: FakeEngine) -> None:
    """Whoever asks again does so elsewhere."""
    client = AsgiClient(app)
    assert "connection" not in (await client.get("/v1/models")).headers
    app.announce_drain()
    engine.refusal = EngineUnavailable("the server is shutting down")
    for response in (
        await client.get("/v1/models"),
        await client.get("/ready"),
        await client.get("/nowhere"),
        await client.post(COMPLETIONS, {"prompt": "a"}),
    ):
        assert response.headers["connection"] == "close"
    async with client.open("GET", "/v1/models", [b""], http_version="2") as connection:
        await connection.task
    assert "connection" not in connection.response.headers  # which HTTP/2 forbids
