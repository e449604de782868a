"""POST /v1/responses/compact: a conversation in a few words, and what comes after it."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import CompactedResponse
from support.asgi_client import AsgiClient
from support.fake_engine import INFO, FakeEngine, say

from llamafast.api.responses.compaction import MAX_TOKENS, summary_of
from llamafast.api.sealed import sealed

URL = "/v1/responses"
COMPACT = f"{URL}/compact"


def prompt(engine: FakeEngine) -> str:
    return engine.tokenizer.detokenize(engine.generations[-1].plan.prompts[0])


async def compact(client: AsgiClient, **fields: Any) -> dict[str, Any]:
    response = await client.post(COMPACT, {"model": INFO.id, **fields})
    assert response.status == 200
    CompactedResponse.model_validate(response.json)
    return response.json


async def test_a_conversation_goes_on_from_its_summary(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = say("Anna wants", " tea.")
    turns = [{"role": "user", "content": "I am Anna."}, {"role": "assistant", "content": "Hello."}]
    body = await compact(client, input=turns, instructions="Be kind.", tools=[{"type": "function", "name": "f"}])
    assert prompt(engine).startswith("<s><system>Be kind.</s><user>I am Anna.</s><assistant>Hello.</s><user>Summarise")
    assert body["object"] == "response.compaction"
    assert body["usage"]["output_tokens"] == 3
    (item,) = body["output"]
    assert "Anna" not in item["encrypted_content"]
    after = [*body["output"], {"role": "user", "content": "What do I want?"}]
    assert (await client.post(URL, {"input": after, "instructions": "Be kind."})).status == 200
    told = "Be kind.\n\nSummary of the conversation before this:\nAnna wants tea."
    assert prompt(engine) == f"<s><system>{told}</s><user>What do I want?</s><assistant>"
    assert (await client.get(f"{URL}/{body['id']}")).status == 404


async def test_a_stored_conversation(client: AsgiClient, engine: FakeEngine) -> None:
    first = (await client.post(URL, {"input": "Hi"})).json
    await compact(client, previous_response_id=first["id"])
    assert prompt(engine).startswith("<s><user>Hi</s><assistant>Hello world</s><user>Summarise")


async def test_what_does_not_fit_beside_a_summary_is_left_out(client: AsgiClient, engine: FakeEngine) -> None:
    turns = [{"role": role, "content": f"{i}{'.' * 20}"} for i in range(9) for role in ("user", "assistant")]
    await compact(client, input=turns)
    assert len(engine.plan.prompts[0]) + INFO.max_seq_len // 4 <= INFO.max_seq_len
    assert "<user>Summarise" in prompt(engine)


@pytest.mark.parametrize(("asked", "limit"), [(None, MAX_TOKENS), (20, 20), (200, 200)])
async def test_a_summary_is_as_long_as_is_asked_for(
    client: AsgiClient, engine: FakeEngine, asked: int | None, limit: int
) -> None:
    turns = [{"role": role, "content": f"{i}{'.' * 20}"} for i in range(9) for role in ("user", "assistant")]
    await compact(client, input=turns, max_output_tokens=asked)
    assert engine.plan.max_tokens == min(limit, INFO.max_seq_len)
    # a short summary leaves the conversation more room
    n_prompt, room = len(engine.plan.prompts[0]), min(limit, INFO.max_seq_len // 4)
    assert INFO.max_seq_len - 60 < n_prompt + room <= INFO.max_seq_len


async def test_what_the_template_does_not_read_is_told(client: AsgiClient) -> None:
    response = await client.post(COMPACT, {"input": "x", "reasoning": {"effort": "low"}})
    assert response.headers["x-llamafast-ignored"] == "reasoning.effort"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "x", "model": INFO.id, "stream": True}, "stream"),
        ({"model": INFO.id}, "input"),
        ({"model": INFO.id, "input": [], "instructions": "x"}, "input"),
        ({"model": INFO.id, "previous_response_id": "resp_1"}, "previous_response_id"),
    ],
)
async def test_bad_requests(client: AsgiClient, fields: dict[str, Any], param: str) -> None:
    response = await client.post(COMPACT, fields)
    assert (response.status, response.error["param"]) == (400, param)


async def test_no_model_is_the_one_there_is(client: AsgiClient, engine: FakeEngine) -> None:
    assert (await client.post(COMPACT, {"input": "x", "model": None})).status == 200


async def test_a_model_that_says_nothing(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = say(" ")
    response = await client.post(COMPACT, {"model": INFO.id, "input": "Hi"})
    assert (response.status, response.error["message"]) == (500, "the model wrote no summary")


def test_only_items_of_this_server_are_opened() -> None:
    assert (summary_of(sealed("é")) or "").endswith("\né")
    for foreign in (None, 1, "gAAAAB", "llamafast:é", "llamafast:/w=="):
        assert summary_of(foreign) is None
