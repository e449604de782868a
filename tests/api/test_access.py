"""Who may ask what: every route for every kind of key, over HTTP and WebSocket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient, Response
from support.asgi_websocket import websocket
from support.fake_engine import INFO, FakeEngine

from llamafast import metrics
from llamafast.api.app import App
from llamafast.api.keys import Keys
from llamafast.errors import EngineUnavailable

URL = "/v1/responses"
KINDS = ("none", "wrong", "key", "admin")
OPEN, KEY, ADMIN = (200,) * 4, (401, 401, 200, 200), (401, 401, 403, 200)
# What each route answers to which key; 200 stands for whatever comes of a request that is let in.
TABLE: dict[tuple[str, str], tuple[int, ...]] = {
    ("POST", "/v1/completions"): KEY,
    ("POST", "/v1/chat/completions"): KEY,
    ("POST", "/chat/completions"): KEY,
    ("POST", "/responses"): KEY,
    ("POST", "/v1/messages"): KEY,
    ("POST", "/completion"): KEY,
    ("POST", "/completions"): KEY,
    ("POST", "/infill"): KEY,
    ("POST", "/v1/audio/transcriptions"): KEY,
    ("POST", "/v1/audio/translations"): KEY,
    **{(method, path): KEY for method in ("GET", "HEAD") for path in ("/props", "/v1/props", "/slots")},
    ("POST", "/v1/messages/count_tokens"): KEY,
    ("POST", URL): KEY,
    ("GET", URL): KEY,
    ("WS", URL): KEY,
    ("POST", f"{URL}/input_tokens"): KEY,
    ("POST", f"{URL}/compact"): KEY,
    ("GET", f"{URL}/{{id}}"): KEY,
    ("HEAD", f"{URL}/{{id}}"): KEY,
    ("DELETE", f"{URL}/{{id}}"): KEY,
    ("GET", f"{URL}/{{id}}/input_items"): KEY,
    ("HEAD", f"{URL}/{{id}}/input_items"): KEY,
    ("POST", f"{URL}/{{id}}/cancel"): KEY,
    ("POST", "/v1/embeddings"): KEY,
    ("POST", "/v1/rerank"): KEY,
    ("POST", "/v2/rerank"): KEY,
    ("POST", "/rerank"): KEY,
    ("POST", "/v1/reranking"): KEY,
    ("POST", "/reranking"): KEY,
    ("POST", "/v1/score"): KEY,
    ("POST", "/apply-template"): KEY,
    ("POST", "/tokenize"): KEY,
    ("POST", "/detokenize"): KEY,
    ("POST", "/v1/chat/completions/render"): KEY,
    ("POST", "/chat/completions/render"): KEY,
    ("POST", "/v1/completions/render"): KEY,
    ("GET", "/version"): KEY,
    ("HEAD", "/version"): KEY,
    ("GET", "/v1/models"): KEY,
    ("HEAD", "/v1/models"): KEY,
    ("GET", "/models"): KEY,
    ("HEAD", "/models"): KEY,
    ("GET", "/v1/models/{id}"): KEY,
    ("HEAD", "/v1/models/{id}"): KEY,
    **{(method, path): OPEN for method in ("GET", "HEAD") for path in ("/live", "/ready", "/health", "/v1/health")},
    ("GET", "/healthz"): OPEN,
    ("HEAD", "/healthz"): OPEN,
    ("GET", "/metrics"): KEY,
    ("HEAD", "/metrics"): KEY,
    **{(method, path): OPEN for method in ("GET", "HEAD") for path in ("/", "/page/{id}")},
    ("GET", "/engine/events"): KEY,
    ("POST", "/reset_prefix_cache"): ADMIN,
    ("GET", "/lora-adapters"): KEY,
    ("HEAD", "/lora-adapters"): KEY,
    ("POST", "/lora-adapters"): ADMIN,
    ("POST", "/v1/load_lora_adapter"): ADMIN,
    ("POST", "/v1/unload_lora_adapter"): ADMIN,
}
NOWHERE = [("GET", "/nothing"), ("GET", "/v1"), ("POST", "/admin"), ("PUT", "/v1/models"), ("GET", f"{URL}/a/b/c")]
SERVED = {200, 400, 404, 415, 426}


@pytest.fixture(autouse=True)
def rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake engine has no series."""
    monkeypatch.setattr(metrics, "render", lambda *args, **kwargs: (b"", "text/plain"))


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    path = tmp_path / "keys"
    path.write_text("secret-a name=alice max_running=2 priority=-1\nsecret-b name=bob\nsecret-root name=root admin\n")
    path.chmod(0o600)
    return Keys(path)


