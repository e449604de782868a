"""Several models behind one application: routing, what passes byte for byte, what the parent says itself."""

from __future__ import annotations

import asyncio
import errno
import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import FakeEngine, play, say
from support.forms import CONTENT_TYPE, form
from support.fuzzing import Fuzzer, fault
from support.pooled_apps import CHAT, TWO, pooled

from llamafast.engine.types import Event
from llamafast.pool.asked import asked_in_form


@pytest.mark.parametrize(
    ("name", "model"),
    [("chat", "chat"), ("other", "other"), ("gpt-4o", "other"), ("gpt-4o-mini", "chat"), ("whatever", "chat")],
)
async def test_a_name_leads_to_its_model_exact_ones_before_patterns(folder: Path, name: str, model: str) -> None:
    async with pooled(folder, *TWO) as pool:
        answer = await AsgiClient(pool.app).post("/v1/chat/completions", CHAT | {"model": name})
        assert answer.status == 200
        assert answer.json["model"] == name
        assert len(pool.engines[model].generations) == 1


async def test_nobodys_name_is_not_found_and_none_is_asked_for(folder: Path) -> None:
    async with pooled(folder, {"alias": "a", "load": "on_demand"}, {"alias": "b", "load": "on_demand"}) as pool:
        client = AsgiClient(pool.app)
        answer = await client.post("/v1/chat/completions", CHAT | {"model": "c"})
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert "'a', 'b'" in answer.error["message"]
        for body in (CHAT, CHAT | {"model": None}, CHAT | {"model": ""}):
            answer = await client.post("/v1/chat/completions", body)
            assert (answer.status, answer.error["param"]) == (400, "model")
        answer = await client.post("/v1/chat/completions", CHAT | {"model": 5})
        assert (answer.status, answer.error["param"]) == (400, "model")
        answer = await client.post("/v1/chat/completions", b'{"model": "a",')
        assert answer.status == 400
        assert (await client.get("/v1/nothing")).status == 404
        assert (await client.get("/v1/chat/completions")).status == 405
        assert pool.children == {"a": [], "b": []}


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
async def test_a_form_names_its_model_too(folder: Path, path: str) -> None:
    async with pooled(folder, *TWO) as pool:
        client = AsgiClient(pool.app)
        for name, model in (("gpt-4o", "other"), ("chat", "chat")):
            body = form([("keep_alive", "5m"), ("model", name), ("file", b"\0" * 100_000)])
            answer = await client.post(path, body, content_type=CONTENT_TYPE)
            assert answer.status == 400
            assert f"the model {model!r} hears nothing" in answer.error["message"]


@pytest.mark.parametrize(
    ("name", "value", "seconds"),
    [
        ("keep_alive", "300", 300),
        ("keep_alive", "-1", -1),
        ("keep_alive", "5m", 300),
        ("ttl", "60", 60),
        ("ttl", "", None),
    ],
)
def test_how_long_a_model_stays_is_a_text_in_a_form(name: str, value: str, seconds: float) -> None:
    assert asked_in_form(form([(name, value)]), CONTENT_TYPE.encode()).ttl_seconds == seconds


async def test_forms_that_are_none_go_no_further(folder: Path) -> None:
    async with pooled(folder, {"alias": "a", "load": "on_demand"}, {"alias": "b", "load": "on_demand"}) as pool:
        client = AsgiClient(pool.app)
        path = "/v1/audio/transcriptions"
        for body, kind, status, param in (
            (form([("model", "c"), ("file", b"a")]), CONTENT_TYPE, 404, "model"),
            (form([("file", b"a")]), CONTENT_TYPE, 400, "model"),
            (form([("model", "a"), ("ttl", "soon")]), CONTENT_TYPE, 400, "ttl"),
            (form([("model", "a"), ("ttl", "nan")]), CONTENT_TYPE, 400, "ttl"),
            (form([("model", "a"), ("keep_alive", "inf")]), CONTENT_TYPE, 400, "keep_alive"),
            (form([("model", "a"), ("keep_alive", "soon")]), CONTENT_TYPE, 400, "keep_alive"),
            (form([("model", "a"), ("model", "b")]), CONTENT_TYPE, 400, "model"),
            (form([("model", "a")])[:-6], CONTENT_TYPE, 400, None),
            (b"{}", "application/json", 415, None),
        ):
            answer = await client.post(path, body, content_type=kind)
            assert (answer.status, answer.error["param"]) == (status, param)
        assert pool.children == {"a": [], "b": []}


