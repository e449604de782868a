"""Responses that are kept: read again, continued, listed, deleted."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.blank_response import blank_response
from support.fake_engine import FakeEngine, say
from support.where_it_runs import beside_the_loop

from llamafast.api.app import App
from llamafast.api.responses import store as stores
from llamafast.api.responses.events import ReasoningItem
from llamafast.api.responses.schema import Response
from llamafast.api.responses.store import ResponseStore
from llamafast.config import ResponsesConfig
from llamafast.errors import ConfigError

URL = "/v1/responses"


def prompt(engine: FakeEngine) -> str:
    return engine.tokenizer.detokenize(engine.generations[-1].plan.prompts[0])


async def test_a_conversation(client: AsgiClient, engine: FakeEngine) -> None:
    first = (await client.post(URL, {"input": "One", "instructions": "Be kind."})).json
    engine.script = say("Again")
    second = (await client.post(URL, {"input": "Two", "previous_response_id": first["id"]})).json
    assert second["previous_response_id"] == first["id"]
    assert prompt(engine) == "<s><user>One</s><assistant>Hello world</s><user>Two</s><assistant>"
    await client.get(f"{URL}/{first['id']}", "DELETE")
    await client.post(URL, {"input": "Three", "previous_response_id": second["id"]})
    assert prompt(engine).endswith("<user>Two</s><assistant>Again</s><user>Three</s><assistant>")
    response = await client.post(URL, {"input": "Four", "previous_response_id": first["id"]})
    assert response.status == 400
    assert response.error["code"] == "previous_response_not_found"


async def test_read_and_delete(client: AsgiClient) -> None:
    created = (await client.post(URL, {"input": "Hi"})).json
    path = f"{URL}/{created['id']}"
    assert (await client.get(path)).json == created
    assert (await client.get(path, "DELETE")).json == {"id": created["id"], "object": "response", "deleted": True}
    for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        response = await client.get(path + tail, method)
        assert (response.status, response.error["param"]) == (404, "response_id")
    assert (await client.get(f"{path}/banana")).status == 404


async def test_half_a_surrogate_pair_names_no_response(client: AsgiClient) -> None:
    for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")):
        response = await client.get(f"{URL}/\ud800{tail}", method)
        assert (response.status, response.error["param"]) == (404, "response_id")


async def test_streams_are_kept_before_they_end(client: AsgiClient) -> None:
    async with client.open_post(URL, {"input": "Hi", "stream": True}) as connection:
        await connection.until_writes(4)
    created = msgspec.json.decode(connection.response.frames[0].partition("data: ")[2])["response"]
    assert (await client.get(f"{URL}/{created['id']}")).json["status"] == "completed"


async def test_what_is_not_to_be_kept_is_not(client: AsgiClient) -> None:
    created = (await client.post(URL, {"input": "Hi", "store": False})).json
    assert created["store"] is False
    assert (await client.get(f"{URL}/{created['id']}")).status == 404


async def test_cancel_is_for_the_background(client: AsgiClient) -> None:
    created = (await client.post(URL, {"input": "Hi"})).json
    assert (await client.get(f"{URL}/{created['id']}/cancel", "POST")).status == 400


async def get_items(app: App, response_id: str, query: str) -> Any:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    path = f"{URL}/{response_id}/input_items"
    await app(
        {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": query.encode()}, receive, send
    )
    return msgspec.json.decode(sent[1]["body"])


async def test_input_items_come_in_pages(engine: FakeEngine) -> None:
    app = make_app(engine, max_body_bytes=10_000)
    items = [{"role": "user", "content": str(i), "id": f"msg_{i}"} for i in range(5)]
    created = (await AsgiClient(app).post(URL, {"input": items})).json
    page = await get_items(app, created["id"], "")
    assert [item["id"] for item in page["data"]] == [f"msg_{i}" for i in (4, 3, 2, 1, 0)]
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("msg_4", "msg_0", False)
    page = await get_items(app, created["id"], "order=asc&limit=2&after=msg_1")
    assert [item["id"] for item in page["data"]] == ["msg_2", "msg_3"]
    assert page["has_more"]
    for query, param in (("order=up", "order"), ("limit=0", "limit"), ("limit=x", "limit"), ("after=msg_9", "after")):
        assert (await get_items(app, created["id"], query))["error"]["param"] == param


async def test_references_to_items(client: AsgiClient, engine: FakeEngine) -> None:
    created = (await client.post(URL, {"input": "One"})).json
    reference = {"type": "item_reference", "id": created["output"][0]["id"]}
    await client.post(URL, {"input": [reference, {"role": "user", "content": "Two"}]})
    assert prompt(engine) == "<s><assistant>Hello world</s><user>Two</s><assistant>"


async def test_conversations_are_searched_only_for_references(
    client: AsgiClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = (await client.post(URL, {"input": "One" + "." * 100, "store": True})).json
    told = beside_the_loop(monkeypatch, "llamafast.api.responses.responder._named")
    await client.post(URL, {"input": "Two", "previous_response_id": first["id"]})
    assert told == []
    monkeypatch.setattr("llamafast.api.delivery.INLINE_BYTES", 64)
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    response = await client.post(URL, {"input": [reference], "previous_response_id": first["id"]})
    assert (response.status, told) == (200, [True])
    assert prompt(engine).endswith("<assistant>Hello world</s><assistant>Hello world</s><assistant>")


async def test_items_are_decoded_and_encoded_beside_the_loop(
    client: AsgiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llamafast.api.delivery.INLINE_BYTES", 0)
    names = "responses.store.decoded_list", "responses.stored_items.StowedItems.encoded", "responses.stored._page"
    told = beside_the_loop(monkeypatch, *(f"llamafast.api.{name}" for name in names))
    created = (await client.post(URL, {"input": "One"})).json
    page = await client.get(f"{URL}/{created['id']}/input_items")
    await client.post(URL, {"input": "Two", "previous_response_id": created["id"]})
    assert page.json["data"][0]["content"] == [{"type": "input_text", "text": "One"}]
    assert told == [True] * 8


def answer(name: str) -> ReasoningItem:
    return ReasoningItem(id=f"{name}_item", status="completed", summary=[], content=[])


def response(name: str) -> Response:
    return msgspec.structs.replace(blank_response(name), status="completed", output=[answer(name)])


async def kept(store: ResponseStore, n: int) -> list[int]:
    return [i for i in range(n) if await store.response("", f"r{i}") is not None]


async def test_the_store_is_bounded_by_number() -> None:
    store = ResponseStore(ResponsesConfig(max_count=2))
    for i in range(3):
        assert await store.put("", response(f"r{i}"), [], [])
        assert await store.response("", "r0") is not None  # which was used last
    assert await kept(store, 3) == [0, 2]
    store.close()


async def test_the_store_is_bounded_by_bytes() -> None:
    store = ResponseStore(ResponsesConfig(max_bytes=20_000))
    for i in range(4):
        assert await store.put("", response(f"r{i}"), [], [{"id": f"i{i}", "content": "x" * 4000}])
    assert await kept(store, 4) == [2, 3]
    assert await store.items("", ["i0", "i2"]) == {"i2": {"id": "i2", "content": "x" * 4000}}
    assert not await store.put("", response("r4"), [], [{"id": "i4", "content": "x" * 20_000}])
    assert await kept(store, 5) == []
    store.close()


async def test_the_store_is_bounded_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(stores, "time", SimpleNamespace(time=lambda: now))
    store = ResponseStore(ResponsesConfig(max_age_seconds=10))
    await store.put("", response("r0"), [], [])
    now = 1009.0
    assert await kept(store, 1) == [0]
    now = 1010.0
    assert await kept(store, 1) == []
    await store.put("", response("r1"), [], [])
    assert await store.count() == 1
    store.close()


async def test_the_store_outlives_its_server(tmp_path: Path) -> None:
    config = ResponsesConfig(path=str(tmp_path / "responses.sqlite"))
    store = ResponseStore(config)
    await store.put("", response("r0"), [{"id": "a"}], [{"id": "b"}])
    store.close()
    store = ResponseStore(config)
    conversation = await store.history("", "r0")
    assert conversation is not None
    assert [item["id"] for item in conversation.items] == ["a", "b", "r0_item"]
    assert await store.input("", "r0") == ([{"id": "b"}], 12)
    store.close()
    for path in (str(tmp_path), "nowhere/x", "a\0b"):
        with pytest.raises(ConfigError, match=rf"^responses\.path: {Path.cwd() / path}: [^\[]+$"):
            ResponseStore(ResponsesConfig(path=path))


async def test_lists_of_items_come_back_whole_those_of_older_servers_too(tmp_path: Path) -> None:
    items = [{"id": str(i), "content": 'a,\n{"b"},\\\n'} for i in range(5)]
    path = tmp_path / "responses.sqlite"
    store = ResponseStore(ResponsesConfig(path=str(path)))
    await store.put("", response("r0"), items, items[:1])
    await store.put("", response("r1"), items, [])
    with sqlite3.connect(path) as db:  # as older servers wrote it
        db.execute("UPDATE responses SET before = ? WHERE id = 'r1'", (msgspec.json.encode(items),))
    db.close()
    for name, given in (("r0", items[:1]), ("r1", [])):
        conversation = await store.history("", name)
        assert conversation is not None
        assert conversation.items == [*items, *given, msgspec.to_builtins(answer(name))]
    store.close()


async def test_items_of_one_name_belong_to_their_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients name items, and those that send their history again use the same names."""
    now = 1000.0
    monkeypatch.setattr(stores, "time", SimpleNamespace(time=lambda: now))
    store = ResponseStore(ResponsesConfig())
    for i in range(3):
        now += i % 2  # the last two at one time
        await store.put("", response(f"r{i}"), [], [{"id": "shared", "content": str(i)}])
    for i in (2, 1, 0):
        assert (await store.items("", ["shared"]))["shared"]["content"] == str(i)
        assert await store.delete("", f"r{i}")
    assert await store.items("", ["shared"]) == {}
    store.close()