def app_of(engine: FakeEngine, keys: Keys, **options: Any) -> App:
    return make_app(engine, max_body_bytes=10_000, keys=keys, **options)


@pytest.fixture
def app(engine: FakeEngine, keys: Keys) -> App:
    return app_of(engine, keys)


def credentials(kind: str, scheme: str) -> dict[str, str]:
    """Headers."""
    secret = {"none": "", "wrong": "secret-c", "key": "secret-a", "admin": "secret-root"}[kind]
    if not secret:
        return {}
    return {"x-api-key": secret} if scheme == "x-api-key" else {"authorization": f"{scheme} {secret}"}


def test_the_table_has_every_route(app: App) -> None:
    there = {(method, route.path) for route in app.routes.all for method in route.methods}
    assert {row for row in TABLE if row[0] != "WS"} == there
    assert {("WS", path) for path in app.socket_paths} == {row for row in TABLE if row[0] == "WS"}


def check_refusal(response: Response, status: int) -> None:
    assert response.status == status
    if response.body:  # HEAD has none
        if "request-id" in response.headers:
            kind = {401: "authentication_error", 403: "permission_error"}[status]
            assert response.json["error"]["type"] == kind
        else:
            assert (response.error["type"], response.error["param"]) == ("invalid_request_error", None)
        assert b"secret" not in response.body
    assert ("www-authenticate" in response.headers) == (status == 401)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "x-api-key"])
@pytest.mark.parametrize(("method", "path"), [row for row in TABLE if row[0] != "WS"])
async def test_each_route_for_each_key(app: App, engine: FakeEngine, scheme: str, method: str, path: str) -> None:
    client = AsgiClient(app)
    for kind, expected in zip(KINDS, TABLE[method, path], strict=True):
        async with client.open(method, path.replace("{id}", "x"), [b"{}"], credentials(kind, scheme)) as connection:
            await connection.task
        response = connection.response
        if expected == 200:
            assert response.status in SERVED
        else:
            check_refusal(response, expected)
            assert not engine.generations


@pytest.mark.parametrize("path", [path for method, path in TABLE if method == "WS"])
async def test_each_socket_for_each_key(app: App, path: str) -> None:
    for kind, expected in zip(KINDS, TABLE["WS", path], strict=True):
        for scheme in ("Bearer", "x-api-key"):
            headers = [(name.encode(), value.encode()) for name, value in credentials(kind, scheme).items()]
            async with websocket(app, path, headers, explains=True) as socket:
                if expected == 200:
                    assert (await socket.answer(input="Hi"))["status"] == "completed"
                else:
                    await socket.task
                    assert not socket.accepted
                    assert socket.refusal.status == expected
                    assert socket.refusal.error["type"] == "invalid_request_error"


async def test_a_socket_is_refused_where_the_server_sends_no_body(app: App) -> None:
    async with websocket(app) as socket:
        await socket.task
    assert (socket.accepted, socket.closed) == (False, 1008)


