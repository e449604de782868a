"""A span a request, of what is known when it has ended, whichever endpoint it was for."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.asgi_websocket import websocket
from support.fake_engine import INFO, FakeEngine, play

from llamafast.api.keys import Keys
from llamafast.api.spans import ATTRIBUTES, Span
from llamafast.engine.embedding_info import EmbeddingInfo
from llamafast.engine.types import Event
from llamafast.errors import EngineFailure, QueueFull

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
MODEL = INFO.id
SECRET = "SECRET"
CHAT = {"messages": [{"role": "user", "content": SECRET}]}


class Sink(list[Span]):
    def add(self, span: Span) -> None:
        self.append(span)


@pytest.fixture
def spans() -> Sink:
    return Sink()


@pytest.fixture
def client(engine: FakeEngine, spans: Sink) -> AsgiClient:
    return AsgiClient(make_app(engine, spans=spans, max_body_bytes=1000, request_log=False))


async def test_a_chat_attribute_by_attribute(client: AsgiClient, engine: FakeEngine, spans: Sink) -> None:
    engine.cached_tokens = 2
    asked = {"max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 7, "n": 2, "presence_penalty": 0.1}
    body = {**CHAT, "model": MODEL, "stream": True, **asked}
    reply = await client.post("/v1/chat/completions", body, x_request_id="abc", traceparent=TRACE)
    (span,) = spans
    n_prompt = engine.generations[0].prompt_tokens
    first = span.attributes["gen_ai.response.time_to_first_chunk"]
    assert isinstance(first, float)
    assert first > 0.002
    assert span.attributes == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "llamafast", "gen_ai.request.model": MODEL,
        "gen_ai.request.stream": True, "gen_ai.request.max_tokens": 9, "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9, "gen_ai.request.top_k": 5, "gen_ai.request.seed": 7,
        "gen_ai.request.presence_penalty": 0.1, "gen_ai.request.choice.count": 2, "gen_ai.response.model": MODEL,
        "gen_ai.response.id": reply.events[0]["id"], "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.response.time_to_first_chunk": first, "gen_ai.usage.input_tokens": n_prompt,
        "gen_ai.usage.output_tokens": 6, "gen_ai.usage.cache_read.input_tokens": 2, "http.request.method": "POST",
        "http.route": "/v1/chat/completions", "http.response.status_code": 200, "llamafast.request.id": "abc",
    }  # fmt: skip
    assert (span.name, span.fault, span.traceparent) == (f"chat {MODEL}", None, TRACE.encode())
    (admitted, at), (first_token, later) = span.events
    assert (admitted, first_token) == ("admitted", "first_token")
    assert span.start < at < later
    assert later - at == pytest.approx(1e6, abs=1000)  # what the fake says
    assert 0 < span.end - span.start < 60e9


async def test_no_number_is_larger_than_a_span_has_room_for(client: AsgiClient, spans: Sink) -> None:
    asked = {"max_tokens": 10**100, "top_k": 10**30, "seed": 2**63 - 1}
    assert (await client.post("/v1/chat/completions", {**CHAT, **asked})).status == 200
    told = {f"gen_ai.request.{name}" for name in asked}
    assert {name: spans[0].attributes[name] for name in told} == dict.fromkeys(told, 2**63 - 1)


FOUR = {"gen_ai.request.max_tokens": 4}


@pytest.mark.parametrize(
    ("path", "body", "name", "told"),
    [
        ("/v1/completions", {"prompt": SECRET}, f"text_completion {MODEL}", {"gen_ai.request.max_tokens": 16}),
        ("/v1/completions", {"prompt": SECRET, "max_tokens": -1}, f"text_completion {MODEL}", {}),
        ("/completion", {"prompt": SECRET, "n_predict": 4}, f"text_completion {MODEL}", FOUR),
        ("/v1/messages", {**CHAT, "max_tokens": 4}, f"chat {MODEL}", FOUR),
        ("/v1/responses", {"input": SECRET, "max_output_tokens": 4}, f"chat {MODEL}", FOUR),
        ("/v1/responses", {"input": SECRET, "stream": True}, f"chat {MODEL}", {"gen_ai.request.stream": True}),
        ("/v1/responses/compact", {"input": SECRET}, f"chat {MODEL}", {"gen_ai.response.model": MODEL}),
    ],
)  # fmt: skip
async def test_each_endpoint_that_generates(
    client: AsgiClient, spans: Sink, path: str, body: dict[str, Any], name: str, told: dict[str, Any]
) -> None:
    reply = await client.post(path, body)
    assert reply.status == 200, reply.body
    (span,) = spans
    assert span.name == name
    assert told.items() <= span.attributes.items()
    assert ("gen_ai.request.max_tokens" in span.attributes) == ("gen_ai.request.max_tokens" in told)
    assert "gen_ai.usage.output_tokens" in span.attributes
    if path.startswith("/v1/") and not body.get("stream"):
        assert span.attributes["gen_ai.response.id"] == reply.json["id"]
    assert SECRET not in repr(span)


async def test_infill_and_what_counts_only(spans: Sink) -> None:
    fim = replace(INFO, fim=INFO.fim._replace(prefix=1, suffix=2, middle=3))
    client = AsgiClient(make_app(FakeEngine(info=fim), spans=spans))
    assert (await client.post("/infill", {"input_prefix": SECRET, "input_suffix": "x"})).status == 200
    assert (await client.post("/tokenize", {"content": SECRET})).status == 200
    assert (await client.post("/v1/messages/count_tokens", CHAT)).status == 200
    assert [span.name for span in spans] == [
        f"text_completion {MODEL}", "POST /tokenize", "POST /v1/messages/count_tokens",
    ]  # fmt: skip
    assert "gen_ai.operation.name" not in spans[1].attributes
    assert SECRET not in repr(spans)


async def test_vectors_and_scores(spans: Sink) -> None:
    embeds = replace(INFO, embedding=EmbeddingInfo(pooling="mean", width=4, max_tokens=64))
    app = make_app(FakeEngine(info=embeds), spans=spans, model={"rerank_by_cosine": True})
    client = AsgiClient(app)
    await client.post("/v1/embeddings", {"input": SECRET, "dimensions": 2})
    await client.post("/v1/rerank", {"query": SECRET, "documents": ["x", "y"]})
    await client.post("/v1/score", {"text_1": SECRET, "text_2": "x"})
    assert [span.name for span in spans] == [f"{kind} {MODEL}" for kind in ("embeddings", "rerank", "score")]
    told = spans[0].attributes
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.embeddings.dimension.count"]) == (len(SECRET) + 1, 2)
    assert "gen_ai.usage.output_tokens" not in told
    assert all(span.attributes["gen_ai.usage.input_tokens"] for span in spans)
    assert spans[0].events == ()
    assert SECRET not in repr(spans)


async def test_frames_of_a_socket(engine: FakeEngine, spans: Sink) -> None:
    """A span each, children of the upgrade's."""
    app = make_app(engine, spans=spans, max_body_bytes=1000)
    async with websocket(app, headers=[(b"x-request-id", b"abc"), (b"traceparent", TRACE.encode())]) as socket:
        response = await socket.answer(input=SECRET, seed=3)
        socket.create(input=SECRET, temperature=9)
        await socket.event()
        engine.script = play(EngineFailure("broken"))
        socket.create(input=SECRET)
        await socket.until("response.failed")
    assert [span.attributes["llamafast.request.id"] for span in spans] == ["abc-1", "abc-2", "abc-3"]
    assert {span.traceparent for span in spans} == {TRACE.encode()}
    first, refused, failed = spans
    assert first.name == f"chat {MODEL}"
    assert first.attributes["gen_ai.response.id"] == response["id"]
    assert not {name for name in first.attributes if name.startswith("http.")}
    assert (refused.fault, refused.attributes["error.type"]) == (None, "invalid_request_error")
    assert (failed.fault, failed.attributes["error.type"]) == ("broken", EngineFailure("").code)
    assert SECRET not in repr(spans)