async def test_a_reference_outlives_another_response_with_the_item(client: AsgiClient, engine: FakeEngine) -> None:
    items = [{"role": "user", "content": "One", "id": "msg_shared"}]
    created = [(await client.post(URL, {"input": items})).json["id"] for _ in range(2)]
    await client.get(f"{URL}/{created[1]}", "DELETE")
    again = await client.post(URL, {"input": [{"type": "item_reference", "id": "msg_shared"}]})
    assert again.status == 200
    assert prompt(engine) == "<s><user>One</s><assistant>"


@pytest.fixture
def locked(tmp_path: Path, engine: FakeEngine) -> Iterator[tuple[AsgiClient, sqlite3.Connection]]:
    """A server with a stored response, and another process's way to hold its file."""
    path = str(tmp_path / "responses.sqlite")
    app = make_app(engine, max_body_bytes=10_000, responses=ResponsesConfig(path=path))
    other = sqlite3.connect(path, isolation_level=None)
    yield AsgiClient(app), other
    other.close()


async def test_a_locked_file_loses_no_answer(locked: tuple[AsgiClient, sqlite3.Connection], caplog: Any) -> None:
    client, other = locked
    kept_before = (await client.post(URL, {"input": "One"})).json["id"]
    other.execute("BEGIN IMMEDIATE")
    ticks, done = 0, asyncio.Event()

    async def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    answer = await client.post(URL, {"input": "Two"})
    streamed = await client.post(URL, {"input": "Two", "stream": True})
    done.set()
    await ticking
    assert ticks > 200  # the event loop went on: requests alone take some dozen turns of it
    assert (answer.status, answer.json["status"], answer.json["store"]) == (200, "completed", False)
    last = msgspec.json.decode(streamed.frames[-2].partition("data: ")[2])
    assert (last["type"], last["response"]["store"]) == ("response.completed", False)
    assert caplog.text.count("is not stored") == 2
    # what is there can be read and continued, but not deleted
    assert (await client.get(f"{URL}/{kept_before}")).status == 200
    assert (await client.post(URL, {"input": "Three", "previous_response_id": kept_before})).status == 200
    refused = await client.get(f"{URL}/{kept_before}", "DELETE")
    assert (refused.status, refused.error["code"]) == (503, "store_unavailable")
    other.execute("ROLLBACK")
    assert (await client.get(f"{URL}/{answer.json['id']}")).status == 404
    assert (await client.get(f"{URL}/{kept_before}", "DELETE")).status == 200
    assert (await client.post(URL, {"input": "Four"})).json["store"] is True


async def test_an_answer_that_is_too_large_to_keep_says_so(engine: FakeEngine) -> None:
    for config in (ResponsesConfig(max_count=0), ResponsesConfig(max_bytes=100)):
        client = AsgiClient(make_app(engine, max_body_bytes=10_000, responses=config))
        assert (await client.post(URL, {"input": "One"})).json["store"] is False
