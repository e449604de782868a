"""SGLang's `rid`: the body's name for its request, where the header has none."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from msgspec.structs import replace
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.asgi_websocket import websocket
from support.fake_engine import INFO, FakeEngine

from llamafast.api.spans import Span
from llamafast.engine.embedding_info import EmbeddingInfo

BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hi"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4},
    "/v1/responses": {"input": "hi"},
    "/completion": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
}


class Sink(list[Span]):
    def add(self, span: Span) -> None:
        self.append(span)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(info=replace(INFO, embedding=EmbeddingInfo(pooling="mean", width=4, max_tokens=64)))


@pytest.mark.parametrize("path", BODIES)
async def test_it_is_the_requests_id(engine: FakeEngine, caplog: pytest.LogCaptureFixture, path: str) -> None:
    caplog.set_level(logging.INFO, "llamafast.requests")
    spans = Sink()
    client = AsgiClient(make_app(engine, spans=spans, unknown_fields="refuse"))
    reply = await client.post(path, {**BODIES[path], "rid": "run-7/a"})
    assert (reply.status, reply.headers["x-request-id"]) == (200, "run-7/a")
    assert "x-llamafast-ignored" not in reply.headers
    assert caplog.messages[-1].startswith("request id=run-7/a ")
    assert spans[0].attributes["llamafast.request.id"] == "run-7/a"
    reply = await client.post(path, {**BODIES[path], "rid": None})
    assert reply.headers["x-request-id"].startswith("req_")


async def test_a_header_counts_before_it_and_the_client_is_told(engine: FakeEngine) -> None:
    client = AsgiClient(make_app(engine))
    body = {**BODIES["/v1/completions"], "rid": "body"}
    reply = await client.post("/v1/completions", body, x_request_id="header")
    assert (reply.headers["x-request-id"], reply.headers["x-llamafast-ignored"]) == ("header", "rid")
    reply = await client.post("/v1/completions", body, x_request_id="body")
    assert (reply.headers["x-request-id"], reply.headers.get("x-llamafast-ignored")) == ("body", None)
    # one that is no id is as none
    reply = await client.post("/v1/completions", body, x_request_id="a b")
    assert reply.headers["x-request-id"] == "body"


@pytest.mark.parametrize("rid", ["", "a b", "é", "x" * 129, "a\n", 5, ["a"], {"a": 1}, True])
async def test_one_that_is_none_is_refused(engine: FakeEngine, rid: Any) -> None:
    client = AsgiClient(make_app(engine))
    error = (await client.post("/v1/completions", {"prompt": "hi", "rid": rid})).error
    assert (error["param"], error["message"]) == ("rid", "`rid`: 1 to 128 letters, digits and characters of `._:/+=-`")
    assert not engine.generations


async def test_frames_have_their_own(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamafast.requests")
    async with websocket(make_app(engine), headers=[(b"x-request-id", b"abc")]) as socket:
        await socket.answer(input="hi", rid="mine")
        await socket.answer(input="hi")
    assert [line.split()[1] for line in caplog.messages] == ["id=mine", "id=abc-2"]