@pytest.mark.parametrize("value", [b"1,", b'"a":1,'])
async def test_bodies_of_values_by_the_million_go_no_further(folder: Path, value: bytes) -> None:
    async with pooled(folder, {"alias": "a", "load": "on_demand"}) as pool:
        answer = await AsgiClient(pool.app).post("/v1/completions", b'{"model":"a","prompt":[' + value * 2_000_000)
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        assert pool.children == {"a": []}


async def test_a_body_counts_no_longer_than_until_it_is_passed_on(folder: Path) -> None:
    """The model's own process counts it as long as it needs it: of a recording not until its end is written down."""
    hold = asyncio.Event()
    async with pooled(folder, {"alias": "chat"}, server={"max_body_bytes": 1 << 20}) as pool:
        pool.engines["chat"].script = play(hold, [Event(0, "a", 1, "stop")])
        body = json.dumps(CHAT | {"model": "chat", "user": "x" * 100_000}).encode()
        async with AsgiClient(pool.app).open("POST", "/v1/chat/completions", [body]) as connection:
            await asyncio.wait_for(pool.engines["chat"].submitted.wait(), 30)
            assert pool.app._limits.held == 0
            hold.set()
            await asyncio.wait_for(connection.task, 30)
    assert connection.response.status == 200


LONG = {"messages": [{"role": "user", "content": "x" * 900_000}]}


