"""Adapters by OpenAI's client: listed, asked for as models, by several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from benchmarks.server import Server, serving
from recipes import tiny_lora
from serve.conftest import model_config

NAMES = ("one", "two", "three")
ACTIVATED = "judge"


@pytest.fixture(scope="module")
def server(tiny_model: Callable[[str], Path]) -> Iterator[Server]:
    files = ("lora-tiny-llama", "lora-tiny-llama-2", "lora-tiny-llama-3")
    loras = [{"path": str(tiny_lora.build(file)), "name": name} for file, name in zip(files, NAMES, strict=True)]
    loras.append({"path": str(tiny_lora.build("alora-tiny-llama")), "name": ACTIVATED})
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
    assert models == {"tiny": None} | dict.fromkeys((*NAMES, ACTIVATED), "tiny")
    asked = [(model, k) for k in range(4) for model in ("tiny", *NAMES)]
    alone = [await said(client, model, k) for model, k in asked]
    assert len(set(alone)) == len(asked)
    assert await asyncio.gather(*(said(client, model, k) for model, k in asked)) == alone
    assert await said(client, "tiny", lora=[{"id": 1, "scale": 1}]) == alone[2]
    assert await said(client, "two", lora=[{"id": 1, "scale": 0}]) == alone[0]


async def test_what_there_is_not_is_refused(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny', 'one', 'two', 'three', 'judge'"):
        await said(client, "four")
    with pytest.raises(openai.BadRequestError, match="no adapter 4"):
        await said(client, "tiny", lora=[{"id": 4, "scale": 1}])
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="four", input="x")


async def test_one_that_a_prompt_activates_shares_what_the_model_has_computed(client: Any) -> None:
    *_, listed = [model async for model in client.models.list()]
    prompt = [*range(40, 100), *listed.model_extra["alora_invocation_tokens"], 90]
    texts = {}
    for model, cached in (("tiny", 0), (ACTIVATED, 60), (ACTIVATED, len(prompt) - 1)):
        answer = await client.completions.create(
            model=model, prompt=prompt, max_tokens=24, temperature=0, extra_body={"ignore_eos": True}
        )
        assert answer.usage.prompt_tokens_details.cached_tokens == cached
        texts.setdefault(model, answer.choices[0].text)
        assert answer.choices[0].text == texts[model]
    assert len(set(texts.values())) == 2
    assert await said(client, ACTIVATED) == await said(client, "tiny")
    with pytest.raises(openai.BadRequestError, match="an activated one"):
        await client.embeddings.create(model=ACTIVATED, input="x")


async def test_vectors_are_of_whom_they_are_asked(client: Any) -> None:
    vectors = {}
    for model in ("tiny", "one", "two"):
        answer = await client.embeddings.create(model=model, input="x y z", encoding_format="float")
        assert answer.model == model
        vectors[model] = tuple(answer.data[0].embedding)
    assert len(set(vectors.values())) == 3
    by_id = await client.embeddings.create(
        model="tiny", input="x y z", encoding_format="float", extra_body={"lora": [{"id": 1, "scale": 1}]}
    )
    assert tuple(by_id.data[0].embedding) == vectors["two"]


async def test_chats_and_responses_name_them_too(client: Any) -> None:
    for model in ("tiny", "two"):
        chat = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hi"}], max_tokens=4
        )
        response = await client.responses.create(model=model, input="hi", max_output_tokens=4)
        assert (chat.model, response.model) == (model, model)
        again = await client.responses.retrieve(response.id)
        assert again.model == model


@pytest.fixture
def changed(tiny_model: Callable[[str], Path], tmp_path: Path) -> Iterator[Server]:
    """One whose administrator may load adapters."""
    keys, folder = tmp_path / "keys", tmp_path / "loras"
    keys.write_text("user name=a\nroot name=root admin\n")
    keys.chmod(0o600)
    folder.mkdir()
    for name in ("lora-tiny-llama", "lora-tiny-llama-2"):
        (folder / f"{name}.gguf").write_bytes(tiny_lora.build(name).read_bytes())
    (folder / "broken.gguf").write_bytes(tiny_lora.build("lora-tiny-llama").read_bytes()[:-50])
    settings = {"api_key_file": str(keys), "lora_dir": str(folder), "metrics_aliases": ["vllm"]}

    def config(port: int) -> dict[str, Any]:
        whole: dict[str, Any] = model_config(tiny_model("tiny-llama"), port, alias="tiny")
        whole["server"] |= settings
        return whole

    with serving(config, None) as server:
        yield server


async def test_an_administrator_loads_and_unloads_them(changed: Server) -> None:
    base_url = f"http://127.0.0.1:{changed.port}/v1"

    def client(key: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=60)

    async with client("user") as user, client("root") as root:

        async def load(name: str, path: str, by: openai.AsyncOpenAI = root) -> Any:
            body = {"lora_name": name, "lora_path": path}
            return await by.post("/load_lora_adapter", body=body, cast_to=httpx.Response)

        async def unload(name: str) -> Any:
            return await root.post("/unload_lora_adapter", body={"lora_name": name}, cast_to=httpx.Response)

        plain = await said(user, "tiny")
        with pytest.raises(openai.PermissionDeniedError):
            await load("one", "lora-tiny-llama.gguf", user)
        with pytest.raises(openai.BadRequestError, match="behind the end of the file"):
            await load("one", "broken.gguf")
        await load("one", "lora-tiny-llama.gguf")
        await load("two", "lora-tiny-llama-2.gguf")
        assert [model.id async for model in user.models.list()] == ["tiny", "one", "two"]
        texts = await asyncio.gather(*(said(user, name) for name in ("tiny", "one", "two")))
        assert len(set(texts)) == 3
        assert texts[0] == plain
        stream = await user.completions.create(
            model="one", prompt="x", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        await anext(aiter(stream))
        with pytest.raises(openai.ConflictError):
            await unload("one")
        metrics = (await user.get(f"{base_url[:-3]}/metrics", cast_to=httpx.Response)).text
        assert 'llamafast:adapter_requests_total{adapter="one",id="0"} 2.0' in metrics
        assert 'llamafast:adapter_requests_in_progress{adapter="one",id="0",state="running"} 1.0' in metrics
        (info,) = [line for line in metrics.splitlines() if line.startswith("vllm:lora_requests_info{")]
        assert 'max_lora="4",running_lora_adapters="one",waiting_lora_adapters=""' in info
        assert float(info.split()[-1]) > 1.7e9
        await stream.close()
        async with asyncio.timeout(30):
            while True:
                try:
                    await unload("one")
                    break
                except openai.ConflictError:
                    await asyncio.sleep(0.01)
        with pytest.raises(openai.NotFoundError):
            await said(user, "one")
        assert await said(user, "two") == texts[2]
