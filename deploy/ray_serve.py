"""Replicas of llamafast under Ray Serve, as many as requests need, a conversation always at the same one.

serve run --app-dir deploy ray_serve:application config=/etc/llamafast/cfg.json

Each replica has a ``llamafast serve`` of its own on a Unix socket and passes bytes on. It needs ``ray[serve]``, which
brings aiohttp, on Linux util-linux's ``setpriv``, and the command ``llamafast``, which may have another environment.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, Field
from ray import serve
from ray.serve.config import RequestRouterConfig
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from yarl import URL

# Of one connection alone; and what Ray tells itself.
_OF_A_CONNECTION = frozenset(b"connection keep-alive transfer-encoding te trailer upgrade".split())
_TOLD_BY_RAY = _OF_A_CONNECTION | {b"date", b"server", b"x-request-id"}
_EVENTS = "text/event-stream"
_ROUTER = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
_DIED = {
    "message": "the server behind this replica ended",
    "type": "server_error",
    "param": None,
    "code": "worker_died",
}


class Arguments(BaseModel, extra="forbid"):
    """``config``, ``command``, ``disk`` are paths on every node; ``disk`` has a folder for each replica's prefixes.
    ``cpus`` are what Ray sets aside for a replica, and the threads that it computes with."""

    config: str
    command: str = "llamafast"
    disk: str | None = None
    cpus: int = Field(4, ge=1)
    gpus: float = Field(0, ge=0)
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    requests_per_replica: float = Field(8, gt=0)
    upscale_delay_seconds: float = Field(30, ge=0)
    downscale_delay_seconds: float = Field(600, ge=0)
    drain_seconds: float = Field(120, gt=0)


class Llamafast:
    """A replica. Ray replaces it when three looks at its health have failed, and ends it when its requests are done."""

    async def __init__(self, arguments: Arguments) -> None:
        """Returns when requests are answered. Raises RuntimeError where the server ends before."""
        self._folder = TemporaryDirectory(prefix="llamafast-")
        uds = f"{self._folder.name}/socket"
        self._child = _start(arguments, uds)
        self._http = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(uds, limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10),
            skip_auto_headers=("accept", "accept-encoding", "content-type", "user-agent"),
            auto_decompress=False,
        )
        is_ready = False
        while not is_ready:
            await asyncio.sleep(0.1)
            is_ready = await self._is_ready()

    async def __call__(self, request: Request) -> Response:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        url = URL(f"http://localhost{quote(path)}?{request.url.query}".removesuffix("?"), encoded=True)
        headers = [
            (k.decode(), v.decode(errors="replace")) for k, v in request.headers.raw if k not in _OF_A_CONNECTION
        ]
        try:
            answer = await self._http.request(
                request.method, url, headers=headers, data=await request.body() or None, allow_redirects=False
            )
        except aiohttp.ClientError:
            return JSONResponse({"error": _DIED}, 503, {"retry-after": "5"})
        response = StreamingResponse(_pieces(answer), answer.status)
        response.raw_headers = [(k.lower(), v) for k, v in answer.raw_headers if k.lower() not in _TOLD_BY_RAY]
        return response

    async def check_health(self) -> None:
        """Raises RuntimeError where the server has ended or stands still."""
        if not await self._is_ready():
            raise RuntimeError("llamafast does not answer, or its /health is red")

    async def _is_ready(self) -> bool:
        if (status := self._child.poll()) is not None:
            raise RuntimeError(f"llamafast has ended with status {status}; its log says why")
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self._http.get("http://localhost/health", timeout=aiohttp.ClientTimeout(total=5)) as answer:
                return answer.status == 200
        return False

    def __del__(self) -> None:
        """Ray calls it when the last request is done."""
        if (child := getattr(self, "_child", None)) is not None:
            child.terminate()
            child.wait()
            self._folder.cleanup()


def _start(arguments: Arguments, uds: str) -> subprocess.Popen[bytes]:
    """Of a replica that is killed the server hears by SIGTERM. The kernel sends it when the thread that has called this
    ends: it has to be the one of the replica's event loop, not one of a pool."""
    words = [arguments.command, "serve", arguments.config, "--uds", uds, "--threads", str(arguments.cpus)]
    # who ends a replica has stopped sending to it before
    words += ["--set", "server.drain_delay_seconds=0"]
    if arguments.disk is not None:
        place = Path(arguments.disk) / str(serve.get_replica_context().rank.rank)
        words += ["--set", f"disk_cache.path={place}"]
    guard = ["setpriv", "--pdeathsig=TERM"] if sys.platform == "linux" else []
    return subprocess.Popen([*guard, *words], stdin=subprocess.DEVNULL)


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """A stream that the server's end cuts off has that as its last event; any other answer breaks off."""
    last = b""
    try:
        async for piece in answer.content.iter_any():
            last = piece
            yield piece
    except aiohttp.ClientError:
        if answer.content_type != _EVENTS:
            raise
        ending = b"" if last.endswith(b"\n\n") or not last else b"\n\n"
        yield ending + b"event: error\ndata: %b\n\n" % json.dumps({"type": "error", "error": _DIED}).encode()
    finally:
        # of an answer that nobody wants any more the server hears at once
        answer.close()


def application(arguments: Arguments) -> serve.Application:
    deployment = serve.deployment(
        Llamafast,
        name="llamafast",
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        # beyond that the server itself queues, or refuses with 429
        max_ongoing_requests=1000,
        autoscaling_config={
            "min_replicas": arguments.min_replicas,
            "max_replicas": arguments.max_replicas,
            "target_ongoing_requests": arguments.requests_per_replica,
            "upscale_delay_s": arguments.upscale_delay_seconds,
            "downscale_delay_s": arguments.downscale_delay_seconds,
        },
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
        health_check_period_s=2,
        health_check_timeout_s=10,
        graceful_shutdown_timeout_s=arguments.drain_seconds,
        graceful_shutdown_wait_loop_s=0.5,
    )
    return deployment.bind(arguments)
