"""Hundreds of media as nobody should send them, and a process that dies fifty times, beside streams that go on."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from serve.conftest import model_config
from serve.test_media_clients import child_of, image, url
from support.media_prompts import png

from benchmarks.hostile_media import Hostile, hostile_media
from benchmarks.server import Server, serving
from recipes import tiny_mmproj

pytestmark = pytest.mark.media

N_HOSTILE, N_STREAMS, N_KILLS = 300, 8, 50


@pytest.fixture(scope="module")
def server(smollm2: Path) -> Iterator[Server]:
    mmproj = {"mmproj_path": str(tiny_mmproj.build("mmproj-gemma3-ultravox-576"))}
    with serving(lambda port: model_config(smollm2, port, alias="sees", n_ctx=16384, mtmd=mmproj), None) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> Any:
    base_url = f"http://127.0.0.1:{server.port}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


async def streams_until(client: openai.AsyncOpenAI, done: asyncio.Event) -> int:
    """Streams that go on, each to its end; how many that were."""
    n = 0

    async def go_on(i: int) -> None:
        nonlocal n
        while not done.is_set():
            stream: Any = await client.chat.completions.create(
                model="sees", temperature=0, max_tokens=60, stream=True,
                messages=[{"role": "user", "content": f"Tell me a story about the number {i}."}],
            )  # fmt: skip
            chunks = [chunk.choices[0] async for chunk in stream if chunk.choices]
            assert chunks[-1].finish_reason in ("length", "stop")
            assert "".join(chunk.delta.content or "" for chunk in chunks)
            n += 1

    await asyncio.gather(*map(go_on, range(N_STREAMS)))
    return n


async def ask(client: openai.AsyncOpenAI, part: Any) -> str:
    try:
        await client.chat.completions.create(
            model="sees", temperature=0, max_tokens=2, messages=[{"role": "user", "content": [part]}]
        )
    except openai.APIStatusError as error:
        place = error.param or "messages[0].content[0]"
        told = f"{error.status_code} {error.body['message']}"  # type: ignore[index]
        return told if place.startswith("messages[0].content[0]") else f"{told} at {place}"
    return "200"


def part_of(one: Hostile) -> Any:
    if one.kind == "audio":
        data = base64.b64encode(one.data).decode()
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    return {"type": "image_url", "image_url": {"url": url(one.data, "image/x")}}


async def test_hostile_media_are_refused_or_served_and_nobody_notices(client: Any, server: Server) -> None:
    pid, done = child_of(server), asyncio.Event()
    streams = asyncio.create_task(streams_until(client, done))
    answers: Counter[str] = Counter()
    try:
        for one in hostile_media(N_HOSTILE):
            answer = await ask(client, part_of(one))
            assert answer.startswith(("200", "400 the image", "400 the audio", "400 the model takes")), (
                one.name,
                answer,
            )
            answers[answer.split()[0]] += 1
    finally:
        done.set()
    assert await streams >= N_STREAMS
    assert answers["400"] > 100
    assert answers["200"] > 30
    assert child_of(server) == pid  # it has survived all of them
    assert await ask(client, image(png(64, 64, 1))) == "200"


async def test_fifty_deaths_cost_their_own_jobs_alone(client: Any, server: Server) -> None:
    done = asyncio.Event()
    streams = asyncio.create_task(streams_until(client, done))
    answers: Counter[str] = Counter()

    async def look(worker: int) -> None:
        for k in range(1000):
            if done.is_set():
                return
            answers[await ask(client, image(png(200, 160, 100_000 * worker + k)))] += 1

    looks = [asyncio.create_task(look(worker)) for worker in range(3)]
    killed = 0
    try:
        async with asyncio.timeout(400):
            while killed < N_KILLS:
                try:
                    os.kill(child_of(server), signal.SIGKILL)
                    killed += 1
                except AssertionError:
                    pass  # it is being started
                await asyncio.sleep(0.05)
    finally:
        done.set()
    await asyncio.gather(*looks)
    assert await streams >= N_STREAMS
    assert set(answers) <= {"200", "500 the projector failed on this image", "500 media cannot be encoded now"}
    async with asyncio.timeout(60):
        while await ask(client, image(png(64, 64, 7))) != "200":
            await asyncio.sleep(0.2)
