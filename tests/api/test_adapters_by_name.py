"""Adapters on the wire: listed with their parent, asked for as models or by id, and echoed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.json import encode
from msgspec.structs import replace
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import INFO, FakeAdapters, FakeEngine

from llamafast.api.keys import Keys
from llamafast.engine.adapter_info import AdapterInfo

PATHS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(info=replace(INFO, adapters=("sql", "poems/2")))


@pytest.fixture
def client(engine: FakeEngine) -> AsgiClient:
    return AsgiClient(make_app(engine))


async def test_they_are_listed_behind_the_model(client: AsgiClient) -> None:
    models = (await client.get("/v1/models")).json["data"]
    assert [model["id"] for model in models] == ["org/fake-model", "sql", "poems/2"]
    assert "parent" not in models[0]
    assert {model["parent"] for model in models[1:]} == {"org/fake-model"}
    assert (await client.get("/v1/models/poems/2")).json == models[2]
    assert (await client.get("/v1/models/poems")).status == 404


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", [None, "", "org/fake-model", "sql", "poems/2"])
async def test_a_request_names_one_as_its_model(client: AsgiClient, engine: FakeEngine, path: str, name: str) -> None:
    answer = await client.post(path, PATHS[path] | {"model": name})
    assert answer.status == 200
    assert engine.plan.model == (name or "")
    assert answer.json["model"] == (name or "org/fake-model")


@pytest.mark.parametrize("path", PATHS)
async def test_streams_name_it_too(client: AsgiClient, path: str) -> None:
    answer = await client.post(path, PATHS[path] | {"model": "sql", "stream": True})
    assert b'"model":"sql"' in answer.body
    assert b"org/fake-model" not in answer.body


@pytest.mark.parametrize("path", PATHS)
async def test_a_request_chooses_by_id(client: AsgiClient, engine: FakeEngine, path: str) -> None:
    chosen = [{"id": 1, "scale": 0.5}, {"id": 0, "scale": -2}]
    assert (await client.post(path, PATHS[path] | {"lora": chosen})).status == 200
    assert engine.plan.lora == ((1, 0.5), (0, -2.0))
    for nothing in ([], None):
        assert (await client.post(path, PATHS[path] | {"lora": nothing})).status == 200
    assert [generation.plan.lora for generation in engine.generations[1:]] == [(), ()]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "lora",
    [
        "sql",
        {"id": 0, "scale": 1},
        [0],
        [{"id": 0}],
        [{"scale": 1}],
        [{"id": -1, "scale": 1}],
        [{"id": 2**31, "scale": 1}],
        [{"id": 0.5, "scale": 1}],
        [{"id": 0, "scale": 8.5}],
        [{"id": 0, "scale": None}],
        [{"id": 0, "scale": "1"}],
        [{"id": 0, "scale": 1}] * 17,
    ],
)
async def test_what_is_no_choice_is_refused(client: AsgiClient, path: str, lora: Any) -> None:
    answer = await client.post(path, PATHS[path] | {"lora": lora})
    assert answer.status == 400
    assert answer.json["error"]["param"].startswith("lora")


async def test_another_name_is_nobodys(client: AsgiClient) -> None:
    for path, body in PATHS.items():
        answer = await client.post(path, body | {"model": "sq"})
        assert answer.status == 404
        assert answer.json["error"]["code"] == "model_not_found"


async def test_what_everybody_has_is_told_and_changed(client: AsgiClient) -> None:
    assert (await client.get("/lora-adapters")).json == [
        {"id": 0, "path": "0.gguf", "scale": 0.0, "name": "sql"},
        {"id": 1, "path": "1.gguf", "scale": 0.0, "name": "poems/2"},
    ]


async def test_those_that_prompts_activate_tell_how(engine: FakeEngine, client: AsgiClient) -> None:
    sql = AdapterInfo(0, "sql", "0.gguf", 0.0, (72, 105), "judge", "Say: ")
    engine.adapters = FakeAdapters([sql, AdapterInfo(1, "poems/2", "1.gguf", 0.0)])
    fields = {"alora_invocation_string": "Hi", "alora_invocation_tokens": [72, 105]}
    told = {"id": 0, "path": "0.gguf", "scale": 0.0, "name": "sql", "task_name": "judge", "prompt_prefix": "Say: "}
    assert (await client.get("/lora-adapters")).json == [
        told | fields,
        {"id": 1, "path": "1.gguf", "scale": 0.0, "name": "poems/2"},
    ]
    model, first, second = (await client.get("/v1/models")).json["data"]
    assert {name: first.get(name) for name in fields} == fields
    assert (await client.get("/v1/models/sql")).json == first
    assert not fields.keys() & (model.keys() | second.keys())


@pytest.mark.parametrize("body", [{}, [{"id": 0}], [{"id": 5, "scale": 1}], "x", [{"id": 0, "scale": 1}] * 2])
async def test_an_administrator_changes_it(tmp_path: Path, engine: FakeEngine, body: Any) -> None:
    path = tmp_path / "keys"
    path.write_text("secret name=a\nsecret-root name=root admin\n")
    client = AsgiClient(make_app(engine, keys=Keys(path)))
    refused = await client.post("/lora-adapters", encode([{"id": 0, "scale": 1}]), x_api_key="secret")
    assert refused.status == 403
    half = await client.post("/lora-adapters", encode([{"id": 1, "scale": 0.5}]), x_api_key="secret-root")
    assert half.json == {"success": True}
    assert (await client.post("/lora-adapters", encode(body), x_api_key="secret-root")).status == 400
    many = [{"id": 0, "scale": 1}] * 17
    assert (await client.post("/lora-adapters", encode(many), x_api_key="secret-root")).status == 400
    listed = await client.get("/lora-adapters", x_api_key="secret")
    assert [one["scale"] for one in listed.json] == [0.0, 0.5]


async def test_without_a_key_file_nobody_changes_it(client: AsgiClient) -> None:
    assert (await client.post("/lora-adapters", b"[]")).status == 403


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of adapters, and beside it what is none of them."""
    folder = tmp_path / "loras"
    (folder / "deep").mkdir(parents=True)
    for path in (folder / "sql.gguf", folder / "deep" / "poems.gguf", tmp_path / "secret.gguf"):
        path.write_bytes(b"x")
    (folder / "link.gguf").symlink_to(tmp_path / "secret.gguf")
    (folder / "inside.gguf").symlink_to(folder / "sql.gguf")
    return folder


