"""What routers ask a worker before they choose one, and the bodies they make of a client's."""

from __future__ import annotations

import pytest
from support.asgi_client import AsgiClient
from support.fake_engine import BOS, INFO, FakeEngine

from llamafast import __version__

MESSAGES = [{"role": "user", "content": "hi"}]
# what vllm-router 0.1.17 adds to every chat, and smg to every request
REWRITTEN = {
    "logprobs": False, "no_stop_trim": False, "ignore_eos": False, "continue_final_message": False,
    "skip_special_tokens": True, "separate_reasoning": True, "stream_reasoning": True, "return_hidden_states": False,
    "include_reasoning": True,
}  # fmt: skip


async def test_a_chat_is_told_as_the_ids_that_it_would_be_computed_from(client: AsgiClient, engine: FakeEngine) -> None:
    for path in ("/v1/chat/completions/render", "/chat/completions/render"):
        told = (await client.post(path, {"messages": MESSAGES, "max_tokens": 3})).json
        assert told.keys() == {"token_ids", "model", "request_id"}
        assert told["model"] == INFO.id
        assert told["request_id"].startswith("chatcmpl-")
        assert not engine.generations
    answered = await client.post("/v1/chat/completions", {"messages": MESSAGES, "return_token_ids": True})
    assert told["token_ids"] == answered.json["prompt_token_ids"]


async def test_each_prompt_of_a_completion_is_told(client: AsgiClient, engine: FakeEngine) -> None:
    told = (await client.post("/v1/completions/render", {"model": INFO.id, "prompt": ["ab", "c"]})).json
    assert [one["token_ids"] for one in told] == [[BOS, 97, 98], [BOS, 99]]
    assert len({one["request_id"] for one in told}) == 2
    told = (await client.post("/v1/completions/render", {"prompt": [1, 2, 3]})).json
    assert [one["token_ids"] for one in told] == [[1, 2, 3]]
    assert not engine.generations


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions/render", {}, "messages"),
        ("/v1/chat/completions/render", {"messages": MESSAGES, "temperature": 9}, "temperature"),
        ("/v1/chat/completions/render", {"messages": [{"role": "user", "content": "x" * 3000}]}, "messages"),
        ("/v1/completions/render", {"prompt": [10**6]}, "prompt"),
        ("/v1/completions/render", {"prompt": []}, "prompt"),
    ],
)
async def test_what_would_be_refused_is_refused(client: AsgiClient, path: str, body: object, param: str) -> None:
    response = await client.post(path, body)
    assert (response.status, response.json["error"]["param"]) == (400, param)


async def test_the_version_is_told(client: AsgiClient) -> None:
    assert (await client.get("/version")).json == {"version": __version__}


async def test_a_router_that_takes_it_for_another_server_is_not_led_on(client: AsgiClient) -> None:
    for path in ("/server_info", "/get_server_info", "/model_info", "/get_model_info"):
        assert (await client.get(path)).status == 404


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/chat/completions/render"])
async def test_bodies_that_routers_have_rewritten_are_taken(client: AsgiClient, path: str) -> None:
    plain = await client.post(path, {"messages": MESSAGES})
    told = await client.post(path, {"messages": MESSAGES, **REWRITTEN})
    assert (told.status, told.json.keys()) == (plain.status, plain.json.keys()) == (200, plain.json.keys())
    assert "x-llamafast-ignored" not in told.headers
    nothing = dict.fromkeys(REWRITTEN)
    assert (await client.post(path, {"messages": MESSAGES, **nothing})).status == 200
