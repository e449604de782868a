"""What the log has of what is said: nothing, or for those who must all of it, within bounds."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.asgi_websocket import websocket
from support.fake_engine import INFO, FakeEngine, play, say

from llamafast.api.app import App
from llamafast.api.contents import MAX_CHOICES, Contents
from llamafast.config import RequestLogConfig, ServerConfig
from llamafast.engine.embedding_info import EmbeddingInfo
from llamafast.engine.types import Event
from llamafast.errors import EngineFailure
from llamafast.front import warn_of_contents

SECRET = "S3CR3T"
CONTENT = RequestLogConfig(content=True)
TOOL = {"type": "function", "function": {"name": SECRET, "parameters": {"type": "object", "description": SECRET}}}
CHAT: dict[str, Any] = {"messages": [{"role": "system", "content": SECRET}, {"role": "user", "content": SECRET}]}
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": SECRET, "stop": [SECRET], "user": SECRET, "logprobs": 1, "echo": True}),
    ("/v1/completions", {"prompt": [SECRET, "x"], "stream": True, "suffix": ""}),
    ("/v1/chat/completions", {**CHAT, "stream": True, "metadata": {"a": SECRET}}),
    ("/v1/chat/completions", {**CHAT, "n": 2, "nobody_reads": SECRET, "tools": [TOOL]}),
    ("/v1/messages", {**CHAT, "messages": CHAT["messages"][1:], "system": SECRET, "max_tokens": 5}),
    ("/v1/responses", {"input": SECRET, "instructions": SECRET}),
    ("/v1/responses", {"input": [{"role": "user", "content": SECRET}], "stream": True}),
    ("/completion", {"prompt": SECRET, "stream": True}),
    ("/infill", {"input_prefix": SECRET, "input_suffix": SECRET}),
    ("/v1/embeddings", {"input": SECRET}),
    ("/v1/rerank", {"query": SECRET, "documents": [SECRET]}),
    ("/v1/score", {"text_1": SECRET, "text_2": SECRET}),
    ("/tokenize", {"content": SECRET}),
    ("/apply-template", CHAT),
    ("/v1/messages/count_tokens", {"messages": CHAT["messages"][1:]}),
    ("/v1/chat/completions/render", CHAT),
]
BAD: list[tuple[str, Any]] = [
    ("/v1/completions", f'{{"prompt": "{SECRET}", }}'.encode()),
    ("/v1/completions", {"prompt": SECRET, "temperature": SECRET}),
    ("/v1/completions", {"prompt": SECRET * 10_000}),
    ("/v1/chat/completions", {"messages": [{"role": SECRET, "content": SECRET}]}),
    ("/v1/chat/completions", {**CHAT, "tool_choice": {"type": "function", "function": {"name": SECRET}}}),
    ("/v1/chat/completions", {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": SECRET}}}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}], "max_tokens": SECRET}),
    ("/v1/responses", {"input": SECRET, "previous_response_id": SECRET}),
    ("/v1/embeddings", {"input": [SECRET, 1]}),
    ("/v1/rerank", {"query": SECRET, "documents": SECRET}),
]


def serving(**server: Any) -> tuple[App, FakeEngine]:
    fim = INFO.fim._replace(prefix=1, suffix=2, middle=3)
    embeds = EmbeddingInfo(pooling="mean", width=4, max_tokens=64)
    engine = FakeEngine(say("I say ", SECRET), info=replace(INFO, fim=fim, embedding=embeds, max_seq_len=8192))
    return make_app(engine, model={"rerank_by_cosine": True}, max_body_bytes=1 << 16, **server), engine


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def logged(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """The fields of the last line of the request log, as a line of JSON has them."""
    return next(record.fields for record in reversed(caplog.records) if hasattr(record, "fields"))


@pytest.mark.parametrize("off", [True, RequestLogConfig(), False])
async def test_no_text_of_a_request_or_an_answer_is_anywhere_in_the_log(
    caplog: pytest.LogCaptureFixture, off: Any
) -> None:
    app, engine = serving(request_log=off)
    client = AsgiClient(app)
    for path, body in GOOD:
        reply = await client.post(path, body)
        assert reply.status == 200, (path, reply.body)
    for path, body in BAD:
        reply = await client.post(path, body)
        assert 400 <= reply.status < 500, (path, body, reply.status)
    engine.script = play([Event(0, SECRET, 1)], EngineFailure(f"no room for '{SECRET}'"))
    for path, body in GOOD[:9]:
        await client.post(path, body)
    await client.get(f"/v1/responses/{SECRET}")
    async with websocket(app) as socket:
        engine.script = say(SECRET)
        await socket.answer(input=SECRET, nobody_reads=SECRET)
        socket.create(input=SECRET, temperature=SECRET)
        await socket.until("error")
        socket.send({"type": SECRET})
        await socket.until("error")
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith("request id=") for line in lines) >= (30 if off else 0)
    assert not [line for line in lines if SECRET in line]
    assert SECRET not in repr([getattr(record, "fields", None) for record in caplog.records])


async def test_bodies_and_answers_where_they_are_wanted(caplog: pytest.LogCaptureFixture) -> None:
    app, engine = serving(request_log=RequestLogConfig(content=True, max_content_chars=10**6))
    client = AsgiClient(app)
    for path, body in GOOD:
        await client.post(path, body)
        told = logged(caplog)
        assert json.loads(told["body"]) == body
        assert ("answer" in told) == ("completion" in told), path
        if "answer" in told:
            n_choices = len(engine.generations[-1].plan.prompts) * engine.generations[-1].plan.n
            said = f"I say {SECRET}"
            assert told["answer"] == (said if n_choices == 1 else [said] * n_choices)
    assert {len(one.plan.prompts) * one.plan.n for one in engine.generations} == {1, 2}
    for path, body in BAD[1:]:
        await client.post(path, body)
        assert json.loads(logged(caplog)["body"]) == body
    await client.get("/nowhere")
    assert "body" not in logged(caplog)


async def test_frames_and_what_came_of_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    app, engine = serving(request_log=CONTENT)
    client = AsgiClient(app)
    async with websocket(app) as socket:
        await socket.answer(input="hi\nthere")
        assert logged(caplog)["answer"] == f"I say {SECRET}"
        assert json.loads(logged(caplog)["body"])["input"] == "hi\nthere"
        engine.script = play([Event(0, "so far", 1)], EngineFailure("broken"))
        socket.create(input="x")
        await socket.until("response.failed")
    assert (logged(caplog)["answer"], logged(caplog)["code"]) == ("so far", EngineFailure("").code)
    engine.script = play([Event(0, "so ", 1)], asyncio.Event())
    async with client.open_post("/v1/completions", b'{"prompt": "x", "stream": true}') as connection:
        await connection.until_writes(1)
        connection.disconnect()
        await connection.task
    assert (logged(caplog)["answer"], logged(caplog)["finish"]) == ("so ", "cancelled")


async def test_a_line_is_one_line_of_bounded_length(caplog: pytest.LogCaptureFixture) -> None:
    app, engine = serving(request_log=RequestLogConfig(content=True, max_content_chars=50))
    client = AsgiClient(app)
    engine.script = say("first\nsecond " * 3, "\x1b[31m" * 20)
    body = json.dumps({"prompt": "é" * 100, "n": 2}, ensure_ascii=False).encode()
    await client.post("/v1/completions", body)
    line = caplog.messages[-1]
    assert "\n" not in line
    assert "\x1b" not in line
    assert len(line) < 1500
    told = logged(caplog)
    assert told["body"] == f"{body.decode()[:50]}...[{len(body) - len(body.decode()[:50].encode())} more bytes]"
    assert re.fullmatch(r"(first\nsecond ){3}\.\.\.\[100 more characters\]", told["answer"][0])
    assert told["answer"][1] == "first\nsecon...[128 more characters]"
    assert sum(len(text.partition("...")[0]) for text in told["answer"]) == 50
    # as text a list is JSON in a word of its own
    (word,) = re.findall(r'answer=("(?:[^"\\]|\\.)*")', line)
    assert json.loads(json.loads(word)) == told["answer"]


@pytest.mark.law
@given(st.text(), st.integers(1, 30))
def test_what_is_kept_is_the_beginning(text: str, most: int) -> None:
    text = text.encode("utf-8", "replace").decode()
    contents = Contents(most)
    contents.asked(text.encode())
    contents.note([Event(0, text[:7], 1)])
    contents.note([Event(0, text[7:], 1)])
    if len(text) <= most:
        assert contents.body == contents.answer == text
        return
    n_bytes = len(text[most:].encode())
    assert contents.body == f"{text[:most]}...[{n_bytes} more bytes]"
    assert contents.answer == f"{text[:most]}...[{len(text) - most} more characters]"


def test_bytes_that_are_no_text_and_choices_by_the_thousand() -> None:
    contents = Contents(1000)
    contents.asked(b"\xff\xfe{")
    assert contents.body == "\ufffd\ufffd{"
    contents.note(Event(index, "x", 1) for index in range(5000))
    assert isinstance(contents.answer, list)
    assert contents.answer[-1] == f"[{5000 - MAX_CHOICES} more choices]"
    assert len(contents.answer) == MAX_CHOICES + 1


def test_the_log_says_at_start_that_it_has_them(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_contents(ServerConfig())
    warn_of_contents(ServerConfig(request_log=RequestLogConfig()))
    assert not caplog.messages
    warn_of_contents(ServerConfig(request_log=CONTENT))
    (line,) = caplog.messages
    assert "what requests and answers say, up to 16384 characters of each (server.request_log.content)" in line
