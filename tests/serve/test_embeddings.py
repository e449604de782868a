"""all-MiniLM-L6-v2 and a ranking model behind the real server, by the clients people use."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re

import httpx
import numpy as np
import openai
import pytest
from langchain_openai import OpenAIEmbeddings
from llama_index.embeddings.openai import OpenAIEmbedding
from support import tiny_encoders
from support.tiny_encoders import bert_hidden

from benchmarks.server import serving
from recipes.minilm import read_safetensors, source, tensor_name
from serve.test_robustness import exchange, metrics, request_bytes

HEADS = 12
REQUESTS = 2000
TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "hello",
    "A fast, auburn vulpine leaps across a sleepy canine!",
    "Quarterly revenue exceeded the forecast by seven percent; margins held steady despite rising costs.",
    "embeddings " * 120,
]


def encoder_config(path, port: int, **model) -> dict[str, object]:
    return {"server": {"port": port}, "model": {"path": str(path), "threads": 1, **model}}


@pytest.fixture(scope="module")
def server(minilm):
    with serving(lambda port: encoder_config(minilm, port, alias="minilm", rerank_by_cosine=True), None) as server:
        yield server


@pytest.fixture(scope="module")
def ranker(tiny_encoder):
    with serving(lambda port: encoder_config(tiny_encoder("tiny-ranker"), port, alias="ranker"), None) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def expected():
    """The vectors of TEXTS by a forward pass of the package's own f32 weights."""
    folder = source()
    words = {word: i for i, word in enumerate((folder / "vocab.txt").read_text(encoding="utf-8").split("\n"))}
    tensors = {tensor_name(name): values for name, values in read_safetensors(folder / "model.safetensors").items()}
    hidden = [bert_hidden(tensors, wordpieces(text, words), HEADS).mean(0) for text in TEXTS]
    return [vector / np.linalg.norm(vector) for vector in hidden]


def wordpieces(text: str, words: dict[str, int]) -> list[int]:
    """BERT's uncased tokens of an ASCII text."""
    ids = [words["[CLS]"]]
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        start = 0
        while start < len(word):
            end = next(e for e in range(len(word), start, -1) if ("##" if start else "") + word[start:e] in words)
            ids.append(words[("##" if start else "") + word[start:end]])
            start = end
    return [*ids, words["[SEP]"]]


def test_vectors_are_those_of_the_reference_forward_pass(client, expected):
    reply = client.embeddings.create(model="minilm", input=TEXTS)
    assert [item.index for item in reply.data] == list(range(len(TEXTS)))
    for item, vector in zip(reply.data, expected, strict=True):
        # both are of length 1
        assert np.dot(item.embedding, vector) > 0.9999


def test_floats_base64_lists_and_single_inputs_agree(client):
    many = client.embeddings.create(model="minilm", input=TEXTS, encoding_format="float")
    assert many.usage.prompt_tokens == many.usage.total_tokens > 300
    for text, item in zip(TEXTS, many.data, strict=True):
        (one,) = client.embeddings.create(model="minilm", input=text).data
        np.testing.assert_allclose(one.embedding, item.embedding, atol=2e-3)


def test_dimensions_are_cut_and_normalised_again(client):
    (whole,) = client.embeddings.create(model="minilm", input="hello").data
    (cut,) = client.embeddings.create(model="minilm", input="hello", dimensions=64).data
    head = np.array(whole.embedding[:64])
    np.testing.assert_allclose(cut.embedding, head / np.linalg.norm(head), atol=1e-4)


def test_token_ids_are_taken_as_they_are(client):
    (by_text,) = client.embeddings.create(model="minilm", input="hello world").data
    (by_ids,) = client.embeddings.create(model="minilm", input=[[101, 7592, 2088, 102]]).data
    np.testing.assert_allclose(by_text.embedding, by_ids.embedding, atol=1e-3)


def test_similar_texts_are_near(client):
    reply = client.embeddings.create(model="minilm", input=TEXTS)
    fox, _, vulpine, revenue, _ = (item.embedding for item in reply.data)
    assert np.dot(fox, vulpine) > 0.4 > 0.2 > np.dot(fox, revenue)


def test_errors_are_the_sdks(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model="minilm", input="word " * 600)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="other", input="a")
    with pytest.raises(openai.BadRequestError, match="does not generate"):
        client.completions.create(model="minilm", prompt="a")


def test_langchain(server, expected):
    embeddings = OpenAIEmbeddings(
        model="minilm",
        base_url=f"http://127.0.0.1:{server.port}/v1",
        api_key="none",
        # it would count tokens by a vocabulary from the network
        check_embedding_ctx_length=False,
    )
    assert np.dot(embeddings.embed_query(TEXTS[0]), expected[0]) > 0.9999
    assert np.dot(embeddings.embed_documents(TEXTS)[3], expected[3]) > 0.9999


