"""By which clients of Ollama find models: three routes, where the config says so, and nothing else of its API."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import INFO, TEMPLATE, FakeEngine

from llamafast.api.keys import Keys
from llamafast.engine.embedding_info import EmbeddingInfo
from llamafast.engine.model_facts import Weights

WEIGHTS = Weights(134_515_008, 91_727_872, 576, "Q4_1", "llama")
SEES = replace(INFO, id="smollm", aliases=("gpt-*",), weights=WEIGHTS, modalities=("image",), adapters=("poet",))


def serving(info: Any = SEES, **server: Any) -> AsgiClient:
    return AsgiClient(make_app(FakeEngine(info=info), **{"ollama_discovery": True, **server}))


async def test_what_a_client_of_ollama_does_to_find_a_model() -> None:
    client = serving()
    version = (await client.get("/api/version")).json
    assert tuple(map(int, version["version"].split("."))) >= (0, 6, 4)
    tags = (await client.get("/api/tags")).json
    assert tags.keys() == {"models"}
    first, adapter = tags["models"]
    assert (first["name"], first["model"], first["size"]) == ("smollm", "smollm", 91_727_872)
    assert datetime.fromisoformat(first["modified_at"]).timestamp() == INFO.created
    assert len(bytes.fromhex(first["digest"])) == 32
    assert first["digest"] != adapter["digest"]
    assert first["details"] == {
        "parent_model": "", "format": "gguf", "family": "llama", "families": ["llama"], "parameter_size": "134.52M",
        "quantization_level": "Q4_1",
    }  # fmt: skip
    assert (adapter["name"], adapter["details"]["parent_model"]) == ("poet", "smollm")
    shown = (await client.post("/api/show", {"model": first["model"]})).json
    assert shown["capabilities"] == ["completion", "tools", "vision"]
    assert (shown["template"], shown["details"]) == (TEMPLATE, first["details"])
    assert shown["model_info"] == {
        "general.architecture": "llama", "general.basename": "smollm", "general.parameter_count": 134_515_008,
        "llama.context_length": 512, "llama.embedding_length": 576,
    }  # fmt: skip
    chat = {"model": first["model"], "messages": [{"role": "user", "content": "hi"}]}
    assert (await client.post("/v1/chat/completions", chat)).status == 200


async def test_names() -> None:
    client = serving()
    for body in ({"name": "poet"}, {"model": "gpt-4o", "verbose": True}):
        assert (await client.post("/api/show", body)).status == 200
    same = (await serving().get("/api/tags")).json["models"][0]["digest"]
    other = replace(SEES, weights=WEIGHTS._replace(n_bytes=1))
    assert (await client.get("/api/tags")).json["models"][0]["digest"] == same
    assert (await serving(other).get("/api/tags")).json["models"][0]["digest"] != same


@pytest.mark.parametrize(
    ("info", "told"),
    [
        (replace(INFO, chat_template=None), ["completion"]),
        (
            replace(INFO, generates=False, embedding=EmbeddingInfo(pooling="mean", width=4, max_tokens=16)),
            ["embedding"],
        ),
        (replace(INFO, fim=INFO.fim._replace(prefix=1, suffix=2, middle=3)), ["completion", "tools", "insert"]),
    ],
)
async def test_capabilities_are_those_of_the_model(info: Any, told: list[str]) -> None:
    shown = (await serving(info).post("/api/show", {"model": info.id})).json
    assert shown["capabilities"] == told
    assert shown["model_info"].keys() == {"general.basename", "general.parameter_count"}
    assert shown["details"]["family"] == ""


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{", 400, "the body is not valid JSON"),
        ({}, 400, "`model` is required"),
        ({"model": ""}, 400, "`model` is required"),
        ({"model": 5}, 400, "`model`: expected"),
        ({"model": "x" * 999}, 404, "does not exist"),
    ],
)
async def test_errors_have_its_form(body: Any, status: int, text: str) -> None:
    reply = await serving().post("/api/show", body)
    assert (reply.status, reply.json.keys()) == (status, {"error"})
    assert text in reply.json["error"]
    assert len(reply.json["error"]) < 300
    assert reply.headers["x-request-id"]


async def test_keys_apply(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    (tmp_path / "keys").chmod(0o600)
    client = serving(keys=Keys(tmp_path / "keys"))
    for path in ("/api/version", "/api/tags"):
        reply = await client.get(path)
        assert (reply.status, list(reply.json)) == (401, ["error"])
        assert isinstance(reply.json["error"], str)
        assert (await client.get(path, authorization="Bearer secret")).status == 200
    assert (await client.post("/api/show", {"model": "smollm"})).status == 401


async def test_off_it_is_named_and_on_it_is_all() -> None:
    off = serving(ollama_discovery=False)
    for path in ("/api/version", "/api/tags", "/api/show"):
        error = (await off.get(path)).error
        assert error["code"] == "not_found"
        assert "`server.ollama_discovery` in the server's config turns it on" in error["message"]
    assert "GET /v1/models" in (await off.get("/api/tags")).error["message"]
    for client in (off, serving()):
        for path in ("/api/chat", "/api/generate", "/api/ps", "/api/pull", "/api/embed"):
            reply = await client.post(path, b"{}")
            assert (reply.status, reply.error["code"]) == (404, "not_found")
            assert "ollama_discovery" not in reply.error["message"]
    assert (await serving().post("/api/tags", b"{}")).status == 405
    assert (await serving().get("/api/tags", "HEAD")).status == 200
