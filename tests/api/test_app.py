"""Routes, headers and the endpoints that speak of the server itself."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest
from msgspec.structs import replace
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import INFO, FakeEngine

from llamafast import metrics
from llamafast.api.routes import MAX_NEAR
from llamafast.engine.model_facts import FimTokens

COMPLETIONS = "/v1/completions"
MODEL = {
    "id": "org/fake-model",
    "object": "model",
    "created": 1_700_000_000,
    "owned_by": "llamafast",
    "max_model_len": 512,
    "context_length": 512,
    "modalities": ["text"],
    "capabilities": ["completion", "tools"],
    "meta": {"n_vocab": 258, "n_ctx_train": 4096, "n_ctx": 512, "n_embd": 0, "n_params": 0, "size": 0},
}


@pytest.fixture(autouse=True)
def observed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was counted per route, in order."""
    calls: list[tuple[str, int]] = []
    monkeypatch.setattr(metrics, "observe_http", lambda path, status: calls.append((path, status)))
    return calls


async def test_models(client: AsgiClient) -> None:
    for path in ("/v1/models", "/models"):
        assert (await client.get(path)).json == {"object": "list", "data": [MODEL]}
    assert (await client.get("/v1/models/org/fake-model")).json == MODEL


async def test_what_fills_in_says_so(engine: FakeEngine) -> None:
    for fim, capable in (
        (FimTokens(prefix=1, suffix=2, middle=3), True),
        (FimTokens(prefix=1, suffix=2, suffix_first=True), True),
        (FimTokens(prefix=1, suffix=2), False),
        (FimTokens(middle=3), False),
    ):
        engine.info = replace(engine.info, fim=fim)
        (model,) = (await AsgiClient(make_app(engine)).get("/v1/models")).json["data"]
        assert ("insert" in model["capabilities"]) == capable


@pytest.mark.parametrize("path", ["/v1/models/other", "/v1/models/", "/v1/models/org/fake-model/", "/v1/models/\udcff"])
async def test_an_unknown_model(client: AsgiClient, path: str) -> None:
    response = await client.get(path)
    assert (response.status, response.error["code"]) == (404, "model_not_found")


async def test_metrics_are_those_of_the_engine(
    client: AsgiClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "render", lambda *args, **kwargs: (repr((args, kwargs)).encode(), "text/x-test; v=1"))
    engine.series, engine.distributions = {"steps": 3.0}, {"step_rows": ((1.0,), [2, 1], 4.0)}
    response = await client.get("/metrics")
    told = (
        (engine.series, engine.distributions),
        {"model": engine.info.id, "aliases": (), "adapters": [], "max_loras": 4},
    )
    assert (response.status, response.body) == (200, repr(told).encode())
    assert response.headers["content-type"] == "text/x-test; v=1"


@pytest.mark.parametrize("path", ["/v1", "/v1/completion", "/v1/completions/", "//v1/models", "/v1/\udcff\n"])
async def test_no_such_url(client: AsgiClient, path: str) -> None:
    for response in (await client.get(path), await client.post(path, b"{")):
        assert (response.status, response.error["code"]) == (404, "not_found")


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/chat/completions/", ["POST /v1/chat/completions"]),
        ("/v1/v1/embeddings", ["POST /v1/embeddings"]),
        ("//v1//models", ["GET /v1/models"]),
        ("/embeddings", ["POST /v1/embeddings"]),
        ("/api/chat", ["POST /v1/chat/completions", "POST /chat/completions"]),
        ("/api/tags", ["GET /v1/models"]),
        ("/api/embed", ["POST /v1/embeddings"]),
        ("/v1/chat/completion", ["POST /v1/chat/completions"]),
        ("/v1", ["POST /v1/completions", "POST /v1/chat/completions"]),
        ("/v1/batches/x", ["llamafast batch"]),
    ],
)
async def test_what_may_have_been_meant_is_told(client: AsgiClient, path: str, meant: list[str]) -> None:
    message = (await client.post(path, b"{}")).error["message"]
    assert all(each in message for each in meant), message
    assert message.count(",") < MAX_NEAR


