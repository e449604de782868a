"""The page of several models, and the engine of one of them, watched through the parent."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from support.asgi_client import AsgiClient
from support.pooled_apps import bearer, pooled

from llamafast.api import http
from llamafast.api.keys import Keys

COUNTERS = dict.fromkeys(
    ("running", "waiting", "free_sequences", "used_cells", "reserved_cells", "total_cells", "prompt_tokens",
     "prefix_hits_running", "prefix_hits_ram", "cache_bytes", "cache_max_bytes"), 0.0,
)  # fmt: skip


def watchable(engine: Any, n_tokens: int) -> None:
    engine.series = COUNTERS | {"prompt_tokens": n_tokens}
    engine.distributions = {"inter_token_seconds": ((0.01,), [0, 0], 0.0)}


async def loaded(pool: Any) -> None:
    async with asyncio.timeout(30):
        while not pool.fleet.ready:
            await asyncio.sleep(0.001)


async def test_the_parent_has_the_page_and_passes_on_what_engines_do(folder: Path) -> None:
    async with pooled(folder, {"alias": "a"}, {"alias": "b"}, {"alias": "c", "load": "on_demand"}) as pool:
        watchable(pool.engines["a"], 1)
        watchable(pool.engines["b"], 2)
        await loaded(pool)
        client = AsgiClient(pool.app)
        assert (await client.get("/")).headers["content-type"] == "text/html; charset=utf-8"
        assert (await client.get("/page/app.js")).status == 200
        assert pool.children["a"][0].config.server.page is False
        for query, n_tokens in (("", 1), ("?model=b", 2)):
            async with client.open("GET", f"/engine/events{query}", [b""]) as connection:
                await connection.until_writes(1)
                told = json.loads(connection.response.writes[0].removeprefix(b"data: "))
                assert told["totals"]["prompt_tokens"] == n_tokens


async def test_a_model_is_not_loaded_to_be_watched_nor_kept_for_it(folder: Path) -> None:
    async with pooled(folder, {"alias": "a"}, {"alias": "c", "load": "on_demand"}) as pool:
        watchable(pool.engines["a"], 1)
        await loaded(pool)
        client = AsgiClient(pool.app)
        refused = await client.get("/engine/events?model=c")
        assert (refused.status, "not loaded" in refused.error["message"]) == (503, True)
        assert (await client.get("/engine/events?model=nobody")).status == 404
        assert pool.children["c"] == []
        async with client.open("GET", "/engine/events", [b""]) as connection:
            await connection.until_writes(1)
            pool.fleet.unload(pool.fleet.members["a"])
            await asyncio.wait_for(connection.task, 30)
            assert connection.response.complete


async def test_whose_key_is_taken_away_watches_no_more(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "RECHECK_SECONDS", 0.01)
    file = folder / "watching-keys"
    file.write_text("secret-one name=one admin\nsecret-other name=other admin\n")
    file.chmod(0o600)
    keys = Keys(file)
    async with pooled(folder, {"alias": "a"}, keys=keys) as pool:
        watchable(pool.engines["a"], 1)
        await loaded(pool)
        client = AsgiClient(pool.app)
        async with (
            client.open("GET", "/engine/events", [b""], bearer("one")) as one,
            client.open("GET", "/models/sse", [b""], bearer("one")) as models,
            client.open("GET", "/engine/events", [b""], bearer("other")) as other,
        ):
            for connection in (one, models, other):
                await connection.until_writes(1)
            file.write_text("secret-other name=other admin\n")
            keys.reload()
            await asyncio.wait_for(asyncio.gather(one.task, models.task), 30)
            assert not other.task.done()
