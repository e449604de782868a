"""What the parent of several models says itself: lists, states, probes, metrics, and what administrators do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.asgi_client import AsgiClient
from support.fake_engine import INFO
from support.pooled_apps import CHAT, TWO, bearer, pooled

from llamafast import metrics
from llamafast.api.keys import Keys
from llamafast.engine.slot_info import SlotInfo
from llamafast.pool import catalogue, passing, system
from llamafast.pool.member import SILENCE_SECONDS


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake engine has no series."""
    text = b"# HELP llamafast:rows Rows.\n# TYPE llamafast:rows counter\nllamafast:rows_total 7.0\n"
    monkeypatch.setattr(metrics, "render", lambda *args, **kwargs: (text, "text/plain"))


async def test_the_list_tells_states(folder: Path) -> None:
    infos = {"chat": {"adapters": ("sql", "late")}}
    models = ({"alias": "chat", "loras": [{"path": "l", "name": "sql"}], "load": "on_demand"}, {"alias": "b"})
    async with pooled(folder, *models, infos=infos) as pool:
        client = AsgiClient(pool.app)
        before = {one["id"]: one for one in (await client.get("/v1/models")).json["data"]}
        assert list(before) == ["chat", "sql", "b"]
        assert before["chat"]["status"] == {"value": "unloaded"}
        assert before["sql"]["parent"] == "chat"
        assert (await client.post("/v1/completions", {"prompt": "hi", "model": "sql"})).json["model"] == "sql"
        after = {one["id"]: one for one in (await client.get("/models")).json["data"]}
        assert list(after) == ["chat", "sql", "late", "b"]
        assert after["chat"]["status"] == {"value": "loaded"}
        assert after["chat"]["max_model_len"] == 512
        assert (await client.post("/v1/completions", {"prompt": "hi", "model": "late"})).status == 200
        assert (await client.get("/v1/models/late")).json == after["late"]
        assert (await client.get("/v1/models/no")).status == 404


async def test_a_model_that_hangs_is_not_waited_for_by_one_after_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pooled(folder, {"alias": "a"}, {"alias": "b"}) as pool:
        client = AsgiClient(pool.app)
        while (await client.get("/health")).status != 200:
            await asyncio.sleep(0.005)
        asked: list[str] = []

        async def ask(door: Any, *arguments: Any, **options: Any) -> tuple[int, bytes]:
            if door is not pool.children["a"][0].door:
                return await passing.ask(door, *arguments, **options)
            asked.append(arguments[1])
            return await asyncio.Event().wait()  # type: ignore[return-value]

        for module in (catalogue, system):
            monkeypatch.setattr(module, "ask", ask)
            monkeypatch.setattr(module, "_SECONDS", 3.0)
        for _ in range(3):
            assert (await client.post("/v1/completions", {"model": "c", "prompt": "x"})).status == 404
            health = await client.get("/health")
            assert (health.status, health.json["status"]) == (503, "stalled")
        assert len(asked) == 1
        monkeypatch.undo()
        member = pool.fleet.members["a"]
        assert member.silent_at is not None
        member.silent_at -= SILENCE_SECONDS
        assert (await client.get("/health")).status == 200
        assert member.silent_at is None


async def test_each_model_is_read_by_its_own_name(folder: Path) -> None:
    async with pooled(folder, *({**model, "load": "on_demand"} for model in TWO)) as pool:
        client = AsgiClient(pool.app)
        for name, model in (("other", "other"), ("gpt-4o", "other"), ("chat", "chat"), ("gpt-4", "chat")):
            assert (await client.get(f"/v1/models/{name}")).json["id"] == model