@pytest.mark.parametrize("path", ["/x", "/" + "a/" * 9000, "/\udcff"])
async def test_of_a_path_like_no_other_nothing_is_said(client: AsgiClient, path: str) -> None:
    assert "there is " not in (await client.get(path)).error["message"].replace("there is nothing", "")


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [
        (COMPLETIONS, "GET", "POST, OPTIONS"),
        (COMPLETIONS, "DELETE", "POST, OPTIONS"),
        ("/v1/chat/completions", "PUT", "POST, OPTIONS"),
        ("/v1/models", "POST", "GET, HEAD, OPTIONS"),
        ("/v1/models/x", "DELETE", "GET, HEAD, OPTIONS"),
        ("/healthz", "POST", "GET, HEAD, OPTIONS"),
    ],
)
async def test_a_wrong_method(client: AsgiClient, path: str, method: str, allow: str) -> None:
    response = await client.get(path, method)
    assert (response.status, response.error["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == allow


async def test_head_is_get_without_body(client: AsgiClient) -> None:
    for path in ("/v1/models", "/healthz", "/v1/models/other", COMPLETIONS, "/nowhere"):
        got, head = await client.get(path), await client.get(path, "HEAD")
        assert head.body == b""
        assert head.status == got.status
        if path != COMPLETIONS:
            assert head.headers["content-length"] == str(len(got.body))


async def test_options_tell_the_methods(client: AsgiClient) -> None:
    response = await client.get(COMPLETIONS, "OPTIONS")
    assert (response.status, response.body, response.headers["allow"]) == (204, b"", "POST, OPTIONS")
    assert "access-control-allow-methods" not in response.headers


@pytest.mark.parametrize("given", ["abc-123", "a" * 128, "trace/1:2=3+4_5.6"])
async def test_a_sane_request_id_comes_back(client: AsgiClient, given: str) -> None:
    for response in (await client.get("/healthz", x_request_id=given), await client.get("/no", x_request_id=given)):
        assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", "a\r\nset-cookie: x", "é", "<script>"])
async def test_any_other_gets_a_new_one(client: AsgiClient, given: str) -> None:
    first, second = [(await client.get("/healthz", x_request_id=given)).headers["x-request-id"] for _ in range(2)]
    assert re.fullmatch(r"req_[0-9a-f]{32}", first)
    assert first != second


@pytest.mark.parametrize("length", ["10", "0", "", "-5", "x", "9" * 5000, str(10**9), None])
async def test_a_body_beyond_the_limit(client: AsgiClient, length: str | None) -> None:
    chunks = [b'{"prompt":"'] + [b"x" * 100_000] * 11 + [b'"}']
    headers = {} if length is None else {"content_length": length}
    response = await client.post(COMPLETIONS, chunks, **headers)
    assert (response.status, response.error["code"]) == (413, "body_too_large")
    assert str(1 << 20) in response.error["message"]


async def test_a_body_of_just_the_limit_in_many_pieces(client: AsgiClient) -> None:
    body = b'{"prompt":"a"}'.ljust(1 << 20)
    pieces = [body[at : at + 70_001] for at in range(0, len(body), 70_001)]
    response = await client.post(COMPLETIONS, pieces, content_length=str(len(body)))
    assert response.status == 200
    assert (await client.post(COMPLETIONS, [*pieces, b" "])).status == 413


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "Application/JSON ; charset=utf-8", "application/vnd.api+json", "application/problem+JSON"],
)
async def test_json_by_any_name(client: AsgiClient, content_type: str) -> None:
    assert (await client.post(COMPLETIONS, {"prompt": "a"}, content_type=content_type)).status == 200


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "json", "multipart/x"])
async def test_a_body_that_calls_itself_something_else(client: AsgiClient, content_type: str) -> None:
    response = await client.post(COMPLETIONS, {"prompt": "a"}, content_type=content_type)
    assert (response.status, response.error["code"]) == (415, "unsupported_media_type")


async def test_a_compressed_body(client: AsgiClient) -> None:
    assert (await client.post(COMPLETIONS, b"\x1f\x8b", content_encoding="gzip")).status == 415
    assert (await client.post(COMPLETIONS, {"prompt": "a"}, content_encoding="identity")).status == 200


async def test_a_body_without_a_type(engine: FakeEngine) -> None:
    body = iter([{"type": "http.request", "body": b'{"prompt":"a"}'}])
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        for message in body:
            return message
        return await asyncio.get_running_loop().create_future()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    app = make_app(engine, max_body_bytes=1000)
    await app({"type": "http", "method": "POST", "path": COMPLETIONS, "headers": []}, receive, send)
    assert statuses == [200]


async def test_requests_are_counted_by_route(client: AsgiClient, observed: list[tuple[str, int]]) -> None:
    await client.get("/v1/models/org/fake-model")
    await client.get("/v1/models/nope")
    await client.get("/nope/" + "x" * 1000)
    await client.get("/healthz", "PUT")
    await client.post(COMPLETIONS, {"prompt": "a", "stream": True})
    await client.post(COMPLETIONS, b"{")
    assert observed == [
        ("/v1/models/{id}", 200),
        ("/v1/models/{id}", 404),
        ("other", 404),
        ("/healthz", 405),
        (COMPLETIONS, 200),
        (COMPLETIONS, 400),
    ]


async def test_a_client_that_left_is_counted_as_such(
    client: AsgiClient, engine: FakeEngine, observed: list[tuple[str, int]]
) -> None:
    engine.script = lambda plan: [60.0]
    async with client.open_post(COMPLETIONS, {"prompt": "a"}):
        pass
    assert observed == [(COMPLETIONS, 499)]


async def test_a_bug_is_logged_and_hidden(
    client: AsgiClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> float:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(engine, "stalled", broken)
    with caplog.at_level(logging.ERROR):
        response = await client.get("/healthz")
    assert (response.status, response.error["type"]) == (500, "server_error")
    assert "secret" not in response.error["message"]
    assert "ZeroDivisionError: secret" in caplog.text


async def test_a_websocket_that_leads_nowhere_is_turned_away(engine: FakeEngine) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    app = make_app(engine, max_body_bytes=1)
    await app({"type": "websocket", "path": "/v1/completions", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


async def test_a_model_id_that_needs_escaping() -> None:
    engine = FakeEngine(info=replace(INFO, id='a"b\\c/é'))
    client = AsgiClient(make_app(engine, max_body_bytes=1000))
    events = (await client.post(COMPLETIONS, {"prompt": "a", "stream": True, "model": 'a"b\\c/é'})).events
    assert {event["model"] for event in events} == {'a"b\\c/é'}
