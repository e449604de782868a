"""One thing said under two names in one request: as long as both say the same it is taken, else both names are told."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import INFO, FakeEngine

from llamafast.engine.embedding_info import EmbeddingInfo
from llamafast.engine.model_facts import FimTokens

CHAT, TEXT, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/messages"
USER = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": name}} for name in "ab"]
LOW, HIGH = {"effort": "low"}, {"effort": "high"}
COLOUR, SIZE = ({"type": "json_schema", "schema": {"enum": [text]}} for text in ("red", "large"))
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"messages": USER},
    TEXT: {"prompt": "a"},
    MESSAGES: {"messages": USER, "max_tokens": 9},
    "/v1/responses": {"input": "a"},
    "/completion": {"prompt": "a"},
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/tokenize": {"content": "a"},
    "/apply-template": {"messages": USER},
}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(info=replace(INFO, max_seq_len=4096, fim=FimTokens(1, 2, 3, 4, 5, 6)))


def twins(path: str, name: str, value: Any, other: str, same: Any, different: Any) -> Any:
    return pytest.param(path, name, value, other, same, different, id=f"{path} {name} {other}")


@pytest.mark.parametrize(
    ("path", "name", "value", "other", "same", "different"),
    [
        twins(CHAT, "max_tokens", 5, "n_predict", 5, 6),
        twins(CHAT, "max_tokens", 5, "max_completion_tokens", 5, 6),
        twins(CHAT, "n_predict", 5, "max_completion_tokens", 5, 6),
        twins("/apply-template", "max_tokens", 5, "max_completion_tokens", 5, 6),
        twins(TEXT, "max_tokens", 5, "n_predict", 5, 6),
        twins(TEXT, "max_tokens", 16, "n_predict", 16, 6),
        twins("/completion", "n_predict", 5, "max_tokens", 5, 6),
        twins("/infill", "n_predict", 5, "max_tokens", 5, -1),
        *(
            twins(path, "repetition_penalty", 1.5, "repeat_penalty", 1.5, 1)
            for path in (CHAT, TEXT, "/completion", MESSAGES, "/v1/responses")
        ),
        twins(TEXT, "guided_regex", "a+", "regex", "a+", "b+"),
        twins(CHAT, "thinking_token_budget", 5, "reasoning_budget", 5, 6),
        twins(CHAT, "reasoning_budget", 5, "reasoning_budget_tokens", 5, -1),
        twins(CHAT, "reasoning_budget_tokens", 5, "thinking_budget_tokens", 5, 0),
        twins(CHAT, "thinking_token_budget", 5, "reasoning", {"max_tokens": 5}, {"max_tokens": 6}),
        twins(CHAT, "reasoning_effort", "low", "reasoning", LOW, HIGH),
        twins(CHAT, "enable_thinking", True, "reasoning", {"enabled": True}, {"enabled": False}),
        twins(CHAT, "include_reasoning", False, "reasoning", {"exclude": True}, {"exclude": False}),
        twins(
            CHAT, "tool_choice", {"type": "function", "function": {"name": "a"}},
            "function_call", {"name": "a"}, {"name": "b"},
        ),
        twins(CHAT, "tool_choice", "auto", "function_call", "auto", "none"),
        twins(MESSAGES, "output_config", {"format": COLOUR}, "output_format", COLOUR, SIZE),
        twins("/tokenize", "add_special", False, "add_special_tokens", False, True),
    ],
)  # fmt: skip
async def test_two_names_of_one_thing_agree(
    client: AsgiClient, path: str, name: str, value: Any, other: str, same: Any, different: Any
) -> None:
    body = GOOD[path] | ({"tools": TOOLS} if name == "tool_choice" else {})
    for agreeing in ({name: value, other: same}, {name: value, other: None}, {other: same, name: None}):
        response = await client.post(path, body | agreeing)
        assert response.status == 200, response.body
    for said in ({name: value, other: different}, {other: different, name: value}):
        response = await client.post(path, body | said)
        assert response.status == 400, response.body
        error = response.json["error"]
        # an object is named with the field in it
        assert [told.partition(".")[0] for told in error["message"].split("`")[1::2]] == [other, name]
        assert "says something else than" in error["message"]
        # Anthropic's errors have no such field
        assert error.get("param", other).partition(".")[0] == other


async def test_the_client_is_told_the_names_that_it_has(client: AsgiClient, engine: FakeEngine) -> None:
    error = (await client.post(TEXT, GOOD[TEXT] | {"num_predict": 5, "n_predict": 6})).error
    assert error["message"] == "`n_predict` says something else than `num_predict`"
    error = (await client.post(CHAT, GOOD[CHAT] | {"think": "low", "reasoning": HIGH})).error
    assert error["message"] == "`reasoning.effort` says something else than `think`"
    assert not engine.generations


async def test_a_default_says_nothing(client: AsgiClient, engine: FakeEngine) -> None:
    assert (await client.post(TEXT, GOOD[TEXT] | {"n_predict": 6})).status == 200
    assert engine.plan.max_tokens == 6


async def test_vectors_of_any_norm_are_normalised() -> None:
    embedding = EmbeddingInfo(pooling="mean", width=4, max_tokens=16)
    client = AsgiClient(make_app(FakeEngine(info=replace(INFO, embedding=embedding))))
    for norm in (0, 2, None):
        body = {"input": "a", "embd_normalize": norm, "normalize": True}
        assert (await client.post("/v1/embeddings", body)).status == 200
    error = (await client.post("/v1/embeddings", {"input": "a", "embd_normalize": -1, "normalized": True})).error
    assert error["message"] == "`normalized` says something else than `embd_normalize`"
