"""Hostile and mistaken input: a clear error in OpenAI's shape, and nothing reaches the engine."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import FakeEngine

from llamafast.api.schema.fragments import INSTEAD
from llamafast.engine.types import Event

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def _nothing_is_submitted(request: pytest.FixtureRequest):
    engine = request.getfixturevalue("engine") if "engine" in request.fixturenames else None
    yield
    assert engine is None or not engine.generations


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"prompt":"a"} x', "not valid JSON"),
        (b'{"prompt":"a","temperature":NaN}', "not valid JSON"),
        (b'{"prompt":"a","zz":Infinity}', "not valid JSON"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        ('{"prompt":"a"}'.encode("utf-16"), "not valid UTF-8"),
        (b'{"prompt":"a\x00b"}', "not valid JSON"),
        (rb'{"prompt":"\ud83d"}', "surrogate"),
        (rb'{"prompt":"a","zz":"\uDC00x"}', "surrogate"),
        (b'{"prompt":"\xff"}', "UTF-8"),
        (b'{"prompt":"\xed\xa0\x80"}', "UTF-8"),
        (b'{"prompt":"a","zz":"\xff"}', "UTF-8"),
        (b"[]", "expected `object`"),
        (b"null", "expected `object`"),
        (b'"prompt"', "expected `object`"),
        (b'{"prompt":' + b"[" * 50_000, "nested too deeply"),
        (b'{"prompt":[[[1]]]}', "`prompt[0][0]`: expected `integer`"),
        (b'{"prompt":"a","zz":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "nested too deeply"),
        (b'{"prompt":"a","zz":' + b'{"a":' * 30_000 + b"1" + b"}" * 30_000 + b"}", "nested too deeply"),
        (b'{"prompt":"a","prompt":"b"}', "'prompt' occurs twice"),
        (b'{"prompt":"a","zz":[{"k":1,"k":1}]}', "'k' occurs twice"),
        (b'{"prompt":"a","zz":1' + b"0" * 10_000 + b"}", ""),
        (b'{"prompt":"a","zz":1.' + b"0" * 10_000 + b"}", "more than 1000 characters"),
        (b'{"prompt":"a","temperature":1e999}', "too large"),
        (rb'{"prompt":"a","zz":{"k":1,"\u006b":1}}', "'k' occurs twice"),
    ],
)
async def test_bodies_that_are_not_a_request(client: AsgiClient, body: bytes, said: str) -> None:
    response = await client.post(COMPLETIONS, body)
    assert response.status == 400
    assert response.error["type"] == "invalid_request_error"
    assert said in response.error["message"]
    assert len(response.body) < 1000


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", ["1", True, -0.1, 2.1, [], {}, 10**400]),
        ("top_p", ["1", -0.1, 1.1, False]),
        ("top_k", ["1", -2, 1.5, True]),
        ("min_p", ["1", -0.1, 1.1]),
        ("repetition_penalty", [0, -1, "1", 1e300]),
        ("repeat_penalty", [0, -1, "1"]),
        ("presence_penalty", [-2.1, 2.1, "0"]),
        ("frequency_penalty", [-2.1, 2.1, "0"]),
        ("logit_bias", ["x", {"1": "x"}, {"1": 101}, {"1": -101}, {"1": None}, {"x": 1}, {"258": 1}, {"1": True}]),
        (
            "logit_bias",
            [[1], [[1]], [[1, 2, 3]], [[258, 1]], [[-1, 1]], [["a", 101]], [[1.5, 1]], [[1, True]], [[1, 0]] * 1025],
        ),
        ("typical_p", [-0.1, 1.1, "1"]),
        ("top_n_sigma", ["1", 1e300]),
        ("xtc_probability", [2, -1]),
        ("xtc_threshold", [2, -1]),
        ("dynatemp_range", [-1, "x"]),
        ("mirostat", [3, -1, True, "2", 1.5]),
        ("dry_base", [0.5, 1e300]),
        ("dry_allowed_length", [-1, 2**31]),
        ("dry_penalty_last_n", [-2, 2**31]),
        ("repeat_last_n", [-2, 1.5]),
        ("dry_sequence_breakers", ["x", [""], ["x" * 41], ["x"] * 17, [1]]),
        ("samplers", ["q", ["fill"], ["top_k", 1], ["top_k"] * 17, "k" * 17, {}]),
        ("min_tokens", [-1, "1", 1.5]),
        ("logprobs", [-1, 21, "1", 1.5]),
        ("return_tokens_as_token_ids", [1, "true"]),
        ("stop_token_ids", [[258], [-1], [10**30], [0] * 129, 1, ["1"]]),
        ("include_stop_str_in_output", [1, "true"]),
        ("seed", ["1", 1.5, 2**63, -(2**63) - 1, True]),
        ("n", ["1", 0, -1, 129, 10**30, 1.5, True]),
        ("max_tokens", ["5", -3, 1.5, True, []]),
        ("stop", [5, "", [""], [5], ["x"] * 17, {}, "x" * 1025]),
        ("stream", ["true", 1, []]),
        ("stream_options", ["x", [], {"include_usage": 1}, {"include_usage": True}]),
        ("user", [5, []]),
        ("model", [5, []]),
        ("ignore_eos", [1, "true"]),
        ("logit_bias", [{str(token): 0 for token in range(1025)}]),
        ("priority", [2**31, 0.5, "high"]),
        ("skip_special_tokens", [1, "true"]),
        ("cache_salt", ["", "x" * 1025, 1, [], True]),
    ],
)
async def test_wrong_types_and_ranges_name_the_field(client: AsgiClient, field: str, values: list[Any]) -> None:
    for path, request in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": MESSAGES})):
        for value in values:
            response = await client.post(path, {**request, field: value})
            assert response.status == 400, (path, value)
            assert response.error["type"] == "invalid_request_error"
            assert response.error["param"].partition("[")[0].partition(".")[0] == field
            assert field in response.error["message"]


@pytest.mark.parametrize(
    ("request_body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": [[1, None]]}, "prompt[0][1]"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [258]}, "prompt"),
        ({"prompt": [10**25]}, "prompt"),
        ({"prompt": "a", "max_tokens": -3}, "max_tokens"),
        ({"prompt": "a", "best_of": 0}, "best_of"),
        ({"prompt": "a", "max_tokens": 5, "min_tokens": 6}, "min_tokens"),
        ({"prompt": "a", "min_tokens": 1, "grammar": 'root ::= "a"'}, "min_tokens"),
        ({"prompt": "a", "echo": 1}, "echo"),
    ],
)
async def test_bad_completions(client: AsgiClient, request_body: Any, param: str) -> None:
    response = await client.post(COMPLETIONS, request_body)
    assert response.status == 400
    assert response.error["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"max_tokens": -3}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_completion_tokens": -1, "max_tokens": 5}, "max_completion_tokens"),
        ({"metadata": []}, "metadata"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ],
)
async def test_bad_chats(client: AsgiClient, fields: Any, param: str) -> None:
    response = await client.post(CHAT, {"messages": MESSAGES, **fields})
    assert response.status == 400
    assert response.error["param"] == param


async def test_missing_messages(client: AsgiClient) -> None:
    response = await client.post(CHAT, {"model": "org/fake-model"})
    assert (response.status, response.error["param"]) == (400, "messages")


EVERYWHERE = {
    "return_tokens": True,
    "use_beam_search": True,
    "length_penalty": 1.5,
    "logits_processors": ["x"],
    "bad_words": ["x"],
    "allowed_token_ids": [1],
    "ebnf": "x",
    "return_hidden_states": True,
    "n_probs": 3,
    "post_sampling_probs": True,
    "modalities": ["text", "audio"],
    "audio": {"voice": "alloy"},
    "web_search_options": {},
    "moderation": {"model": "omni-moderation-latest"},
}
NOT_IN_COMPLETIONS = {**EVERYWHERE, "echo": True, "best_of": 2, "suffix": "x"}


@pytest.mark.parametrize(
    ("path", "request_body", "field", "value"),
    [
        *[(COMPLETIONS, {"prompt": "a"}, *item) for item in EVERYWHERE.items()],
        *[("/v1/responses", {"input": "a"}, name, True) for name in ("timings_per_token", "return_progress")],
        ("/v1/responses", {"input": "a"}, "prompt_logprobs", 0),
        (CHAT, {"messages": MESSAGES}, "add_special_tokens", True),
        *[(CHAT, {"messages": MESSAGES}, *item) for item in NOT_IN_COMPLETIONS.items() if item[0] != "echo"],
        *[("/v1/responses", {"input": "a"}, *item) for item in NOT_IN_COMPLETIONS.items()],
    ],
)
async def test_what_is_not_served_is_refused_by_name(
    client: AsgiClient, path: str, request_body: Any, field: str, value: Any
) -> None:
    response = await client.post(path, {**request_body, field: value})
    assert response.status == 400
    assert (response.error["param"], response.error["code"]) == (field, "unsupported_parameter")
    assert response.error["message"].startswith(f"`{field}` is not supported yet")
    assert ("; send `" in response.error["message"]) == (field in INSTEAD)


FUNCTION = {"name": "f"}
TOOLS = [{"type": "function", "function": FUNCTION}]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [1]}, "tools[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"tools": [{"function": FUNCTION}]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": FUNCTION}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 129}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {**FUNCTION, "parameters": []}}]}, "tools[0].function.parameters"),
        ({"tools": [{"type": "function", "function": {**FUNCTION, "strict": 1}}]}, "tools[0].function.strict"),
        ({"tools": [{"type": "function", "function": FUNCTION}] * 2}, "tools"),
        ({"functions": [FUNCTION, {"name": ""}]}, "functions[1].name"),
        ({"functions": [FUNCTION], "tools": [{"type": "function", "function": FUNCTION}]}, "functions"),
        ({"functions": [{**FUNCTION, "description": 1}]}, "functions[0].description"),
        ({"reasoning_format": "raw"}, "reasoning_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "f"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": []}}}, "tool_choice"),
        ({"functions": [FUNCTION], "function_call": {"name": "g"}}, "function_call"),
        (
            {"tools": [{"type": "function", "function": {**FUNCTION, "strict": True, "parameters": {"not": {}}}}]},
            "tools[0].function.parameters",
        ),
    ],
)
async def test_unusable_tools(client: AsgiClient, fields: dict[str, Any], param: str) -> None:
    response = await client.post(CHAT, {"messages": MESSAGES, **fields})
    assert (response.status, response.error["param"]) == (400, param)
    assert not re.search(r"\b(str|dict|bool|int)\b", response.error["message"])


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ({"role": "usr", "content": "a"}, "`messages[0].role` must be one of assistant, developer, "),
        ({"role": "user", "content": 5}, "`messages[0].content` must be a string, a list of content parts or null"),
        ({"role": "user", "content": ["a"]}, "`messages[0].content[0]` must be an object with a string `type`"),
        ({"role": "user", "content": [{"type": "text", "text": 1}]}, "`messages[0].content[0].text` must be a string"),
        ({"role": "user", "content": "a", "name": 5}, "`messages[0].name` must be a string"),
        ({"role": "assistant", "tool_calls": 5}, "`messages[0].tool_calls` must be a list"),
        ({"role": "assistant", "tool_calls": [5]}, "`messages[0].tool_calls[0]` must be an object"),
        (
            {"role": "user", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
            "`messages[0].tool_calls`: only an assistant calls tools",
        ),
    ],
)
async def test_messages_that_are_none_are_named_as_all_fields_are(
    client: AsgiClient, message: dict[str, Any], fault: str
) -> None:
    error = (await client.post(CHAT, {"messages": [message]})).error
    assert (error["message"].startswith(fault), error["param"]) == (True, fault.split("`")[1]), error["message"]


CONSTRAINTS = [
    ("response_format", {"type": "json_schema"}, "schema` is required"),
    ("response_format", {"type": "json_schema", "json_schema": {"schema": []}}, "object or a boolean"),
    ("response_format", {"type": "yaml"}, "must be text"),
    ("response_format", {}, "string `type`"),
    ("response_format", {"type": "json_object", "schema": {"$ref": "#"}}, "no text matches"),
    ("json_schema", {"type": "string", "pattern": "("}, "cannot be followed"),
    ("json_schema", {"type": "array", "uniqueItems": True}, "uniqueItems"),
    ("json_schema", {"description": "x" * 200_000}, "longer than"),
    ("guided_json", "{", "not JSON"),
    ("guided_regex", "(", "cannot be followed"),
    ("guided_choice", ["a", ""], "non-empty"),
    ("guided_grammar", "root ::= x", "not a valid grammar"),
    ("grammar", "start: nowhere", "cannot be followed"),
    ("structured_outputs", {"regex": 3}, "non-empty string"),
    ("structured_outputs", {"structural_tag": {}}, "not supported"),
]


@pytest.mark.parametrize(("field", "value", "reason"), CONSTRAINTS)
async def test_constraints_that_cannot_be_followed(client: AsgiClient, field: str, value: Any, reason: str) -> None:
    for path, request in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": MESSAGES})):
        response = await client.post(path, {**request, field: value})
        assert (response.status, response.error["param"]) == (400, field)
        assert reason in response.error["message"]


async def test_two_constraints_at_once(client: AsgiClient) -> None:
    response = await client.post(COMPLETIONS, {"prompt": "a", "guided_regex": "a", "grammar": 'root ::= "a"'})
    assert response.status == 400
    assert "only one constraint" in response.error["message"]


async def test_an_unknown_model(client: AsgiClient) -> None:
    for path, request in ((COMPLETIONS, {"prompt": "a"}), (CHAT, {"messages": MESSAGES})):
        response = await client.post(path, {**request, "model": "gpt-\u0000" + "x" * 1000})
        assert (response.status, response.error["code"]) == (404, "model_not_found")
        assert response.error["param"] == "model"
        assert len(response.body) < 500


async def test_prompts_longer_than_the_context(client: AsgiClient) -> None:
    for path, request, param in (
        (COMPLETIONS, {"prompt": "a" * 512}, "prompt"),
        (COMPLETIONS, {"prompt": "a" * 500_000}, "prompt"),
        (CHAT, {"messages": [{"role": "user", "content": "a" * 500_000}]}, "messages"),
    ):
        response = await client.post(path, request)
        assert (response.status, response.error["param"]) == (400, param)
        assert response.error["code"] == "context_length_exceeded"
        assert "512" in response.error["message"]


async def test_huge_values_that_are_within_their_ranges(engine: FakeEngine, client: AsgiClient) -> None:
    response = await client.post(COMPLETIONS, {"prompt": "a", "max_tokens": 10**18, "top_k": 10**18, "seed": 2**63 - 1})
    assert response.status == 200
    assert engine.plan.max_tokens == engine.info.max_seq_len
    engine.generations.clear()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "prompt",
    "messages",
    "tools",
    "functions",
    "stop",
    "logit_bias",
    "samplers",
    "min_tokens",
    "stop_token_ids",
    "stream_options",
    "n",
    "response_format",
    "max_tokens",
    "model",
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), st.sampled_from([COMPLETIONS, CHAT]))
async def test_any_json_is_answered_or_refused(fields: dict[str, Any], path: str) -> None:
    engine = FakeEngine(lambda plan: [[Event(i, "x", 1, "stop") for i in range(len(plan.prompts) * plan.n)]])
    client = AsgiClient(make_app(engine, max_body_bytes=1 << 20))
    response = await client.post(path, {"prompt": "a", "messages": MESSAGES, **fields})
    assert response.status in (200, 400, 404)
    json.loads(response.body) if response.status == 200 else response.error


@pytest.mark.parametrize(
    ("path", "body", "message", "param"),
    [
        ("/v1/responses", {}, "`input` is required", "input"),
        ("/v1/responses", {"input": []}, "`input` must not be empty", "input"),
        ("/v1/responses/compact", {}, "`input` is required", "input"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "`messages[0].content` is required", None),
        ("/v1/responses", {"input": [{"role": "user"}]}, "`input[0].content` is required", "input[0].content"),
        (
            "/v1/embeddings",
            {"input": "a", "truncate_prompt_tokens": 5},
            "`truncate_prompt_tokens` is not supported yet; send a text that fits",
            "truncate_prompt_tokens",
        ),
        ("/v1/chat/completions", {"messages": "x"}, "`messages`: expected `array`, got `string`", "messages"),
        ("/v1/completions", {"prompt": "a", "n": "2"}, "`n`: expected `integer | null`, got `string`", "n"),
    ],
)
async def test_a_fault_is_told_in_the_words_of_json_and_of_the_endpoint(
    client: AsgiClient, path: str, body: dict[str, object], message: str, param: str | None
) -> None:
    error = (await client.post(path, body)).error
    assert (error["message"], error["param"]) == (message, param or "messages[0].content")


async def test_a_long_input_is_called_so(client: AsgiClient) -> None:
    error = (await client.post("/v1/responses", {"input": "long " * 400})).error
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
    assert "your input resulted in" in error["message"]
