"""deploy/ray_serve.py with stand-ins for Ray and for the server: what it starts, passes on, and says of it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import aiohttp
import pydantic
import pytest
from starlette.requests import Request
from starlette.responses import Response
from support import stub_server

SOURCE = Path(__file__).parents[2] / "deploy" / "ray_serve.py"


class Deployment:
    """What `serve.deployment` is given."""

    def __init__(self, replica: type, **options: Any) -> None:
        self.replica, self.options = replica, options

    def bind(self, *arguments: object) -> tuple[Deployment, tuple[object, ...]]:
        return self, arguments


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    ray, serve, config = ModuleType("ray"), ModuleType("ray.serve"), ModuleType("ray.serve.config")
    ray.serve = serve  # type: ignore[attr-defined]
    serve.Application = object  # type: ignore[attr-defined]
    serve.deployment = Deployment  # type: ignore[attr-defined]
    rank = SimpleNamespace(rank=SimpleNamespace(rank=1))
    serve.get_replica_context = lambda: rank  # type: ignore[attr-defined]
    config.RequestRouterConfig = SimpleNamespace  # type: ignore[attr-defined]
    for module in (ray, serve, config):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    spec = importlib.util.spec_from_file_location("ray_serve", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # pydantic looks up there what the module's annotations say
    monkeypatch.setitem(sys.modules, "ray_serve", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path: Path) -> Path:
    command = tmp_path / "llamafast"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} {stub_server.__file__} "$@"\n')
    command.chmod(0o700)
    return tmp_path / "cfg.json"


def told(config: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{config}.log").read_text().splitlines()]


def put(config: Path, mark: str) -> None:
    Path(f"{config}.{mark}").touch()


def take(config: Path, mark: str) -> None:
    Path(f"{config}.{mark}").unlink()


async def until_told(config: Path, name: str) -> Any:
    async with asyncio.timeout(30):
        while not (found := [one[name] for one in told(config) if name in one]):
            await asyncio.sleep(0.01)
    return found[-1]


def arguments(recipe: ModuleType, config: Path, **fields: Any) -> Any:
    return recipe.Arguments(config=str(config), command=str(config.with_name("llamafast")), **fields)


@pytest.fixture
async def replica(recipe: ModuleType, config: Path) -> AsyncIterator[Any]:
    one = object.__new__(recipe.Llamafast)
    await one.__init__(arguments(recipe, config, disk=str(config.with_name("disk")), cpus=3))
    yield one
    one.__del__()
    await one._http.close()


def request(path: str, body: bytes = b"", root: str = "", query: bytes = b"", **headers: str) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    pairs += [(b"content-length", b"%d" % len(body))] if body else []
    scope = {"type": "http", "method": "POST" if body else "GET", "headers": pairs, "query_string": query}
    return Request({**scope, "path": root + path, "root_path": root, "server": ("ray", 80), "scheme": "http"}, receive)


async def pieces(answer: Response) -> list[bytes]:
    return [piece async for piece in answer.body_iterator]  # type: ignore[attr-defined]


async def test_a_server_is_started_and_ended_with_its_replica(replica: Any, config: Path) -> None:
    words = told(config)[0]["words"]
    uds = Path(words[words.index("--uds") + 1])
    assert words[:2] == ["serve", str(config)]
    assert words[words.index("--threads") + 1] == "3"
    settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert settings == ["server.drain_delay_seconds=0", f"disk_cache.path={config.with_name('disk')}/1"]
    assert uds.parent.stat().st_mode & 0o777 == 0o700
    await replica.check_health()
    replica.__del__()
    assert told(config)[-1] == {"ended": True}
    assert not uds.parent.exists()
    replica.__del__()  # as Python does again


async def test_a_server_that_does_not_start_is_told(recipe: ModuleType, config: Path) -> None:
    put(config, "refuse")
    one = object.__new__(recipe.Llamafast)
    with pytest.raises(RuntimeError, match="ended with status 3"):
        await one.__init__(arguments(recipe, config))
    await one._http.close()
    one.__del__()


async def test_a_server_that_stands_still_or_has_died_is_not_healthy(replica: Any, config: Path) -> None:
    put(config, "red")
    with pytest.raises(RuntimeError, match="its /health is red"):
        await replica.check_health()
    take(config, "red")
    await replica.check_health()
    os.kill(replica._child.pid, signal.SIGKILL)
    replica._child.wait()
    with pytest.raises(RuntimeError, match="ended with status -9"):
        await replica.check_health()
    answer = await replica(request("/v1/models"))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert json.loads(answer.body)["error"] == {
        "message": "the server behind this replica ended", "type": "server_error", "param": None, "code": "worker_died"
    }  # fmt: skip


async def test_bytes_are_passed_on_both_ways(replica: Any, config: Path) -> None:
    asked = request(
        "/v1/models/a b", b'{"x": 1}', root="/llm", query=b"a=%2F", host="llm:1", connection="close", te="trailers",
        authorization="Bearer k", x_request_id="of-ray", x_other="caf\u00e9",
    )  # fmt: skip
    answer = await replica(asked)
    assert answer.status_code == 429
    assert await pieces(answer) == [b'{"error": {}}']
    assert answer.raw_headers == [
        (b"content-type", b"application/json"), (b"vary", b"a"), (b"vary", b"b"), (b"content-length", b"13")
    ]  # fmt: skip
    seen = told(config)[-1]
    assert (seen["method"], seen["target"], seen["body"]) == ("POST", "/v1/models/a%20b?a=%2F", '{"x": 1}')
    headers = {name.lower(): value.encode("latin-1").decode() for name, value in seen["headers"]}
    assert headers == {
        "host": "llm:1",
        "authorization": "Bearer k",
        "x-request-id": "of-ray",
        "x-other": "caf\u00e9",
        "content-length": "8",
    }


async def test_pieces_of_a_stream_go_on_as_they_come(replica: Any, config: Path) -> None:
    answer = await replica(request("/stream"))
    assert answer.headers["content-type"] == "text/event-stream"
    stream = answer.body_iterator
    assert await anext(stream) == stub_server.FIRST
    assert "gone" not in told(config)[-1]
    # its client goes away
    await stream.aclose()
    assert await until_told(config, "gone")
    whole = await replica(request("/whole-stream"))
    assert b"".join(await pieces(whole)) == 2 * stub_server.FIRST


async def test_who_goes_away_before_an_answer_is_heard_of(replica: Any, config: Path) -> None:
    asking = asyncio.create_task(replica(request("/slow")))
    await until_told(config, "waits")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert await until_told(config, "gone")


async def test_an_answer_that_is_cut_off_is_told_or_breaks_off(replica: Any) -> None:
    cut = b"".join(await pieces(await replica(request("/cut-stream"))))
    before, event, data = cut.rpartition(b"\n\nevent: error\ndata: ")
    assert before == stub_server.FIRST + stub_server.SECOND
    assert event
    assert data.endswith(b"\n\n")
    assert json.loads(data)["error"]["code"] == "worker_died"
    with pytest.raises(aiohttp.ClientPayloadError):
        await pieces(await replica(request("/cut")))


def test_replicas_follow_the_requests_and_sessions_keep_to_theirs(recipe: ModuleType) -> None:
    told = recipe.Arguments(config="a.json", cpus="2", min_replicas="2", max_replicas="5", requests_per_replica="3")
    deployment, bound = recipe.application(told)
    assert bound == (told,)
    options = deployment.options
    assert options["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0}
    scaling = options["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"], scaling["target_ongoing_requests"]) == (2, 5, 3)
    assert options["request_router_config"].request_router_class.endswith(":ConsistentHashRouter")
    assert options["graceful_shutdown_timeout_s"] == 120
    with pytest.raises(pydantic.ValidationError, match="replicas"):
        recipe.Arguments(config="a.json", replicas=2)
    with pytest.raises(pydantic.ValidationError, match="config"):
        recipe.Arguments()