async def test_llama_index(server, expected):
    async with httpx.AsyncClient(timeout=60) as async_http_client:
        with httpx.Client(timeout=60) as http_client:

            def embedding(**options):
                return OpenAIEmbedding(
                    # `model` takes only OpenAI's own
                    model_name="minilm", api_base=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0,
                    http_client=http_client, async_http_client=async_http_client, **options,
                )  # fmt: skip

            client = embedding(embed_batch_size=2)
            assert np.dot(client.get_query_embedding(TEXTS[0]), expected[0]) > 0.9999
            for vector, reference in zip(client.get_text_embedding_batch(TEXTS), expected, strict=True):
                assert np.dot(vector, reference) > 0.9999
            assert np.dot(await client.aget_text_embedding(TEXTS[3]), expected[3]) > 0.9999
            head = expected[0][:64]
            short = embedding(dimensions=64).get_query_embedding(TEXTS[0])
            assert np.dot(short, head / np.linalg.norm(head)) > 0.9999
            with pytest.raises(openai.BadRequestError) as caught:
                client.get_text_embedding("word " * 600)
            assert caught.value.code == "context_length_exceeded"


async def post(port: int, path: str, body: object) -> tuple[int, dict]:
    status, reply = await exchange(port, request_bytes(path, json.dumps(body).encode()))
    return status, json.loads(reply)


async def test_reranking_by_cosine_finds_the_paraphrase(server):
    body = {"query": TEXTS[0], "documents": TEXTS[1:4], "top_n": 1, "return_documents": True}
    status, reply = await post(server.port, "/v1/rerank", body)
    assert status == 200
    (best,) = reply["results"]
    assert (best["index"], best["document"]) == (1, {"text": TEXTS[2]})


async def test_a_ranking_models_scores_are_its_heads(ranker):
    documents = ["a small model", "the user reads", "hello world"]
    _, raw = await post(ranker.port, "/v1/rerank", {"query": "system", "documents": documents, "raw_scores": True})
    _, ranked = await post(ranker.port, "/rerank", {"query": "system", "documents": documents})
    _, scored = await post(ranker.port, "/v1/score", {"text_1": "system", "text_2": documents})
    logits = [result["relevance_score"] for result in raw["results"]]
    assert logits == sorted(logits, reverse=True)
    np.testing.assert_allclose(
        [result["relevance_score"] for result in ranked["results"]], [1 / (1 + math.exp(-x)) for x in logits], atol=5e-3
    )
    by_index = {result["index"]: result["relevance_score"] for result in ranked["results"]}
    np.testing.assert_allclose([item["score"] for item in scored["data"]], [by_index[i] for i in range(3)], atol=5e-3)


MALFORMED = [
    b"", b"{", b"[]", b"null", b'{"input": "\\ud800"}', b'{"input": ' + b"[" * 3000, b"\xff\xfe",
    *(json.dumps({"input": bad}).encode() for bad in (
        None, "", [], [[]], [""], {}, 5, [1.5], [True], [-1], [512], [2**40], ["a", 1], [[1], "a"], [1] * 129,
        "x " * 500,
    )),
    *(json.dumps({"input": "a", key: bad}).encode() for key, bad in (
        ("dimensions", 0), ("dimensions", 65), ("dimensions", "x"), ("embd_normalize", -2), ("encoding_format", "x"),
        ("model", "x"), ("model", 5),
    )),
]  # fmt: skip


@pytest.mark.heavy
async def test_a_third_of_the_requests_malformed_no_vector_is_wrong(tiny_encoder):
    """32 clients, everything at once: each answer is the one a lone request gets, and the server stays whole."""
    draw = random.Random(9)
    inputs = [draw.choices(range(512), k=draw.randint(1, 128)) for _ in range(200)]
    tensors = tiny_encoders.bert_tensors()
    solo = []
    for ids in inputs:
        vector = bert_hidden(tensors, ids, tiny_encoders.HEADS).mean(0)
        solo.append(vector / np.linalg.norm(vector))

    async def one(port: int, seed: int) -> None:
        draw = random.Random(seed)
        if draw.random() < 1 / 3:
            status, body = await exchange(port, request_bytes("/v1/embeddings", draw.choice(MALFORMED)))
            assert status in (400, 404)
            assert json.loads(body)["error"]["type"] == "invalid_request_error"
            return
        chosen = draw.choices(range(len(inputs)), k=draw.choice([1, 1, 1, 2, 8]))
        body = {"input": [inputs[i] for i in chosen], "encoding_format": "float"}
        if draw.random() < 0.1:
            # leave without waiting for the answer
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request_bytes("/v1/embeddings", json.dumps(body).encode()))
            await writer.drain()
            writer.transport.abort()
            return
        status, reply = await post(port, "/v1/embeddings", body)
        assert status == 200
        for i, item in zip(chosen, reply["data"], strict=True):
            assert np.dot(item["embedding"], solo[i]) > 0.9999

    async def client(port: int, seeds: range) -> None:
        for seed in seeds:
            await one(port, seed)

    with serving(lambda port: encoder_config(tiny_encoder("tiny-bert"), port), None) as server:
        await asyncio.gather(*(client(server.port, range(k, REQUESTS, 32)) for k in range(32)))
        values = await metrics(server.port)
        assert values["llamafast:embedding_inputs_total"] > REQUESTS / 2
        assert values["llamacpp:requests_deferred"] == 0
