"""Several models behind one application: routing, what passes byte for byte, what the parent says itself."""

from __future__ import annotations

import asyncio
import errno
import json
from pathlib import Path
from typing import Any

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient, Response
from support.asgi_websocket import websocket
from support.fake_engine import FakeEngine, say
from support.fuzzing import Fuzzer, fault
from support.pooled_apps import pooled

from llamafast import metrics
from llamafast.api.keys import Keys
from llamafast.pool import catalogue, passing, system
from llamafast.pool.member import SILENCE_SECONDS

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
TWO = ({"alias": "chat", "aliases": ["gpt-*", "*"]}, {"alias": "other", "load": "on_demand", "aliases": ["gpt-4o"]})


@pytest.fixture(autouse=True)
def rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake engine has no series."""
    text = b"# HELP llamafast:rows Rows.\n# TYPE llamafast:rows counter\nllamafast:rows_total 7.0\n"
    monkeypatch.setattr(metrics, "render", lambda *args, **kwargs: (text, "text/plain"))


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    path = tmp_path / "keys"
    path.write_text("secret-a name=alice max_running=2 priority=-1\nsecret-b name=bob\nsecret-root name=root admin\n")
    path.chmod(0o600)
    return Keys(path)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer secret-{key}"}


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


@pytest.mark.parametrize("value", [b"1,", b'"a":1,'])
async def test_bodies_of_values_by_the_million_go_no_further(folder: Path, value: bytes) -> None:
    async with pooled(folder, {"alias": "a", "load": "on_demand"}) as pool:
        answer = await AsgiClient(pool.app).post("/v1/completions", b'{"model":"a","prompt":[' + value * 2_000_000)
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        assert pool.children == {"a": []}


LONG = {"messages": [{"role": "user", "content": "x" * 900_000}]}


@pytest.mark.parametrize(
    "body", [CHAT, CHAT | {"stream": True}, CHAT | {"n": 2}, {}, CHAT | {"temperature": -1}, LONG], ids=range(6)
)
async def test_answers_are_those_of_the_model_alone(
    folder: Path, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
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
            await asyncio.wait_for(connection.task, 5)
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
            await asyncio.wait_for(connection.task, 5)
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
            await asyncio.wait_for(connection.task, 5)
        assert connection.response.status == 200
        assert connection.response.events[-1]["choices"][0]["finish_reason"] == "stop"


async def test_what_is_wrong_after_pings_is_the_streams_last_event(folder: Path) -> None:
    async with pooled(folder, {"alias": "chat", "load": "on_demand"}, ping_seconds=0.01) as pool:
        pool.hold = asyncio.Event()
        body = CHAT | {"model": "chat", "stream": True, "temperature": -1}
        async with AsgiClient(pool.app).open_post("/v1/chat/completions", body) as connection:
            while b": ping" not in connection.response.body:
                await asyncio.sleep(0.005)
            pool.hold.set()
            await asyncio.wait_for(connection.task, 5)
        last = json.loads(connection.response.frames[-1].removeprefix("data: "))
        assert last["error"]["param"] == "temperature"


async def test_a_model_that_is_too_large_is_told_by_the_status(folder: Path) -> None:
    async with pooled(folder, {"alias": "chat", "load": "on_demand"}, pool={"max_bytes": 9}) as pool:
        for stream in (False, True):
            answer = await AsgiClient(pool.app).post("/v1/chat/completions", CHAT | {"model": "chat", "stream": stream})
            assert (answer.status, answer.error["code"]) == (503, "model_too_large")
            assert answer.headers["x-should-retry"] == "false"
            assert "10 bytes" in answer.error["message"]


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
            monkeypatch.setattr(module, "_SECONDS", 0.05)
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


async def test_every_route_of_a_model_is_a_route_of_the_pool(folder: Path) -> None:
    async with pooled(folder, {"alias": "a", "load": "on_demand"}) as pool:
        routes = {route.path: route for route in pool.app.routes.all}
        for route in make_app(FakeEngine()).routes.all:
            assert route.path in routes, route.path
            assert routes[route.path].methods.keys() == route.methods.keys(), route.path
            assert (routes[route.path].access, routes[route.path].changes) == (route.access, route.changes)


async def test_lists_and_reads_name_their_model_in_the_query(folder: Path, keys: Keys) -> None:
    async with pooled(folder, {"alias": "a"}, {"alias": "b"}, keys=keys) as pool:
        client = AsgiClient(pool.app)
        assert (await client.get("/lora-adapters", **bearer("a"))).status == 400
    assert pool.children["a"]


async def test_two_models_two_keys_stored_responses_and_one_socket(folder: Path, keys: Keys) -> None:
    models = ({"alias": "a", "load": "on_demand"}, {"alias": "b", "load": "on_demand"})
    async with pooled(folder, *models, keys=keys) as pool:
        client = AsgiClient(pool.app)
        headers = [(b"authorization", b"Bearer secret-a")]
        async with websocket(pool.app, headers=headers) as socket:
            first = await socket.answer(model="a", input="hi", store=True)
            second = await socket.answer(model="b", input="ho", store=True)
            # a frame that names no model is for the last one
            third = await socket.answer(input="on", previous_response_id=second["id"], store=True)
            # and what one has said another can continue
            fourth = await socket.answer(model="a", input="on", previous_response_id=third["id"], store=True)
            assert [one["model"] for one in (first, second, third, fourth)] == ["a", "b", "b", "a"]
            assert [len(pool.engines[name].generations) for name in ("a", "b")] == [2, 2]
            assert {one.tenant.name for engine in pool.engines.values() for one in engine.generations} == {"alice"}
            socket.create(model="nobody", input="hi")
            refusal = (await socket.until("error"))[-1]
            assert (refusal["status"], refusal["error"]["code"]) == (404, "model_not_found")
            socket.send("{")
            assert (await socket.until("error"))[-1]["error"]["code"] == "invalid_json"
            # its models may go while nothing runs on it, and come back
            for name in ("a", "b"):
                assert pool.fleet.members[name].busy == 0
                pool.fleet.unload(pool.fleet.members[name])
            while any(member.child for member in pool.fleet.members.values()):
                await asyncio.sleep(0.005)
            # what is kept is read without them
            for one in (first, fourth):
                assert (await client.get(f"/v1/responses/{one['id']}", **bearer("a"))).json["id"] == one["id"]
                assert (await client.get(f"/v1/responses/{one['id']}", **bearer("b"))).status == 404
            items = (await client.get(f"/v1/responses/{fourth['id']}/input_items", **bearer("a"))).json
            assert items["data"][0]["content"][0]["text"] == "on"
            assert (await client.get(f"/v1/responses/{first['id']}", "DELETE", **bearer("b"))).status == 404
            assert (await client.get(f"/v1/responses/{first['id']}", "DELETE", **bearer("a"))).status == 200
            assert not any(member.child for member in pool.fleet.members.values())
            fifth = await socket.answer(model="b", input="on", previous_response_id=fourth["id"])
            assert fifth["previous_response_id"] == fourth["id"]
            assert len(pool.children["b"]) == 2
        over_http = {"model": "a", "input": "x", "previous_response_id": second["id"]}
        assert (await client.post("/v1/responses", over_http, **bearer("b"))).status == 400
        assert (await client.post("/v1/responses", over_http, **bearer("a"))).status == 200


async def test_lanes_of_a_socket_hold_their_models_until_each_is_answered(folder: Path) -> None:
    async with pooled(folder, {"alias": "a", "load": "on_demand"}, {"alias": "b"}) as pool:
        slow = asyncio.Event()
        pool.engines["a"].script = lambda plan: [slow, *say("late")(plan)]
        async with websocket(pool.app) as socket:
            socket.create(model="a", input="hi", stream_id="slow")
            while not pool.engines["a"].generations:
                await asyncio.sleep(0.005)
            pool.engines["a"].script = say("soon")
            socket.create(model="a", input="hi", stream_id="fast")
            assert (await socket.until("response.completed"))[-1]["stream_id"] == "fast"
            assert (await socket.answer(model="b", input="hi", stream_id="other"))["model"] == "b"
            assert pool.fleet.members["a"].busy == 1
            socket.create(model="a", input="hi", stream_id="fast", temperature=-1)
            assert (await socket.until("error"))[-1]["stream_id"] == "fast"
            assert pool.fleet.members["a"].busy == 1
            slow.set()
            assert (await socket.until("response.completed"))[-1]["stream_id"] == "slow"
            assert pool.fleet.members["a"].busy == 0
        assert pool.fleet.members["b"].busy == 0


async def test_a_client_that_leaves_its_socket_leaves_its_models(folder: Path) -> None:
    async with pooled(folder, {"alias": "a"}) as pool:
        pool.engines["a"].script = lambda plan: [asyncio.Event()]
        async with websocket(pool.app) as socket:
            for lane in ("x", "y"):
                socket.create(model="a", input="hi", stream_id=lane)
            while len(pool.engines["a"].generations) < 2:
                await asyncio.sleep(0.005)
            assert pool.fleet.members["a"].busy == 2
        while pool.fleet.members["a"].busy or not all(one.cancelled for one in pool.engines["a"].generations):
            await asyncio.sleep(0.005)


async def test_a_socket_whose_key_is_taken_away_is_closed(folder: Path, keys: Keys, tmp_path: Path) -> None:
    async with pooled(folder, {"alias": "a"}, keys=keys) as pool:
        async with websocket(pool.app, headers=[(b"authorization", b"Bearer secret-a")]) as socket:
            assert (await socket.answer(model="a", input="hi"))["status"] == "completed"
            (tmp_path / "keys").write_text("secret-b name=bob\n")
            keys.load()
            socket.create(model="a", input="hi")
            assert (await socket.until("error"))[-1]["status"] == 401
            while socket.closed is None:
                await asyncio.sleep(0.005)
            assert socket.closed == 1008
        async with websocket(pool.app) as socket:
            await asyncio.wait_for(socket.task, 5)
            assert not socket.accepted
