"""Responses that are kept: read again, continued, listed, deleted."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from support.asgi_client import AsgiClient
from support.blank_response import blank_response
from support.fake_engine import FakeEngine, say

from llamafast.api.app import App
from llamafast.api.response_store import ResponseStore
from llamafast.api.schema.responses import Response
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
    app = App(engine, max_body_bytes=10_000, stall_seconds=1)
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


def response(name: str) -> Response:
    return msgspec.structs.replace(blank_response(name), status="completed", output=[{"id": f"{name}_item"}])


def kept(store: ResponseStore, n: int) -> list[int]:
    return [i for i in range(n) if store.response(f"r{i}") is not None]


def test_the_store_is_bounded_by_number() -> None:
    store = ResponseStore(ResponsesConfig(max_count=2))
    for i in range(3):
        store.put(response(f"r{i}"), [], [])
        assert store.response("r0") is not None  # which was used last
    assert kept(store, 3) == [0, 2]
    store.close()


def test_the_store_is_bounded_by_bytes() -> None:
    store = ResponseStore(ResponsesConfig(max_bytes=20_000))
    for i in range(4):
        store.put(response(f"r{i}"), [], [{"id": f"i{i}", "content": "x" * 4000}])
    assert kept(store, 4) == [2, 3]
    assert store.item("i0") is None
    assert store.item("i2") is not None
    store.put(response("r4"), [], [{"id": "i4", "content": "x" * 20_000}])
    assert kept(store, 5) == []
    store.close()


def test_the_store_is_bounded_by_age(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("time.time", lambda: now)
    store = ResponseStore(ResponsesConfig(max_age_seconds=10))
    store.put(response("r0"), [], [])
    now = 1009.0
    assert kept(store, 1) == [0]
    now = 1010.0
    assert kept(store, 1) == []
    store.put(response("r1"), [], [])
    assert len(store) == 1
    store.close()


def test_the_store_outlives_its_server(tmp_path) -> None:
    config = ResponsesConfig(path=str(tmp_path / "responses.sqlite"))
    store = ResponseStore(config)
    store.put(response("r0"), [{"id": "a"}], [{"id": "b"}])
    store.close()
    store = ResponseStore(config)
    conversation = store.conversation("r0")
    assert conversation is not None
    assert [item["id"] for item in conversation.items] == ["a", "b", "r0_item"]
    assert store.input("r0") == [{"id": "b"}]
    store.close()
    with pytest.raises(ConfigError, match=r"responses\.path"):
        ResponseStore(ResponsesConfig(path=str(tmp_path)))
