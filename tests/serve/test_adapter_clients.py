"""Adapters by OpenAI's client: listed, asked for as models, by several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from benchmarks.server import Server, serving
from recipes import tiny_lora
from serve.conftest import model_config

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def server(tiny_model: Callable[[str], Path]) -> Iterator[Server]:
    files = ("lora-tiny-llama", "lora-tiny-llama-2", "lora-tiny-llama-3")
    loras = [{"path": str(tiny_lora.build(file)), "name": name} for file, name in zip(files, NAMES, strict=True)]
    config = {"alias": "tiny", "loras": loras, "embedding": True}
    with serving(lambda port: model_config(tiny_model("tiny-llama"), port, **config), None) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> Any:
    base_url = f"http://127.0.0.1:{server.port}/v1"
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


async def said(client: openai.AsyncOpenAI, model: str, k: int = 0, **more: Any) -> str:
    answer = await client.completions.create(
        model=model, prompt=f"Tell {k} things.", max_tokens=24, temperature=0, extra_body={"ignore_eos": True, **more}
    )
    assert answer.model == model
    return answer.choices[0].text


async def test_all_are_asked_at_once(client: Any) -> None:
    models = {model.id: model.model_extra.get("parent") async for model in client.models.list()}
    assert models == {"tiny": None} | dict.fromkeys(NAMES, "tiny")
    asked = [(model, k) for k in range(4) for model in models]
    alone = [await said(client, model, k) for model, k in asked]
    assert len(set(alone)) == len(asked)
    assert await asyncio.gather(*(said(client, model, k) for model, k in asked)) == alone
    assert await said(client, "tiny", lora=[{"id": 1, "scale": 1}]) == alone[2]
    assert await said(client, "two", lora=[{"id": 1, "scale": 0}]) == alone[0]


async def test_what_there_is_not_is_refused(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny', 'one', 'two', 'three'"):
        await said(client, "four")
    with pytest.raises(openai.BadRequestError, match="no adapter 3"):
        await said(client, "tiny", lora=[{"id": 3, "scale": 1}])
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="one", input="x")
    assert len((await client.embeddings.create(model="tiny", input="x")).data) == 1


async def test_chats_and_responses_name_them_too(client: Any) -> None:
    for model in ("tiny", "two"):
        chat = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=4
        )
        response = await client.responses.create(model=model, input="hi", max_output_tokens=4)
        assert (chat.model, response.model) == (model, model)
        again = await client.responses.retrieve(response.id)
        assert again.model == model