@pytest.fixture
def keyed(tmp_path: Path, engine: FakeEngine, folder: Path) -> AsgiClient:
    path = tmp_path / "keys"
    path.write_text("secret name=a\nsecret-root name=root admin\n")
    return AsgiClient(make_app(engine, keys=Keys(path), lora_dir=str(folder)))


async def ask(client: AsgiClient, path: str, body: Any, key: str = "secret-root") -> Any:
    return await client.post(path, encode(body), x_api_key=key)


async def names(client: AsgiClient) -> list[str]:
    return [model["id"] for model in (await client.get("/v1/models", x_api_key="secret")).json["data"]]


async def test_an_administrator_loads_and_unloads(keyed: AsgiClient, folder: Path) -> None:
    for name, path in (
        ("one", "sql.gguf"),
        ("two", "deep/poems.gguf"),
        ("three", str(folder / "sql.gguf")),
        ("four", "inside.gguf"),
    ):
        answer = await ask(keyed, "/v1/load_lora_adapter", {"lora_name": name, "lora_path": path, "scale": 0.5})
        assert (answer.status, answer.json) == (200, {"success": True, "lora_name": name})
    assert await names(keyed) == ["org/fake-model", "sql", "poems/2", "one", "two", "three", "four"]
    told = await keyed.post("/v1/completions", encode({"model": "two", "prompt": "hi"}), x_api_key="secret")
    assert told.json["model"] == "two"
    assert (await ask(keyed, "/v1/unload_lora_adapter", {"lora_name": "two"})).status == 200
    assert "two" not in await names(keyed)
    again = await ask(keyed, "/v1/unload_lora_adapter", {"lora_name": "two"})
    assert (again.status, again.json["error"]["code"]) == (404, "adapter_not_found")
    gone = await keyed.post("/v1/completions", encode({"model": "two", "prompt": "hi"}), x_api_key="secret")
    assert gone.status == 404


@pytest.mark.parametrize(
    "asked",
    [
        "../secret.gguf",
        "link.gguf",
        "deep",
        "",
        "gone.gguf",
        "/etc/passwd",
        "deep/../../secret.gguf",
        "a\0b",
        "x" * 4096,
    ],
)
async def test_only_files_of_the_folder_are_loaded(keyed: AsgiClient, folder: Path, asked: str) -> None:
    answer = await ask(keyed, "/v1/load_lora_adapter", {"lora_name": "one", "lora_path": asked})
    assert answer.status == (403 if asked else 400)
    assert answer.json["error"]["param"] == "lora_path"
    assert str(folder) not in answer.json["error"]["message"]
    assert "one" not in await names(keyed)


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"lora_name": "x"},
        {"lora_path": "sql.gguf"},
        {"lora_name": "", "lora_path": "sql.gguf"},
        {"lora_name": "a\nb", "lora_path": "sql.gguf"},
        {"lora_name": "x" * 257, "lora_path": "sql.gguf"},
        {"lora_name": "x", "lora_path": "sql.gguf", "scale": 9},
        {"lora_name": "x", "lora_path": "sql.gguf", "load_inplace": True},
        {"lora_name": "sql", "lora_path": "sql.gguf"},
    ],
)
async def test_what_is_no_adapter_to_load_is_refused(keyed: AsgiClient, body: Any) -> None:
    assert (await ask(keyed, "/v1/load_lora_adapter", body)).status == 400


async def test_nobody_else_loads(keyed: AsgiClient, client: AsgiClient, engine: FakeEngine, tmp_path: Path) -> None:
    body = {"lora_name": "one", "lora_path": "sql.gguf"}
    bare = AsgiClient(make_app(engine, keys=Keys(tmp_path / "keys")))
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
        assert (await ask(keyed, path, body, key="secret")).status == 403
        assert (await client.post(path, encode(body))).status == 403  # without a file of keys
    refused = await ask(bare, "/v1/load_lora_adapter", body)
    assert (refused.status, "lora_dir" in refused.json["error"]["message"]) == (403, True)
