"""Fields of one endpoint that are sent to another: none that would change the answer is passed over."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import completion_create_params as chat
from openai.types.responses import response_create_params as responses
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.asgi_websocket import websocket
from support.fake_engine import FakeEngine

from llamafast.api.chat.schema import ChatRequest
from llamafast.api.messages.schema import MessagesRequest
from llamafast.api.responses.schema import ResponsesRequest
from llamafast.api.schema.completions import CompletionRequest
from llamafast.api.schema.embeddings import EmbeddingsRequest
from llamafast.api.schema.fragments import GenerationOptions

MESSAGES = [{"role": "user", "content": "Hi"}]
JSON_FORMAT = {"type": "json_object"}
GOOD: dict[str, tuple[dict[str, Any], Any]] = {
    "/v1/completions": ({"prompt": "a"}, CompletionRequest),
    "/v1/chat/completions": ({"messages": MESSAGES}, ChatRequest),
    "/v1/messages": ({"messages": MESSAGES, "max_tokens": 9}, MessagesRequest),
    "/v1/responses": ({"input": "a"}, ResponsesRequest),
    "/v1/embeddings": ({"input": "a"}, EmbeddingsRequest),
}
FOREIGN = [(path, name) for path, (_, kind) in GOOD.items() for name in kind.foreign]
# These say nothing of the text: storage, billing, delivery and hints, and which calls there may be where no tools are.
SILENT = {
    "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
    "prompt_cache_retention", "access_programs", "image", "prediction", "background",
    "background_options", "max_tool_calls", "parallel_tool_calls", "tool_choice", "function_call",
}  # fmt: skip


def fields(params: Any) -> set[str]:
    return {name for kind in params.__mro__ for name in getattr(kind, "__annotations__", ())}


OPENAI = (
    fields(completions.CompletionCreateParamsNonStreaming)
    | fields(chat.CompletionCreateParamsNonStreaming)
    | fields(responses.ResponseCreateParamsNonStreaming)
)


@pytest.mark.parametrize("kind", [CompletionRequest, ChatRequest, MessagesRequest, ResponsesRequest])
def test_each_endpoint_knows_the_fields_of_all_others_that_say_something_of_the_text(
    kind: type[GenerationOptions],
) -> None:
    assert OPENAI - set(kind.__struct_fields__) - kind.foreign.keys() - SILENT == set()
    assert set(kind.foreign) <= OPENAI


@pytest.mark.parametrize(("path", "name"), FOREIGN)
async def test_a_field_of_another_endpoint_is_refused_with_the_one_to_send(
    client: AsgiClient, engine: FakeEngine, path: str, name: str
) -> None:
    body, kind = GOOD[path]
    response = await client.post(path, {**body, name: "x"})
    error = response.json["error"]
    assert (response.status, error["type"]) == (400, "invalid_request_error")
    assert error["message"] == f"`{name}` is no field of this endpoint; send {kind.foreign[name]}"
    if path != "/v1/messages":  # whose errors have neither
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
    assert not engine.generations


@pytest.mark.parametrize("nothing", [None, False, "", [], {}], ids=str)
async def test_a_field_of_another_endpoint_that_says_nothing_is_passed_over(
    client: AsgiClient, engine: FakeEngine, nothing: object
) -> None:
    body = {"input": "a", **dict.fromkeys(("messages", "logprobs", "verbosity", "functions"), nothing)}
    assert (await client.post("/v1/responses", body)).status == 200
    assert len(engine.generations) == 1


@pytest.mark.parametrize(
    ("path", "body", "here"),
    [
        ("/v1/responses", {"messages": MESSAGES}, "`input`"),
        ("/v1/responses", {"input": "a", "response_format": JSON_FORMAT}, "`text.format`"),
        ("/v1/responses", {"input": "a", "max_tokens": 5}, "`max_output_tokens`"),
        ("/v1/responses/input_tokens", {"input": "a", "response_format": JSON_FORMAT}, "`text.format`"),
        ("/v1/chat/completions", {"prompt": "a"}, "`messages`"),
        ("/v1/chat/completions", {"messages": MESSAGES, "text": {"format": JSON_FORMAT}}, "`response_format`"),
        ("/v1/completions", {"messages": MESSAGES}, "/v1/chat/completions"),
        ("/v1/completions", {"prompt": "a", "max_completion_tokens": 1}, "`max_tokens`"),
        ("/tokenize", {"messages": MESSAGES, "instructions": "Be brief."}, "`messages`"),
    ],
)
async def test_what_to_send_is_told_before_what_is_missing(
    client: AsgiClient, path: str, body: dict[str, Any], here: str
) -> None:
    response = await client.post(path, body)
    assert response.status == 400
    assert here in response.error["message"]


async def test_fields_that_no_endpoint_has_are_passed_over(client: AsgiClient) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/v1/messages", "/v1/responses"):
        assert (await client.post(path, {**GOOD[path][0], "new_in_2031": {"a": [1]}})).status == 200
    assert (await client.post("/tokenize", {"prompt": "a"})).status == 200


async def test_sockets_are_no_way_around(engine: FakeEngine) -> None:
    async with websocket(make_app(engine)) as socket:
        socket.create(input="Hi", response_format=JSON_FORMAT)
        assert (await socket.event())["error"]["param"] == "response_format"
