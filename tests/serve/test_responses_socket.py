"""WS /v1/responses against real servers: the cache, cut connections, shutdown."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from http.client import HTTPConnection
from typing import Any

import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from benchmarks.server import serving
from serve.conftest import model_config


def connect(server, **options: Any) -> Any:
    return websockets.connect(f"ws://127.0.0.1:{server.port}/v1/responses", max_size=None, **options)


async def event(socket: ClientConnection) -> dict[str, Any]:
    return json.loads(await asyncio.wait_for(socket.recv(), 60))


async def until(socket: ClientConnection, *kinds: str) -> dict[str, Any]:
    while (told := await event(socket))["type"] not in kinds:
        pass
    return told


async def answer(socket: ClientConnection, **fields: Any) -> dict[str, Any]:
    await socket.send(json.dumps({"type": "response.create", "temperature": 0, **fields}))
    last = await until(socket, "response.completed", "response.incomplete", "response.failed", "error")
    assert last["type"] in ("response.completed", "response.incomplete"), last
    return last["response"]


def metric(server, name: str) -> float:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


async def test_ten_turns_decode_only_what_is_new(smollm2_server) -> None:
    """Each turn's prompt continues what the turn before left in memory: prompt and answer, without the last token."""
    questions = [f"Name thing number {i} that one finds in a kitchen, in a few words." for i in range(10)]
    decoded = new = in_memory = 0
    async with connect(smollm2_server) as socket:
        previous = None
        for question in questions:
            response = await answer(
                socket, input=question, previous_response_id=previous, store=False, max_output_tokens=16
            )
            previous, usage = response["id"], response["usage"]
            decoded += usage["input_tokens"] - usage["input_tokens_details"]["cached_tokens"]
            new += usage["input_tokens"] - in_memory
            in_memory = usage["total_tokens"] - 1
    assert decoded <= 1.05 * new, (decoded, new)


async def test_a_prefill_leaves_the_prompt_in_memory(smollm2_server) -> None:
    instructions = "You are a helpful assistant who knows all about kitchens. " * 8
    async with connect(smollm2_server) as socket:
        warm = await answer(socket, input=[], instructions=instructions, generate=False, store=False)
        assert warm["output"] == []
        response = await answer(
            socket,
            input="What is a pan?",
            instructions=instructions,
            previous_response_id=warm["id"],
            store=False,
            max_output_tokens=4,
        )
    usage = response["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] >= warm["usage"]["input_tokens"] - 2
    assert warm["usage"]["output_tokens"] == 0


@pytest.mark.heavy
async def test_sixty_four_sockets_half_of_them_cut(tiny_server) -> None:
    async def talk(n: int) -> bool:
        """Whether the answer came to its end."""
        async with connect(tiny_server) as socket:
            request = {"type": "response.create", "input": f"Question {n}", "store": False, "max_output_tokens": 200}
            await socket.send(json.dumps(request))
            told = await until(socket, "response.output_text.delta")
            if n % 2:
                socket.transport.abort()
                return False
            told = await until(socket, "response.completed", "response.incomplete")
            other = {"type": "response.create", "input": "x", "previous_response_id": ids[n - 1]}
            ids[n] = told["response"]["id"]
            if n:
                await socket.send(json.dumps(other))
                assert (await event(socket))["error"]["code"] == "previous_response_not_found"
        return True

    ids = {n: f"resp_{n}" for n in range(-1, 64)}
    ended = await asyncio.gather(*(talk(n) for n in range(64)))
    assert sum(ended) == 32
    for _ in range(600):
        if not metric(tiny_server, "llamacpp:requests_processing") + metric(tiny_server, "llamacpp:requests_deferred"):
            break
        await asyncio.sleep(0.05)
    assert metric(tiny_server, "llamacpp:requests_processing") == 0
    assert metric(tiny_server, "llamacpp:requests_deferred") == 0


async def test_a_server_that_stops_says_so(tiny_model) -> None:
    path = tiny_model("tiny-llama")
    with serving(lambda port: model_config(path, port), None) as server:
        async with connect(server) as busy, connect(server) as idle:
            await busy.send(json.dumps({"type": "response.create", "input": "Hi", "max_output_tokens": 100}))
            await until(busy, "response.created")
            os.kill(server.pid, signal.SIGTERM)
            assert (await until(busy, "response.completed", "response.incomplete"))["response"]["output"]
            for socket in (busy, idle):
                await asyncio.wait_for(socket.wait_closed(), 30)
                assert socket.close_code == 1001


async def test_upgrades_can_be_switched_off(tiny_model) -> None:
    path = tiny_model("tiny-llama")

    def config(port: int) -> dict[str, object]:
        settings: Any = model_config(path, port)
        settings["server"]["max_websockets"] = 0
        return settings

    with serving(config, None) as server, pytest.raises(websockets.InvalidStatus) as refused:
        async with connect(server):
            pass
    assert refused.value.response.status_code == 426