async def test_an_administrator_loads_unloads_and_watches(folder: Path, keys: Keys) -> None:
    async with pooled(folder, {"alias": "chat", "load": "on_demand"}, keys=keys) as pool:
        client = AsgiClient(pool.app)
        for path in ("/models/load", "/models/unload"):
            assert (await client.post(path, {"model": "chat"})).status == 401
            assert (await client.post(path, {"model": "chat"}, **bearer("a"))).status == 403
            assert (await client.post(path, {"model": "no"}, **bearer("root"))).status == 404
            assert (await client.post(path, {}, **bearer("root"))).status == 400
        assert (await client.get("/models/sse", **bearer("a"))).status == 403
        async with client.open("GET", "/models/sse", [b""], bearer("root")) as watching:
            assert (await client.post("/models/load", {"model": "chat"}, **bearer("root"))).json == {"success": True}
            while b'"loaded"' not in watching.response.body:
                await asyncio.sleep(0.005)
            assert (await client.post("/models/unload", {"model": "chat"}, **bearer("root"))).json == {"success": True}
            while not watching.response.body.endswith(b'"unloaded"}}\n\n'):
                await asyncio.sleep(0.005)
            events = [json.loads(frame.removeprefix("data: ")) for frame in watching.response.frames]
        assert events[0] == {"model": "chat", "event": "status_change", "data": {"status": "unloaded"}}
        states = [event["data"]["status"] for event in events]
        assert list(dict.fromkeys(states)) == ["unloaded", "loading", "loaded", "unloading"]


@pytest.mark.parametrize(
    ("hint", "status"),
    [({"keep_alive": 0}, 200), ({"keep_alive": "0s"}, 200), ({"ttl": 0}, 200), ({"keep_alive": "soon"}, 400)],
)
async def test_a_body_may_say_for_how_long_the_model_stays(folder: Path, hint: dict[str, Any], status: int) -> None:
    async with pooled(folder, {"alias": "chat", "load": "on_demand"}) as pool:
        client = AsgiClient(pool.app)
        answer = await client.post("/v1/chat/completions", CHAT | {"model": "chat"} | hint)
        assert answer.status == status
        if status == 200:
            while pool.fleet.members["chat"].state.word != "unloaded":
                await asyncio.sleep(0.005)
        else:
            assert answer.error["param"] == "keep_alive"


async def test_probes(folder: Path) -> None:
    async with pooled(folder, {"alias": "chat"}, {"alias": "b", "load": "on_demand"}) as pool:
        client = AsgiClient(pool.app)
        assert (await client.get("/live")).status == 200
        assert (await client.get("/health")).json == {"status": "loading"}
        while (await client.get("/health")).status != 200:
            await asyncio.sleep(0.005)
        pool.engines["chat"].stalled_seconds = 100.0
        assert (await client.get("/healthz")).json == {"status": "stalled", "seconds": 100.0}
        pool.engines["chat"].stalled_seconds = 0.0
        pool.app.announce_drain()
        assert (await client.get("/ready")).json == {"status": "draining"}
        assert (await client.get("/healthz")).status == 200


@pytest.mark.usefixtures("rendered")
async def test_metrics_of_all_with_their_model(folder: Path) -> None:
    async with pooled(folder, {"alias": "a"}, {"alias": "b", "ttl_seconds": 1000}) as pool:
        client = AsgiClient(pool.app)
        for name in ("a", "b"):
            await client.post("/v1/chat/completions", CHAT | {"model": name})
        used = pool.fleet.members["b"].expires_at
        text = (await client.get("/metrics")).body.decode()
        assert 'llamafast:rows_total{model="a"} 7.0' in text
        assert 'llamafast:rows_total{model="b"} 7.0' in text
        assert text.count("# TYPE llamafast:rows_total counter") == 1
        assert 'llamafast:model_state{model="a",state="loaded"} 1.0' in text
        assert 'llamafast:model_loads_total{model="b"} 1.0' in text
        assert pool.fleet.members["b"].expires_at == used  # a scrape is no use


async def test_resetting_forgets_everywhere(folder: Path, keys: Keys) -> None:
    async with pooled(folder, {"alias": "a"}, {"alias": "b"}, keys=keys) as pool:
        client = AsgiClient(pool.app)
        for name in ("a", "b"):
            await client.post("/v1/chat/completions", CHAT | {"model": name}, **bearer("a"))
        assert (await client.get("/reset_prefix_cache", "POST", **bearer("a"))).status == 403
        answer = await client.get("/reset_prefix_cache", "POST", **bearer("root"))
        assert answer.status == 200
        assert answer.json.keys() == {"freed_bytes"}


