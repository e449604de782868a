"""POST /v1/embeddings, /v1/rerank and /v1/score over a scripted engine."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from array import array

import pytest
from msgspec.structs import replace
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import BOS, EOS, INFO, FakeEngine

from llamafast.api import embeddings
from llamafast.engine.embedding_info import EmbeddingInfo
from llamafast.errors import EngineFailure, QueueFull

PATH = "/v1/embeddings"
MEAN = EmbeddingInfo(pooling="mean", width=4, max_tokens=16)


def serving(*, rerank_by_cosine: bool = False, **changes) -> tuple[AsgiClient, FakeEngine]:
    engine = FakeEngine(info=replace(INFO, embedding=replace(MEAN, **changes)))
    return AsgiClient(make_app(engine, model={"rerank_by_cosine": rerank_by_cosine}, max_body_bytes=1 << 20)), engine


@pytest.fixture
def client() -> AsgiClient:
    return serving()[0]


async def test_a_reply_field_by_field(client):
    response = await client.post(PATH, {"input": "ab", "model": "org/fake-model", "user": "me"})
    assert response.status == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [BOS, 97, 98, 0]}],
        "model": "org/fake-model",
        "usage": {"prompt_tokens": 3, "total_tokens": 3},
    }


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        ("a", [[BOS, 97]]),
        (["a", "b"], [[BOS, 97], [BOS, 98]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
async def test_the_four_forms_of_input(given, tokens):
    client, engine = serving()
    assert (await client.post(PATH, {"input": given})).status == 200
    (plan,) = engine.embedding_plans
    assert [list(ids) for ids in plan.inputs] == tokens
    assert (plan.dimensions, plan.normalize) == (0, 2)


async def test_options_reach_the_plan():
    client, engine = serving()
    body = (await client.post(PATH, {"input": "ab", "dimensions": 2, "embd_normalize": -1})).json
    assert body["data"][0]["embedding"] == [BOS, 97]
    assert (engine.embedding_plans[0].dimensions, engine.embedding_plans[0].normalize) == (2, -1)


async def test_base64_is_little_endian_float32(client):
    body = (await client.post(PATH, {"input": ["a", "b"], "encoding_format": "base64"})).json
    vectors = [struct.unpack("<4f", base64.b64decode(item["embedding"])) for item in body["data"]]
    assert vectors == [(BOS, 97, 0, 0), (BOS, 98, 0, 0)]


async def test_without_pooling_there_is_a_vector_a_token_not_normalised():
    client, engine = serving(pooling="none")
    body = (await client.post(PATH, {"input": [[5, 6], [7]], "dimensions": 2})).json
    assert [item["embedding"] for item in body["data"]] == [[[5, 5], [6, 6]], [[7, 7]]]
    assert engine.embedding_plans[0].normalize == -1
    body = (await client.post(PATH, {"input": [5], "dimensions": 1, "encoding_format": "base64"})).json
    assert body["data"][0]["embedding"] == [base64.b64encode(struct.pack("<f", 5)).decode()]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"input": None}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": 1}, "input"),
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [1.5]}, "input[0]"),
        ({"input": [True]}, "input[0]"),
        ({"input": [[]]}, "input"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": [-1]}, "input"),
        ({"input": [258]}, "input"),
        ({"input": [2**70]}, "input"),
        ({"input": [[1], [2**31]]}, "input[1]"),
        ({"input": [1] * 17}, "input"),
        ({"input": "x" * 16}, "input"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": ["x", "y" * 1_300_000]}, "input"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "dimensions": 5}, "dimensions"),
        ({"input": "a", "dimensions": "4"}, "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "a", "embd_normalize": -2}, "embd_normalize"),
        ({"input": "a", "embd_normalize": 2**31}, "embd_normalize"),
        ({"input": "a", "model": "other"}, "model"),
        ({"input": "a", "normalize": False}, "normalize"),
        ({"input": "a", "add_special_tokens": False}, "add_special_tokens"),
        ({"input": "a", "truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"input": "a", "truncate": "END"}, "truncate"),
        ({"input": "a", "normalized": False}, "normalized"),
    ],
)
async def test_malformed_requests_name_the_field(body, param):
    client, engine = serving()
    client = AsgiClient(make_app(engine, max_body_bytes=4 << 20))
    response = await client.post(PATH, body)
    assert response.status == (404 if param == "model" else 400)
    assert response.error["param"] == param
    assert not engine.embedding_plans


async def test_what_others_say_of_what_is_so_anyway_is_taken(client):
    for field in ({"normalized": True}, {"truncate": "NONE"}, {"truncate": False}):
        response = await client.post(PATH, {"input": "a", **field})
        assert response.status == 200, response.body
        assert "x-llamafast-ignored" not in response.headers


async def test_too_long_is_the_context_length_code(client):
    assert (await client.post(PATH, {"input": [1] * 17})).error["code"] == "context_length_exceeded"


async def test_total_tokens_are_bounded():
    client, engine = serving(max_tokens=200)
    response = await client.post(PATH, {"input": [[1] * 200] * 1501})
    assert "300200 tokens" in response.error["message"]
    assert not engine.embedding_plans


async def test_tokenising_ends_at_the_first_input_that_does_not_fit(monkeypatch):
    """And one that cannot is not tokenised at all."""
    client, engine = serving()
    tokenised = []
    tokenize = engine.tokenizer.tokenize
    monkeypatch.setattr(
        engine.tokenizer, "tokenize", lambda text, **options: tokenised.append(text) or tokenize(text, **options)
    )
    response = await client.post(PATH, {"input": ["a", "b" * 17, *"cdefg"]})
    assert (response.error["param"], response.error["code"]) == ("input[1]", "context_length_exceeded")
    assert tokenised == ["a", "b" * 17]
    response = await client.post(PATH, {"input": ["a", "b" * (2**16 + 1), "c"]})
    assert (response.error["param"], response.error["code"]) == ("input[1]", "context_length_exceeded")
    assert tokenised[2:] == ["a"]


async def test_the_numbers_of_a_reply_are_bounded():
    client, _ = serving(pooling="none", width=4096, max_tokens=4096)
    response = await client.post(PATH, {"input": [1] * 2100})
    assert response.error["param"] == "input"


@pytest.mark.parametrize("pooling", ["mean", "none"])
@pytest.mark.parametrize("encoding", ["float", "base64"])
async def test_a_large_reply_is_made_and_sent_in_parts(monkeypatch, pooling, encoding):
    """Each holds the interpreter for as long as one vector takes, and the event loop for as long as one part."""
    monkeypatch.setattr(embeddings, "PART_BYTES", 1000)
    client, engine = serving(pooling=pooling, width=64)
    inputs = [[index, index + 1, index + 2] for index in range(40)]
    response = await client.post(PATH, {"input": inputs, "encoding_format": encoding})
    assert response.headers["content-length"] == str(len(response.body))
    assert len(response.writes) > 10
    assert max(map(len, response.writes)) < 1000 + 600
    vectors = [item["embedding"] for item in response.json["data"]]
    expected = [array("f", vector) for vector in await engine.embed(engine.embedding_plans[0])]
    for given, wanted in zip(vectors, [vector.tolist() for vector in expected], strict=True):
        given = given if pooling == "none" else [given]
        rows = [list(struct.unpack("<64f", base64.b64decode(row))) if encoding == "base64" else row for row in given]
        assert [value for row in rows for value in row] == wanted
    assert [item["index"] for item in response.json["data"]] == list(range(40))


@pytest.mark.parametrize(("error", "status"), [(QueueFull("full"), 429), (EngineFailure("broken"), 500)])
async def test_the_engines_errors(error, status):
    client, engine = serving()
    engine.refusal = error
    assert (await client.post(PATH, {"input": "a"})).status == status


async def test_a_model_that_does_not_embed_and_one_that_ranks(client):
    plain = AsgiClient(make_app(FakeEngine(), max_body_bytes=1 << 20))
    for path, body in ((PATH, {"input": "a"}), ("/v1/rerank", {"query": "a", "documents": ["b"]})):
        error = (await plain.post(path, body)).error
        assert '"embedding": true' in error["message"]
        assert (error["param"], error["type"]) == ("model", "invalid_request_error")
    ranker, _ = serving(pooling="rank", width=1)
    assert "/v1/rerank" in (await ranker.post(PATH, {"input": "a"})).error["message"]
    assert "rerank_by_cosine" in (await client.post("/v1/rerank", {"query": "a", "documents": ["b"]})).error["message"]
    sorter, _ = serving(pooling="rank", width=3)
    assert "3 classes" in (await sorter.post("/v1/rerank", {"query": "a", "documents": ["b"]})).error["message"]


@pytest.mark.parametrize(("pooling", "instead"), [("mean", "/v1/embeddings"), ("rank", "/v1/rerank")])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/completions", {"prompt": "a", "stream": True}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "x"}], "stream": True}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/responses", {"input": "a", "stream": True}),
        ("/v1/responses/input_tokens", {"input": "a"}),
    ],
)
async def test_what_only_embeds_says_so_when_asked_for_text(pooling, instead, path, body):
    embedding = replace(MEAN, pooling=pooling, width=1)
    engine = FakeEngine(info=replace(INFO, embedding=embedding, generates=False, chat_template=None))
    client = AsgiClient(make_app(engine, max_body_bytes=1 << 20))
    response = await client.post(path, body)
    assert response.status == 400
    assert response.error == {
        "message": f"this model does not generate text; it serves {instead}",
        "type": "invalid_request_error",
        "param": "model",
        "code": None,
    }


async def test_a_pair_that_is_too_long_names_both_texts():
    client, _ = serving(pooling="rank", width=1)
    error = (await client.post("/v1/rerank", {"query": "q" * 15, "documents": ["a"]})).error
    assert "your query and documents[0] resulted in 18 tokens" in error["message"]
    assert error["code"] == "context_length_exceeded"
    client, _ = serving(rerank_by_cosine=True)
    error = (await client.post("/v1/rerank", {"query": "q", "documents": ["a", "b" * 16]})).error
    assert "your documents[1] resulted in 17 tokens" in error["message"]


async def test_vectors_of_single_tokens_rank_nothing():
    client, _ = serving(pooling="none", rerank_by_cosine=True)
    error = (await client.post("/v1/rerank", {"query": "a", "documents": ["b"]})).error
    assert (error["param"], "each token" in error["message"]) == ("model", True)


async def test_what_a_document_says_is_no_control_token():
    client, engine = serving(pooling="rank", width=1)
    template = "<s>{document}</s>{query}"
    engine.info = replace(engine.info, embedding=replace(engine.info.embedding, rerank_template=template))
    assert (await client.post("/v1/rerank", {"query": "q", "documents": ["</s>"]})).status == 200
    (tokens,) = engine.embedding_plans[0].inputs
    assert list(tokens) == [BOS, *b"</s>", EOS, *b"q"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_rerank(path):
    client, engine = serving(pooling="rank", width=1)
    # the score of a pair is its first token: a template lets the document decide it
    engine.info = replace(engine.info, embedding=replace(engine.info.embedding, rerank_template="{document}{query}"))
    documents = ["\x01", {"text": "\x03{query}"}, "\x02"]
    body = {"query": "q", "documents": documents, "top_n": 2, "return_documents": True}
    reply = (await client.post(path, body)).json
    assert re.fullmatch(r"rerank-[0-9a-f]{32}", reply.pop("id"))
    assert reply == {
        "object": "list",
        "model": "org/fake-model",
        "results": [
            {"index": 1, "relevance_score": 1 / (1 + math.exp(-3)), "document": {"text": "\x03{query}"}},
            {"index": 2, "relevance_score": 1 / (1 + math.exp(-2)), "document": {"text": "\x02"}},
        ],
        "usage": {"prompt_tokens": 13, "total_tokens": 13},
    }
    assert bytes(list(engine.embedding_plans[0].inputs[1])) == b"\x03{query}q"
    reply = (await client.post(path, {"query": "q", "documents": documents, "raw_scores": True})).json
    assert [(r["index"], r["relevance_score"]) for r in reply["results"]] == [(1, 3), (2, 2), (0, 1)]
    assert "document" not in reply["results"][0]


async def test_pairs_are_framed_and_softmax_scores_stay():
    client, engine = serving(pooling="rank", width=2, softmax_rank=True)
    reply = (await client.post("/v1/score", {"text_1": "a", "text_2": ["b", "c"]})).json
    assert [item["score"] for item in reply["data"]] == [BOS, BOS]
    assert [list(ids) for ids in engine.embedding_plans[0].inputs] == [[BOS, 97, EOS, 98], [BOS, 97, EOS, 99]]
    assert engine.embedding_plans[0].normalize == -1


async def test_score_field_by_field_and_by_cosine():
    client, engine = serving(rerank_by_cosine=True)
    reply = (await client.post("/v1/score", {"text_1": ["a", "b"], "text_2": ["b", "b"]})).json
    assert re.fullmatch(r"score-[0-9a-f]{32}", reply.pop("id"))
    assert reply.pop("created") > 1e9
    assert reply == {
        "object": "list",
        "model": "org/fake-model",
        "data": [
            {"object": "score", "index": 0, "score": BOS * BOS + 97 * 98},
            {"object": "score", "index": 1, "score": BOS * BOS + 98 * 98},
        ],
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    # each text is embedded once
    assert len(engine.embedding_plans[0].inputs) == 2


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a"}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": ["b", ""]}, "documents[1]"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "max_tokens_per_doc": 9}, "max_tokens_per_doc"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "truncate_prompt_tokens": -1}, "truncate_prompt_tokens"),
        ("/v1/rerank", {"query": "a", "documents": [1]}, "documents[0]"),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "b"}]}, "documents[0].text"),
        ("/v1/rerank", {"query": "a", "documents": ["b"] * 2049}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b", "c" * 40]}, "documents[1]"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ("/v1/score", {"text_1": "", "text_2": ["c"]}, "text_1"),
        ("/v1/score", {"text_1": ["a", ""], "text_2": ["c", "d"]}, "text_1[1]"),
        ("/v1/score", {"text_1": "a", "text_2": ["c"], "priority": 1}, "priority"),
        ("/v1/score", {"text_1": [], "text_2": "c"}, "text_1"),
    ],
)
async def test_malformed_rankings_name_the_field(path, body, param):
    client, engine = serving(pooling="rank", width=1)
    response = await client.post(path, body)
    assert (response.status, response.error["param"]) == (400, param)
    assert not engine.embedding_plans


async def test_a_lone_surrogate_and_deep_json_are_refused(client):
    for body in (b'{"input": "\\ud800"}', b'{"input": ' + b"[" * 5000 + b"]" * 5000 + b"}"):
        response = await client.post(PATH, body)
        assert response.status == 400
        json.dumps(response.error)
