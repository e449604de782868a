"""Which web pages may use the server, and by which names."""

from __future__ import annotations

import socket
from collections.abc import Collection
from typing import Any

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient, Response
from support.asgi_websocket import websocket
from support.fake_engine import FakeEngine

from llamafast.api.origins import Origins
from llamafast.config import ServerConfig

COMPLETIONS = "/v1/completions"
MODELS = "/v1/models"


def origins(*allowed: str, hosts: Collection[str] | None = None) -> Origins:
    return Origins(ServerConfig(cors_origins=allowed), hosts)


def client_of(engine: FakeEngine, origins: Origins) -> AsgiClient:
    return AsgiClient(make_app(engine, max_body_bytes=1000, origins=origins))


async def every_reply(client: AsgiClient, **headers: str) -> list[Response]:
    return [
        await client.get(MODELS, **headers),
        await client.get("/nowhere", **headers),
        await client.post(COMPLETIONS, {"prompt": "a", "stream": True}, **headers),
        await client.post(COMPLETIONS, b"{", **headers),
        await client.get(COMPLETIONS, "OPTIONS", access_control_request_method="POST", **headers),
    ]


async def test_no_page_may_use_the_server_unless_it_is_named(engine: FakeEngine) -> None:
    client = client_of(engine, origins())
    for origin in ("https://evil.example", "null", "http://127.0.0.1:8001", "http://127.0.0.1", ""):
        for response in await every_reply(client, origin=origin, host="127.0.0.1:8000"):
            assert (response.status, response.error["code"]) == (403, "origin_not_allowed")
            assert not any(name.startswith("access-control") for name in response.headers)
    for response in await every_reply(client, origin="null", host=""):
        assert response.status == 403
    assert not engine.generations


async def test_who_is_no_page_and_the_servers_own_pages_are_served(engine: FakeEngine) -> None:
    client = client_of(engine, origins())
    for headers in ({}, {"origin": "http://LOCALHOST:8000", "host": "localhost:8000"}, {"host": "x"}):
        assert [response.status for response in await every_reply(client, **headers)] == [200, 404, 200, 400, 204]


@pytest.mark.parametrize("origin", ["https://Chat.example.com", "vscode-webview://abc", "null"])
async def test_a_named_page_may_read_every_reply(engine: FakeEngine, origin: str) -> None:
    client = client_of(engine, origins(origin.lower()))
    replies = await every_reply(client, origin=origin)
    for response in replies:
        assert response.headers["access-control-allow-origin"] == origin
        assert "x-request-id" in response.headers["access-control-expose-headers"]
        assert "x-llamafast-ignored" in response.headers["access-control-expose-headers"]
        assert "origin" in response.headers["vary"].split(", ")
        assert "access-control-allow-credentials" not in response.headers
    preflight = replies[-1]
    assert (preflight.status, preflight.body) == (204, b"")
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    for response in await every_reply(client, origin="https://chat.example.com.evil"):
        assert response.status == 403
        assert response.headers["vary"] == "origin"


async def test_all_pages_may_where_the_config_says_so(engine: FakeEngine) -> None:
    for response in await every_reply(client_of(engine, origins("*")), origin="https://x"):
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.status != 403


OURS = ["localhost", "localhost:8000", "LocalHost.:80", "a.localhost", "127.0.0.1", "127.1.2.3:8", "[::1]:8000",
        "[::1]", "0.0.0.0:8000", socket.gethostname(), "llm.example.com:1", "a.b.inside", "inside"]  # fmt: skip
OTHERS = ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "8.8.8.8", "192.168.0.9:8000", "xinside",
          "[::2]", "example.com", "evil\u00e9", "[", "localhost@evil"]  # fmt: skip


@pytest.mark.parametrize("host", [*OURS, *OTHERS])
async def test_a_name_that_is_not_this_machines_is_refused(engine: FakeEngine, host: str) -> None:
    client = client_of(engine, origins(hosts=["llm.example.com", ".inside"]))
    for response in await every_reply(client, host=host):
        if host in OURS:
            assert response.status != 403
        else:
            assert (response.status, response.error["code"]) == (403, "host_not_allowed")


async def test_probes_come_to_an_address_and_some_clients_to_no_name(engine: FakeEngine) -> None:
    client = client_of(engine, Origins(ServerConfig(), ["llm.example.com"]))
    for path in ("/live", "/ready", "/health", "/healthz"):
        assert (await client.get(path, host="10.0.3.7:8000")).status == 200
        assert (await client.get(path, host="10.0.3.7:8000", origin="https://evil.example")).status == 403
    assert (await client.get(MODELS, host="")).status == 200


@pytest.mark.parametrize("hosts", [None, ["*"]])
async def test_any_name_will_do_where_the_config_says_so(engine: FakeEngine, hosts: list[str] | None) -> None:
    assert (await client_of(engine, origins(hosts=hosts)).get(MODELS, host="evil.example")).status == 200


@pytest.mark.parametrize(
    ("origin", "host", "accepted"),
    [
        (None, None, True),
        (None, b"localhost", True),
        (b"http://localhost", b"localhost", True),
        (b"https://page", b"localhost", True),
        (b"https://evil", b"localhost", False),
        (None, b"evil", False),
        (b"http://evil", b"evil", False),
    ],
)
async def test_sockets_are_no_way_around(
    engine: FakeEngine, origin: bytes | None, host: bytes | None, accepted: bool
) -> None:
    app: Any = make_app(engine, max_body_bytes=1000, origins=origins("https://page", hosts=()))
    headers = [(name, value) for name, value in ((b"origin", origin), (b"host", host)) if value is not None]
    async with websocket(app, headers=headers) as opened:
        if accepted:
            assert (await opened.answer(input="Hi"))["status"] == "completed"
        else:
            await opened.task
    assert opened.accepted == accepted
