"""What is told of a request to several models, by the process which answered it alone: a span, and what was said."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from support.asgi_client import AsgiClient, asked_from
from support.asgi_websocket import websocket
from support.pooled_apps import CHAT, bearer, pooled

from llamafast.api.keys import Keys
from llamafast.api.spans import Span

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STATE = "rojo=00f067aa0ba902b7, congo=t61rcWkgMzE"


class Sink(list[Span]):
    def add(self, span: Span) -> None:
        self.append(span)


async def test_once_whoever_answers(folder: Path, keys: Keys) -> None:
    own, children = Sink(), Sink()
    models = ({"alias": "a"}, {"alias": "b", "load": "on_demand"})
    server = {"otlp_endpoint": "http://127.0.0.1:1"}
    async with pooled(folder, *models, keys=keys, spans=(own, children), server=server) as pool:
        client = AsgiClient(pool.app)
        for model in ("a", "b"):
            body = {**CHAT, "model": model}
            headers = {"traceparent": TRACE, "tracestate": STATE, "x_request_id": model, **bearer("a")}
            await client.post("/v1/chat/completions", body, **headers)
        await client.post("/v1/chat/completions", {**CHAT, "model": "b", "temperature": 9}, **bearer("a"))
        await client.post("/v1/chat/completions", {**CHAT, "model": "nobody"}, traceparent=TRACE, **bearer("a"))
        await client.post("/v1/chat/completions", CHAT)
        traced = [(b"traceparent", TRACE.encode()), *((b"tracestate", part) for part in STATE.encode().split(b","))]
        async with websocket(pool.app, headers=[(b"authorization", b"Bearer secret-a"), *traced]) as socket:
            await socket.answer(model="b", input="hi")
            socket.create(model="nobody", input="hi")
            await socket.until("error")
        for (child,) in pool.children.values():
            assert child.config.server.otlp_endpoint == server["otlp_endpoint"]
    assert [span.name for span in children] == ["chat a", "chat b", "chat", "chat b"]
    assert [span.traceparent for span in children] == [TRACE.encode(), TRACE.encode(), b"", TRACE.encode()]
    assert [span.tracestate for span in children] == [STATE.encode(), STATE.encode(), b"", STATE.encode()]
    assert [span.attributes["llamafast.request.id"] for span in children[:2]] == ["a", "b"]
    assert {span.attributes["llamafast.key"] for span in children} == {"alice"}
    assert [span.attributes["error.type"] for span in own] == [
        "model_not_found", "invalid_request_error", "model_not_found",
    ]  # fmt: skip
    assert [span.traceparent for span in own] == [TRACE.encode(), b"", TRACE.encode()]


async def test_who_asks_is_told_by_whoever_answers(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamafast.requests")
    async with pooled(folder, {"alias": "a"}, {"alias": "b"}) as pool:
        app = asked_from(pool.app, "192.0.2.7")
        for model in ("a", "nobody"):
            await AsgiClient(app).post("/v1/chat/completions", {**CHAT, "model": model})
        async with websocket(app) as socket:
            await socket.answer(model="b", input="hi")
    assert len(caplog.messages) == 3
    assert all(" peer=192.0.2.7 " in line for line in caplog.messages), caplog.messages


async def test_what_was_said_where_the_log_has_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamafast.requests")
    server = {"request_log": {"content": True}}
    async with pooled(folder, {"alias": "a"}, {"alias": "b"}, server=server) as pool:
        client = AsgiClient(pool.app)
        for model in ("a", "nobody"):
            await client.post("/v1/chat/completions", {**CHAT, "model": model})
        async with websocket(pool.app) as socket:
            await socket.answer(model="b", input="hi")
    told = [record.fields for record in caplog.records if hasattr(record, "fields")]
    assert [json.loads(one["body"])["model"] for one in told] == ["a", "nobody", "b"]
    assert [one.get("answer") for one in told] == ["Hello world", None, "Hello world"]


async def test_what_sglang_calls_its_requests(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamafast.requests")
    async with pooled(folder, {"alias": "a"}, {"alias": "b", "load": "on_demand"}) as pool:
        client = AsgiClient(pool.app)
        reply = await client.post("/v1/chat/completions", {**CHAT, "model": "b", "rid": "mine"})
        assert (reply.headers["x-request-id"], reply.headers.get("x-llamafast-ignored")) == ("mine", None)
        body = {**CHAT, "model": "a", "rid": "mine", "new_here": 1}
        reply = await client.post("/v1/chat/completions", body, x_request_id="header")
        assert reply.headers["x-request-id"] == "header"
        assert sorted(reply.headers["x-llamafast-ignored"].split(", ")) == ["new_here", "rid"]
        reply = await client.post("/v1/chat/completions", {**CHAT, "model": "a", "rid": "a b"})
        assert (reply.status, reply.error["param"]) == (400, "rid")
        async with websocket(pool.app) as socket:
            socket.create(model="a", input="hi", rid="frame", new_here=1)
            created, *_ = await socket.until("response.completed")
            assert created["llamafast_ignored"] == ["new_here"]
    ids = [record.fields["id"] for record in caplog.records if hasattr(record, "fields")]
    assert ids[:2] == ["mine", "header"]
    assert ids[3] == "frame"
