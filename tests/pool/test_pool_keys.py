"""Whose requests are, in front of several models, and the adapters that administrators load there."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.asgi_client import AsgiClient, Response
from support.pooled_apps import CHAT, bearer, pooled

from llamafast.api.keys import Keys


async def test_whose_a_request_is_the_parent_says_and_nobody_else(folder: Path, keys: Keys) -> None:
    async with pooled(folder, {"alias": "chat"}, keys=keys) as pool:
        client = AsgiClient(pool.app)
        body = CHAT | {"model": "chat"}
        forged = {"x-llamafast-tenant": 'secret-of-chat0 {"tenant":{"name":"bob"},"admin":true}'}
        assert (await client.post("/v1/chat/completions", body, **forged)).status == 401
        assert (await client.post("/v1/chat/completions", body, **forged, **bearer("a"))).status == 200
        tenant = pool.engines["chat"].generations[0].tenant
        assert (tenant.name, tenant.salt, tenant.max_running, tenant.priority) == ("alice", "alice", 2, -1)
        # and on the child's own socket nobody is anybody without its secret
        http = pool.children["chat"][0].door.http
        for header in (b"", b"wrong {}", b'wrong {"tenant":{"name":"alice"},"admin":true}'):
            response = await http.request(
                "GET", "http://localhost/v1/models", headers=[(b"x-llamafast-tenant", header)]
            )
            assert response.status == 401


async def test_a_key_does_not_reach_the_child(folder: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[bytes, bytes]] = []
    async with pooled(folder, {"alias": "chat"}, keys=keys) as pool:
        while pool.fleet.members["chat"].state.word != "loaded":
            await asyncio.sleep(0.005)
        app = pool.children["chat"][0].app
        admit = app._reception.serve

        async def serve(exchange: Any) -> None:
            seen.append(exchange.headers)
            await admit(exchange)

        monkeypatch.setattr(app._reception, "serve", serve)
        headers = {"x-api-key": "secret-a", "anthropic-beta": "s"}
        answer = await AsgiClient(pool.app).post("/v1/chat/completions", CHAT | {"model": "chat"}, **headers)
        assert answer.status == 200
    assert seen[-1][b"anthropic-beta"] == b"s"
    assert b"secret-a" not in b"".join(seen[-1].values())


async def test_adapters_of_run_time_are_found_by_their_names(folder: Path, keys: Keys) -> None:
    for name in ("new", "newer"):
        (folder / f"{name}.gguf").write_bytes(b"")
    models = ({"alias": "a", "aliases": ["n*"]}, {"alias": "b", "load": "on_demand"})
    async with pooled(folder, *models, keys=keys, server={"lora_dir": str(folder)}) as pool:
        client, root = AsgiClient(pool.app), bearer("root")

        async def post(path: str, **body: Any) -> Response:
            return await client.post(path, body, **root)

        load = {"lora_name": "new", "lora_path": "new.gguf"}
        assert (await client.post("/v1/load_lora_adapter", load, **bearer("a"))).status == 403
        assert (await post("/v1/load_lora_adapter", **load)).error["param"] == "model"
        assert (await post("/v1/completions", prompt="hi", model="new")).status == 200  # by the pattern
        assert len(pool.engines["a"].generations) == 1
        assert (await post("/v1/load_lora_adapter", **load, model="b")).status == 200
        assert (await post("/v1/completions", prompt="hi", model="new")).status == 200
        assert [len(pool.engines[name].generations) for name in ("a", "b")] == [1, 1]
        # one name space: another model has it already
        taken = await post("/v1/load_lora_adapter", **load, model="a")
        assert (taken.status, taken.error["param"]) == (400, "lora_name")
        for name, other in ("ab", "ba"):
            taken = await post("/v1/load_lora_adapter", lora_name=name, lora_path="new.gguf", model=other)
            assert (taken.status, taken.error["param"]) == (400, "lora_name")
        listed = {one["id"]: one for one in (await client.get("/v1/models", **root)).json["data"]}
        assert listed["new"]["parent"] == "b"
        # whoever unloads one need not know whose it is
        assert (await post("/v1/unload_lora_adapter", lora_name="new")).json["success"] is True
        assert (await post("/v1/completions", prompt="hi", model="new")).status == 200
        assert [len(pool.engines[name].generations) for name in ("a", "b")] == [2, 1]
        # and they go with the process
        assert (await post("/v1/load_lora_adapter", lora_name="x", lora_path="newer.gguf", model="b")).status == 200
        assert (await post("/v1/completions", prompt="hi", model="x")).status == 200
        pool.fleet.unload(pool.fleet.members["b"])
        while pool.fleet.members["b"].child is not None:
            await asyncio.sleep(0.005)
        assert (await post("/v1/completions", prompt="hi", model="x")).status == 404


async def test_an_adapter_has_its_name_before_its_loading_is_answered(folder: Path, keys: Keys) -> None:
    (folder / "new.gguf").write_bytes(b"")
    owners = []
    models = ({"alias": "a", "aliases": ["*"]}, {"alias": "b", "load": "on_demand"})
    async with pooled(folder, *models, keys=keys, server={"lora_dir": str(folder)}) as pool:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            async def sent(message: Any) -> None:
                if message["type"] == "http.response.start":
                    owners.append((await pool.catalogue.find("new")).name)
                await send(message)

            await pool.app(scope, receive, sent)

        body = {"lora_name": "new", "lora_path": "new.gguf", "model": "b"}
        for path in ("load", "unload"):
            assert (await AsgiClient(app).post(f"/v1/{path}_lora_adapter", body, **bearer("root"))).status == 200
        assert owners == ["b", "a"]


@pytest.mark.parametrize("leaves", [False, True])
async def test_of_several_who_load_one_name_at_a_time_one_gets_it(folder: Path, keys: Keys, leaves: bool) -> None:
    """Whether or not that one waits for it."""
    (folder / "new.gguf").write_bytes(b"")
    models = ({"alias": "a"}, {"alias": "b", "load": "on_demand"})
    async with pooled(folder, *models, keys=keys, server={"lora_dir": str(folder)}) as pool:
        client, root = AsgiClient(pool.app), bearer("root")

        async def load(model: str) -> Response:
            body = {"lora_name": "new", "lora_path": "new.gguf", "model": model}
            return await client.post("/v1/load_lora_adapter", body, **root)

        async def refused() -> None:
            for model in "ba":
                taken = await load(model)
                assert (taken.status, taken.error["param"]) == (400, "lora_name")

        adapters = pool.engines["a"].adapters
        adapters.may_load.clear()
        body = b'{"lora_name": "new", "lora_path": "new.gguf", "model": "a"}'
        async with client.open("POST", "/v1/load_lora_adapter", [body], root) as first:
            await adapters.loading.wait()
            await refused()
            if not leaves:
                adapters.may_load.set()
                await first.task
                assert first.response.status == 200
        await refused()
        adapters.may_load.set()
        while (await client.get("/v1/models/new", **root)).status != 200:
            await asyncio.sleep(0.005)
        await refused()
        assert not pool.engines["b"].adapters.names


async def test_a_name_that_came_to_nothing_is_free_again(folder: Path, keys: Keys) -> None:
    (folder / "new.gguf").write_bytes(b"")
    async with pooled(folder, {"alias": "a"}, {"alias": "b"}, keys=keys, server={"lora_dir": str(folder)}) as pool:
        client = AsgiClient(pool.app)
        for model, name, status in (("a", "missing", 403), ("b", "new", 200)):
            body = {"lora_name": "new", "lora_path": f"{name}.gguf", "model": model}
            assert (await client.post("/v1/load_lora_adapter", body, **bearer("root"))).status == status