@pytest.mark.parametrize(
    "body", [CHAT, CHAT | {"stream": True}, CHAT | {"n": 2}, {}, CHAT | {"temperature": -1}, LONG], ids=range(6)
)
async def test_answers_are_those_of_the_model_alone(
    folder: Path, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamafast.api.chat.endpoint.time", SimpleNamespace(time=lambda: 1_800_000_000.0))
    monkeypatch.setattr("llamafast.api.chat.endpoint.uuid4", lambda: type("U", (), {"hex": "0" * 32}))
    body = body | {"model": "chat"}
    async with pooled(folder, {"alias": "chat"}) as pool:
        headers = {"x-request-id": "mine", "traceparent": f"00-{'1' * 32}-{'2' * 16}-01"}
        through = await AsgiClient(pool.app).post("/v1/chat/completions", body, **headers)
        alone = await AsgiClient(make_app(FakeEngine(info=pool.engines["chat"].info))).post(
            "/v1/chat/completions", body, **headers
        )
    assert through.status == alone.status
    assert through.body == alone.body
    assert through.headers == alone.headers


async def test_bodies_that_are_almost_right_get_what_the_model_alone_says(folder: Path) -> None:
    alone = AsgiClient(make_app(FakeEngine(), max_body_bytes=1 << 20))
    alias = {"alias": "org-fake-model", "aliases": ["org/fake-model"]}
    async with pooled(folder, alias, server={"max_body_bytes": 1 << 20}) as pool:
        through = AsgiClient(pool.app)
        for seed in range(150):
            path, body = Fuzzer(seed).request()
            ours, direct = await through.post(path, body), await alone.post(path, body)
            assert fault(ours.status, ours.body) is None, (seed, path, body)
            assert ours.status == direct.status, (seed, path, body, ours.body, direct.body)


async def test_clients_of_anthropics_api_are_told_in_its_form(folder: Path) -> None:
    ask = {**CHAT, "model": "claude-x", "max_tokens": 9}
    second = {"alias": "other", "load": "on_demand", "aliases": ["claude-*"]}
    async with pooled(folder, {"alias": "chat"}, second) as pool:
        client = AsgiClient(pool.app)
        answer = await client.post("/v1/messages", ask)
        assert (answer.json["type"], answer.json["model"]) == ("message", "claude-x")
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
        streamed = await client.post("/v1/messages", ask | {"stream": True})
        assert streamed.frames[-1] == 'event: message_stop\ndata: {"type":"message_stop"}'
        counted = await client.post("/v1/messages/count_tokens", ask)
        usage = answer.json["usage"]
        assert counted.json["input_tokens"] == usage["input_tokens"] + usage["cache_read_input_tokens"]
        for body, status, kind in (
            (ask | {"model": "nobody"}, 404, "not_found_error"),
            (ask | {"max_tokens": -1}, 400, "invalid_request_error"),
            (b"{", 400, "invalid_request_error"),
        ):
            refused = await client.post("/v1/messages", body)
            assert (refused.status, refused.json["type"], refused.json["error"]["type"]) == (status, "error", kind)
        listed = (await client.get("/v1/models", anthropic_version="2023-06-01")).json
        assert [model["id"] for model in listed["data"]] == ["chat", "other"]
        assert (await client.get("/v1/models/other", anthropic_version="2023-06-01")).json["type"] == "model"
        assert (await client.post("/completion", {"prompt": "x", "model": "chat"})).json["content"] == "Hello world"


async def test_headers_that_no_model_reads_go_no_further(folder: Path) -> None:
    """A child's server takes a hundred at most, and the parent's as many beside its own."""
    fields = {f"x-{i}": "1" for i in range(150)}
    async with pooled(folder, {"alias": "chat"}) as pool:
        client = AsgiClient(pool.app)
        answer = await client.post("/v1/chat/completions", CHAT | {"model": "chat"}, **fields)
        assert answer.status == 200
        wrong = await client.post("/v1/chat/completions", CHAT | {"model": "chat"}, **{"content-type": "text/plain"})
        assert wrong.status == 415


async def test_out_of_descriptors_is_no_death(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with pooled(folder, {"alias": "chat"}) as pool:
        client, go = AsgiClient(pool.app), asyncio.Event()
        pool.engines["chat"].script = lambda plan: [*say("one ")(plan)[:1], go, *say("two")(plan)]
        body = CHAT | {"model": "chat", "stream": True}
        async with client.open_post("/v1/chat/completions", body) as connection:
            while b"one" not in connection.response.body:
                await asyncio.sleep(0.005)

            async def refuse(*_: Any) -> None:
                raise OSError(errno.EMFILE, "Too many open files")

            monkeypatch.setattr(asyncio.get_running_loop(), "create_unix_connection", refuse)
            answer = await client.post("/v1/chat/completions", CHAT | {"model": "chat"})
            assert (answer.status, answer.error["code"]) == (503, "engine_unavailable")
            assert answer.headers["retry-after"] == "1"
            monkeypatch.undo()
            go.set()
            await asyncio.wait_for(connection.task, 30)
        assert connection.response.complete


async def test_streams_come_piece_by_piece(folder: Path) -> None:
    async with pooled(folder, {"alias": "chat"}) as pool:
        go = asyncio.Event()
        pool.engines["chat"].script = lambda plan: [*say("one ")(plan)[:1], go, *say("two")(plan)]
        async with AsgiClient(pool.app).open_post(
            "/v1/chat/completions", CHAT | {"model": "chat", "stream": True}
        ) as connection:
            while b"one" not in connection.response.body:
                await asyncio.sleep(0.005)
            assert b"two" not in connection.response.body
            go.set()
            await asyncio.wait_for(connection.task, 30)
        assert connection.response.complete
        assert b"two" in connection.response.body


async def test_a_client_that_leaves_is_not_generated_for(folder: Path) -> None:
    async with pooled(folder, {"alias": "chat"}) as pool:
        engine = pool.engines["chat"]
        engine.script = lambda plan: [*say("one ")(plan)[:1], asyncio.Event()]
        async with AsgiClient(pool.app).open_post(
            "/v1/chat/completions", CHAT | {"model": "chat", "stream": True}
        ) as connection:
            while b"one" not in connection.response.body:
                await asyncio.sleep(0.005)
        until = asyncio.get_running_loop().time() + 5
        while not engine.generations[0].cancelled:
            assert asyncio.get_running_loop().time() < until
            await asyncio.sleep(0.005)
        assert pool.fleet.members["chat"].busy == 0


async def test_streams_that_wait_for_their_model_get_pings_and_then_the_answer(folder: Path) -> None:
    async with pooled(folder, {"alias": "chat", "load": "on_demand"}, ping_seconds=0.02) as pool:
        pool.hold = asyncio.Event()
        body = CHAT | {"model": "chat", "stream": True}
        async with AsgiClient(pool.app).open_post("/v1/chat/completions", body) as connection:
            while connection.response.body.count(b": ping") < 3:
                await asyncio.sleep(0.005)
            pool.hold.set()
            await asyncio.wait_for(connection.task, 30)
        assert connection.response.status == 200
        assert connection.response.events[-1]["choices"][0]["finish_reason"] == "stop"


async def test_whoever_leaves_in_any_way_leaves_the_model(folder: Path) -> None:
    """A reader that has stopped is given up, and then its connection ends: two cancellations."""
    async with pooled(folder, {"alias": "chat", "load": "on_demand"}, ping_seconds=0.01) as pool:
        pool.hold = asyncio.Event()
        pool.engines["chat"].script = lambda plan: [*say("one ")(plan)[:1], asyncio.Event()]
        body = CHAT | {"model": "chat", "stream": True}
        with suppress(asyncio.CancelledError):
            async with AsgiClient(pool.app).open_post("/v1/chat/completions", body) as connection:
                while b": ping" not in connection.response.body:
                    await asyncio.sleep(0.005)
                pool.hold.set()
                while b"data:" not in connection.response.body:
                    await asyncio.sleep(0.005)
                while not connection.task.done():
                    connection.task.cancel()
                    await asyncio.sleep(0)
        assert pool.fleet.members["chat"].busy == 0


async def test_what_is_wrong_after_pings_is_the_streams_last_event(folder: Path) -> None:
    async with pooled(folder, {"alias": "chat", "load": "on_demand"}, ping_seconds=0.01) as pool:
        pool.hold = asyncio.Event()
        body = CHAT | {"model": "chat", "stream": True, "temperature": -1}
        async with AsgiClient(pool.app).open_post("/v1/chat/completions", body) as connection:
            while b": ping" not in connection.response.body:
                await asyncio.sleep(0.005)
            pool.hold.set()
            await asyncio.wait_for(connection.task, 30)
        last = json.loads(connection.response.frames[-1].removeprefix("data: "))
        assert last["error"]["param"] == "temperature"


async def test_a_model_that_is_too_large_is_told_by_the_status(folder: Path) -> None:
    async with pooled(folder, {"alias": "chat", "load": "on_demand"}, pool={"max_bytes": 9}) as pool:
        for stream in (False, True):
            answer = await AsgiClient(pool.app).post("/v1/chat/completions", CHAT | {"model": "chat", "stream": stream})
            assert (answer.status, answer.error["code"]) == (503, "model_too_large")
            assert answer.headers["x-should-retry"] == "false"
            assert "10 bytes" in answer.error["message"]


async def test_every_route_of_a_model_is_a_route_of_the_pool(folder: Path) -> None:
    async with pooled(folder, {"alias": "a", "load": "on_demand"}) as pool:
        routes = {route.path: route for route in pool.app.routes.all}
        for route in make_app(FakeEngine()).routes.all:
            assert route.path in routes, route.path
            assert routes[route.path].methods.keys() == route.methods.keys(), route.path
            assert (routes[route.path].access, routes[route.path].changes) == (route.access, route.changes)


async def test_what_the_parent_reads_is_not_told_as_ignored(folder: Path) -> None:
    async with pooled(folder, {"alias": "a"}, {"alias": "b"}) as pool:
        body = {"model": "a", "prompt": "x", "keep_alive": "5m", "ttl": 300, "new_in_2031": 1}
        response = await AsgiClient(pool.app).post("/v1/completions", body)
        assert (response.status, response.headers["x-llamafast-ignored"]) == (200, "new_in_2031")
        error = (await AsgiClient(pool.app).post("/v1/completions", body | {"max_token": 5})).error
        assert error["message"] == "`max_token`: did you mean `max_tokens`?"
        error = (await AsgiClient(pool.app).post("/v1/completions", body | {"ttl": 60})).error
        assert error["message"] == "`ttl` says something else than `keep_alive`"
        # what it looks at for some endpoints only
        response = await AsgiClient(pool.app).post("/v1/completions", body | {"lora_name": "b"})
        assert (response.status, response.headers["x-llamafast-ignored"]) == (200, "new_in_2031, lora_name")