async def test_a_reset_names_the_model_that_hangs_and_answers_for_the_others_at_once(
    folder: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pooled(folder, {"alias": "a"}, {"alias": "b"}, keys=keys) as pool:
        client = AsgiClient(pool.app)
        while (await client.get("/health")).status != 200:
            await asyncio.sleep(0.005)
        go, ordered = asyncio.Event(), []

        async def ask(door: Any, *arguments: Any, **options: Any) -> tuple[int, bytes]:
            if door is pool.children["a"][0].door:
                ordered.append(arguments)
                await go.wait()
            return await passing.ask(door, *arguments, **options)

        monkeypatch.setattr(system, "ask", ask)
        monkeypatch.setattr(system, "_RESET_SECONDS", 3.0)
        monkeypatch.setattr(system, "_SECONDS", 60.0)
        for engine in pool.engines.values():
            engine.saved_bytes = 70
        answer = await client.get("/reset_prefix_cache", "POST", **bearer("root"))
        assert (answer.status, answer.json["error"]["code"]) == (504, "request_timeout")
        assert (answer.json["unanswered"], answer.json["freed_bytes"]) == (["a"], 70)
        assert "did not answer: a;" in answer.json["error"]["message"]
        # one that has just let somebody wait in vain is not waited for at all, and told all the same
        pool.fleet.members["a"].heard(False)
        monkeypatch.setattr(system, "_RESET_SECONDS", 1000.0)
        assert (await client.get("/reset_prefix_cache", "POST", **bearer("root"))).json["unanswered"] == ["a"]
        assert ordered == [("POST", "/reset_prefix_cache")] * 2
        go.set()
        while pool.fleet.members["a"].silent:
            await asyncio.sleep(0.005)
        answer = await client.get("/reset_prefix_cache", "POST", **bearer("root"))
        assert (answer.status, answer.json) == (200, {"freed_bytes": 0})


async def test_lists_and_reads_name_their_model_in_the_query(folder: Path, keys: Keys) -> None:
    async with pooled(folder, {"alias": "a"}, {"alias": "b"}, keys=keys) as pool:
        client = AsgiClient(pool.app)
        assert (await client.get("/lora-adapters", **bearer("a"))).status == 400
    assert pool.children["a"]


async def test_slots_of_a_model_that_is_loaded_and_of_one_that_is_not(folder: Path) -> None:
    async with pooled(folder, *TWO) as pool:
        client = AsgiClient(pool.app)
        await client.post("/v1/chat/completions", CHAT | {"model": "chat"})
        pool.engines["chat"].info = replace(INFO, n_seq_max=2)
        slots = (await client.get("/slots?model=gpt-4")).json
        assert [(slot["id"], slot["is_processing"]) for slot in slots] == [(0, False), (1, False)]
        assert (await client.get("/slots?model=chat&fail_on_no_slot=1")).status == 200
        pool.engines["chat"].info = replace(INFO, n_seq_max=1)
        slot = SlotInfo(slot=0, task=1, n_prompt=1, n_computed=1, n_cached=0, n_memory=1, n_generated=0, n_left=1)
        pool.engines["chat"].running_slots = [slot]
        assert (await client.get("/slots?model=chat&fail_on_no_slot=1")).status == 503
        # asking does not load it
        assert (await client.get("/slots?model=other")).json == []
        assert (await client.get("/v1/models/other")).json["status"]["value"] == "unloaded"
        unnamed = await client.get("/slots")
        assert (unnamed.status, unnamed.error["param"]) == (400, "model")


async def test_a_model_that_goes_before_it_is_asked_answers_nothing(folder: Path) -> None:
    async with pooled(folder, {"alias": "a", "load": "on_demand"}) as pool:
        member = pool.fleet.members["a"]
        assert member.child is None
        assert await pool.app._system._asked(member, "GET", "/healthz") is None
