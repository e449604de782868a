"""POST /apply-template, /tokenize and /detokenize, in both servers' shapes."""

from __future__ import annotations

from array import array

import pytest
from msgspec.structs import replace
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import BOS, EOS, INFO, FakeEngine
from support.where_it_runs import beside_the_loop

from llamafast.errors import Untokenizable

MESSAGES = [{"role": "user", "content": "hi</s>"}]
RENDERED = "<s><user>hi</s></s><assistant>"


async def test_a_chat_is_shown_as_the_model_reads_it(client: AsgiClient, engine: FakeEngine) -> None:
    response = await client.post("/apply-template", {"messages": MESSAGES})
    assert (response.status, response.json) == (200, {"prompt": RENDERED})
    fields = {"add_generation_prompt": False, "temperature": 0.5}
    assert (await client.post("/apply-template", {"messages": MESSAGES, **fields})).json["prompt"] == RENDERED[:-11]
    assert not engine.generations


async def test_llama_servers_form(client: AsgiClient) -> None:
    sizes = {"max_model_len": INFO.max_seq_len}
    body = (await client.post("/tokenize", {"content": "é<s>"})).json
    assert body == {"tokens": [0xC3, 0xA9, BOS], "count": 3, **sizes}
    fields = {"add_special": True, "parse_special": False, "with_pieces": True}
    body = (await client.post("/tokenize", {"content": "é<", **fields})).json
    assert body["tokens"] == [
        {"id": BOS, "piece": "<s>"},
        {"id": 0xC3, "piece": [0xC3]},
        {"id": 0xA9, "piece": [0xA9]},
        {"id": 60, "piece": "<"},
    ]
    assert (await client.post("/tokenize", {"content": ""})).json["tokens"] == []


async def test_vllms_form(client: AsgiClient) -> None:
    body = (await client.post("/tokenize", {"model": INFO.id, "prompt": "ab", "return_token_strs": True})).json
    assert body == {"tokens": [BOS, 97, 98], "count": 3, "max_model_len": 512, "token_strs": ["<s>", "a", "b"]}
    for said in ({"add_special_tokens": True}, {"add_special_tokens": None}):
        assert (await client.post("/tokenize", {"prompt": "a", **said})).json["tokens"] == [BOS, 97]
    fields = {"add_special_tokens": False, "return_token_strs": False}
    body = (await client.post("/tokenize", {"prompt": "ab", **fields})).json
    assert (body["tokens"], body["token_strs"]) == ([97, 98], None)
    body = (await client.post("/tokenize", {"messages": MESSAGES, "add_special_tokens": False})).json
    plain = b"<user>hi</s>"
    assert body["tokens"] == [BOS, *plain, EOS, *b"<assistant>"]


async def test_tokens_become_text(client: AsgiClient) -> None:
    body = (await client.post("/detokenize", {"model": INFO.id, "tokens": [BOS, 0xC3, 0xA9]})).json
    assert body == {"content": "<s>é", "prompt": "<s>é"}
    assert (await client.post("/detokenize", {"tokens": []})).json["content"] == ""


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": "a", "prompt": "a"}, "content"),
        ("/tokenize", {"content": 5}, "content"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {"messages": [{"role": "x"}]}, "messages[0].role"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [258]}, "tokens"),
        ("/detokenize", {"tokens": [-1, 5]}, "tokens"),
        ("/detokenize", {"tokens": [2**70]}, "tokens"),
        ("/detokenize", {"tokens": [True]}, "tokens[0]"),
        ("/apply-template", {}, "messages"),
        ("/apply-template", {"messages": MESSAGES, "temperature": 9}, "temperature"),
        (
            "/apply-template",
            {"messages": MESSAGES, "continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
        ),
    ],
)
async def test_bad_requests_name_their_field(client: AsgiClient, path: str, body: dict, param: str) -> None:
    response = await client.post(path, body)
    assert (response.status, response.error["param"]) == (400, param)


async def test_what_is_tokenised_and_detokenised_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or by what the context could hold, if that is more: here 512 tokens of one piece of 4 bytes."""
    engine = FakeEngine()
    client = AsgiClient(make_app(engine, max_body_bytes=1 << 24))
    tokenised = []
    monkeypatch.setattr(engine.tokenizer, "tokenize", lambda text, **_: tokenised.append(text) or array("i"))
    for body, param in (
        ({"content": "x" * (2**20 + 1)}, "content"),
        ({"prompt": "x" * (2**20 + 1)}, "prompt"),
        ({"messages": [{"role": "user", "content": "x" * 2**20}]}, "messages"),
    ):
        response = await client.post("/tokenize", body)
        assert (response.status, response.error["param"]) == (400, param)
        assert str(2**20) in response.error["message"]
    assert not tokenised
    assert (await client.post("/tokenize", {"content": "x" * 2**20})).status == 200
    response = await client.post("/detokenize", {"tokens": [65] * (2**18 + 1)})
    assert (response.status, response.error["param"]) == (400, "tokens")
    assert len((await client.post("/detokenize", {"tokens": [65] * 2**18})).json["content"]) == 2**18


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"content": "x"}, "content"),
        ("/tokenize", {"messages": MESSAGES}, "messages"),
        ("/v1/completions", {"prompt": ["x", "y"]}, "prompt[0]"),
        ("/v1/chat/completions", {"messages": MESSAGES}, "messages"),
        ("/v1/responses", {"input": "hi"}, "input"),
    ],
)
async def test_a_text_that_cannot_be_tokenised_is_the_clients(
    engine: FakeEngine, client: AsgiClient, monkeypatch: pytest.MonkeyPatch, path: str, body: dict, param: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise Untokenizable("the text has a character that this model's vocabulary cannot spell")

    monkeypatch.setattr(engine.tokenizer, "tokenize", refuse)
    response = await client.post(path, body)
    assert (response.status, response.error["param"]) == (400, param)
    assert "cannot spell" in response.error["message"]


async def test_a_model_without_template_tokenises_text_only() -> None:
    client = AsgiClient(make_app(FakeEngine(info=replace(INFO, chat_template=None)), max_body_bytes=1000))
    for path in ("/apply-template", "/tokenize"):
        response = await client.post(path, {"messages": MESSAGES})
        assert (response.status, "no chat template" in response.error["message"]) == (400, True)
    assert (await client.post("/tokenize", {"content": "a"})).status == 200


async def test_replies_are_encoded_beside_the_loop(client: AsgiClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamafast.api.delivery.INLINE_BYTES", 0)
    told = beside_the_loop(monkeypatch, "llamafast.api.tokens.encode")
    body = (await client.post("/tokenize", {"content": "ab", "with_pieces": True, "return_token_strs": True})).json
    assert (body["tokens"][1], body["token_strs"]) == ({"id": 98, "piece": "b"}, ["a", "b"])
    assert (await client.post("/detokenize", {"tokens": [97]})).json["content"] == "a"
    assert (await client.post("/apply-template", {"messages": MESSAGES})).json == {"prompt": RENDERED}
    assert told == [True] * 7
