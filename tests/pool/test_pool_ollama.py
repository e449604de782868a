"""Several models, as clients of Ollama find them: none is loaded for that."""

from __future__ import annotations

from pathlib import Path

from support.asgi_client import AsgiClient
from support.fake_engine import TEMPLATE
from support.pooled_apps import CHAT, bearer, pooled

from llamafast.api.keys import Keys
from llamafast.engine.model_facts import Weights

WEIGHTS = Weights(1_500_000_000, 900_000_000, 8, "Q4_K_M", "qwen2")


async def test_several_models(folder: Path, keys: Keys) -> None:
    models = ({"alias": "a", "aliases": ["gpt-*"]}, {"alias": "b", "load": "on_demand"})
    infos = {name: {"weights": WEIGHTS} for name in ("a", "b")} | {"b": {"weights": WEIGHTS, "modalities": ("image",)}}
    server = {"ollama_discovery": True}
    async with pooled(folder, *models, keys=keys, infos=infos, server=server) as pool:
        client = AsgiClient(pool.app)
        # until it is there
        await client.post("/v1/chat/completions", {**CHAT, "model": "a"}, **bearer("a"))
        assert (await client.get("/api/tags")).status == 401
        tags = (await client.get("/api/tags", **bearer("a"))).json["models"]
        assert [(one["name"], one["size"], one["details"]["family"]) for one in tags] == [
            ("a", 900_000_000, "qwen2"), ("b", 0, ""),
        ]  # fmt: skip
        shown = (await client.post("/api/show", {"model": "gpt-4o"}, **bearer("a"))).json
        assert (shown["template"], shown["capabilities"]) == (TEMPLATE, ["completion", "tools"])
        assert shown["model_info"]["qwen2.context_length"] == 512
        # of one that has never been loaded nothing is guessed
        shown = (await client.post("/api/show", {"model": "b"}, **bearer("a"))).json
        assert (shown["template"], shown["capabilities"]) == ("", [])
        assert shown["model_info"] == {"general.basename": "b"}
        assert not pool.children["b"]
        await client.post("/v1/chat/completions", {**CHAT, "model": "b"}, **bearer("a"))
        shown = (await client.post("/api/show", {"model": "b"}, **bearer("a"))).json
        assert shown["capabilities"] == ["completion", "tools", "vision"]
        # what it was is remembered
        pool.fleet.unload(pool.fleet.members["b"])
        await pool.children["b"][0].gone
        shown = (await client.post("/api/show", {"model": "b"}, **bearer("a"))).json
        assert shown["capabilities"] == ["completion", "tools", "vision"]
        assert shown["details"]["parameter_size"] == "1.50B"
        assert len(pool.children["b"]) == 1
        reply = await client.post("/api/show", {"model": "nobody"}, **bearer("a"))
        assert (reply.status, list(reply.json)) == (404, ["error"])
        assert isinstance(reply.json["error"], str)
    async with pooled(folder, {"alias": "c"}) as pool:
        assert "ollama_discovery" in (await AsgiClient(pool.app).get("/api/tags")).error["message"]