async def test_errors(client: AsgiClient, engine: FakeEngine, spans: Sink) -> None:
    """Those of a server are its spans' status; a client's own are told by their kind alone, as OpenTelemetry's
    conventions have it."""
    await client.post("/v1/completions", {"prompt": "x", "model": "nobody's"})
    engine.refusal = QueueFull("full")
    await client.post("/v1/completions", {"prompt": "x"})
    engine.refusal = EngineFailure(f"it broke over '{SECRET}'")
    await client.post("/v1/completions", {"prompt": "x"})
    engine.refusal = None
    engine.script = play([Event(0, "a", 1)], EngineFailure("it broke"))
    await client.post("/v1/completions", {"prompt": "x", "stream": True})
    await client.get("/nowhere")
    told = [
        (span.name, span.attributes["http.response.status_code"], span.attributes["error.type"], span.fault)
        for span in spans
    ]
    failed = EngineFailure("").code
    assert told == [
        ("text_completion", 404, "model_not_found", None),
        (f"text_completion {MODEL}", 429, "rate_limit_exceeded", None),
        (f"text_completion {MODEL}", 500, failed, "it broke over ..."),
        (f"text_completion {MODEL}", 200, failed, "it broke"),
        ("GET", 404, "not_found", None),
    ]
    assert spans[0].attributes["gen_ai.request.model"] == "nobody's"
    assert spans[-1].attributes["url.path"] == "/nowhere"
    assert SECRET not in repr(spans)


async def test_a_client_that_leaves(client: AsgiClient, engine: FakeEngine, spans: Sink) -> None:
    engine.script = play(asyncio.Event())
    async with client.open_post("/v1/completions", b'{"prompt": "x"}') as connection:
        await engine.submitted.wait()
        connection.disconnect()
        await connection.task
    (span,) = spans
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (499, "cancelled")
    assert span.fault is None


async def test_probes_have_none_and_keys_are_told_by_their_name(engine: FakeEngine, spans: Sink, tmp_path: Any) -> None:
    (tmp_path / "keys").write_text("secret name=alice\n")
    (tmp_path / "keys").chmod(0o600)
    client = AsgiClient(make_app(engine, spans=spans, keys=Keys(tmp_path / "keys")))
    await client.get("/health")
    await client.get("/v1/models", authorization="Bearer secret")
    await client.post("/v1/completions", {"prompt": "x"}, authorization="Bearer secret")
    await client.post("/v1/completions", {"prompt": "x"}, authorization="Bearer wrong")
    assert [span.attributes.get("llamafast.key") for span in spans] == ["alice", None]
    assert "secret" not in repr(spans)


def test_no_name_is_one_of_content() -> None:
    """The conventions have attributes for what is said; none of them is here."""
    said = ("messages", "instructions", "prompt", "completion", "stop_sequences", "definitions", "arguments")
    assert not [name for name in ATTRIBUTES if name.endswith(said)]