@pytest.mark.parametrize(("method", "path"), NOWHERE)
async def test_who_has_no_key_does_not_learn_what_there_is(app: App, method: str, path: str) -> None:
    client = AsgiClient(app)
    for kind in ("none", "wrong"):
        check_refusal(await client.get(path, method, **credentials(kind, "Bearer")), 401)
    assert (await client.get(path, method, **credentials("key", "Bearer"))).status in (404, 405)


async def test_a_browser_may_ask_without_a_key_what_it_may_send(app: App) -> None:
    assert (await AsgiClient(app).get("/v1/completions", "OPTIONS")).status == 204


@pytest.mark.parametrize(
    "given", ["Basic secret-a", "secret-a", "Bearer", "Bearer  ", "Bearer secret-a x", "Bearersecret-a"]
)
async def test_what_is_no_bearer_token(app: App, given: str) -> None:
    response = await AsgiClient(app).get("/v1/models", authorization=given)
    check_refusal(response, 401)


async def test_of_two_keys_one_is_enough(app: App) -> None:
    client = AsgiClient(app)
    for one, other in (("secret-a", "x"), ("x", "secret-a")):
        headers = {"authorization": f"Bearer {one}", "x-api-key": other}
        assert (await client.get("/v1/models", **headers)).status == 200


async def test_without_keys_everything_is_open_but_for_administrators(engine: FakeEngine) -> None:
    app = app_of(engine, Keys())
    client = AsgiClient(app)
    for (method, path), expected in TABLE.items():
        if method == "WS":
            continue
        async with client.open(
            method, path.replace("{id}", "x"), [b"{}"], credentials("admin", "Bearer")
        ) as connection:
            await connection.task
        if expected is ADMIN:
            check_refusal(connection.response, 403)
        else:
            assert connection.response.status in SERVED
    async with websocket(app) as socket:
        assert (await socket.answer(input="Hi"))["status"] == "completed"


async def test_a_key_of_the_environment_opens_what_needs_a_key(engine: FakeEngine) -> None:
    client = AsgiClient(app_of(engine, Keys(variable="secret")))
    assert (await client.get("/v1/models")).status == 401
    assert (await client.get("/v1/models", x_api_key="secret")).status == 200
    check_refusal(await client.get("/reset_prefix_cache", "POST", x_api_key="secret"), 403)


async def test_metrics_may_be_public(engine: FakeEngine, keys: Keys) -> None:
    client = AsgiClient(app_of(engine, keys, metrics_public=True))
    assert (await client.get("/metrics")).status == 200
    assert (await client.get("/v1/models")).status == 401


async def test_an_administrator_resets_the_prefix_cache(app: App, engine: FakeEngine) -> None:
    engine.saved_bytes = 4096
    response = await AsgiClient(app).get("/reset_prefix_cache", "POST", x_api_key="secret-root")
    assert response.json == {"freed_bytes": 4096}


async def test_a_refused_reset_waits_for_no_body_that_has_come(
    app: App, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamafast.api.http.DISCARD_SECONDS", 60.0)
    engine.refusal = EngineUnavailable("the server is shutting down")
    for body in (b"", [b"{", b"}"]):
        asked = AsgiClient(app).post("/reset_prefix_cache", body, x_api_key="secret-root")
        assert (await asyncio.wait_for(asked, 30)).status == 503


async def test_a_key_decides_how_its_requests_run(app: App, engine: FakeEngine) -> None:
    client = AsgiClient(app)
    for path, body in (
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        (URL, {"input": "a"}),
        (f"{URL}/compact", {"input": "a", "model": INFO.id}),
    ):
        assert (await client.post(path, body, authorization="Bearer secret-a")).status == 200
    async with websocket(app, headers=[(b"x-api-key", b"secret-a")]) as socket:
        await socket.answer(input="Hi")
    tenants = [generation.tenant for generation in engine.generations]
    assert len(tenants) == 5
    assert {(one.name, one.salt, one.priority, one.max_running) for one in tenants} == {("alice", "alice", -1, 2)}
