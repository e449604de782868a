"""vLLM's `prompt_logprobs`: what a model gives to the tokens of its prompt."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import ByteTokenizer, FakeEngine, play

from llamafast.engine.types import Alternatives, Event, TokenLogprob

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES = {COMPLETIONS: {"prompt": "abc"}, CHAT: {"messages": [{"role": "user", "content": "a"}]}}
TOP = Alternatives(struct.pack("ifif", 120, -0.5, 121, -1.5))
SCORES = [TokenLogprob(97, -3.0, TOP, 7), TokenLogprob(120, -0.5, TOP, 1)]
SCORED = [Event(0, "", 0, prompt_logprobs=SCORES[:1])], [Event(0, "", 0, prompt_logprobs=SCORES[1:])]
SAID = [Event(0, "H", 1, "stop", [TokenLogprob(72, -0.25, TOP)])]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(play(*SCORED, SAID))


@pytest.fixture
def client(engine: FakeEngine) -> AsgiClient:
    return AsgiClient(make_app(engine))


def entry(logprob: float, rank: int, token: str) -> dict[str, Any]:
    return {"logprob": logprob, "rank": rank, "decoded_token": token}


@pytest.mark.parametrize("path", BODIES)
async def test_each_token_and_the_likeliest(client: AsgiClient, engine: FakeEngine, path: str) -> None:
    reply = (await client.post(path, {**BODIES[path], "prompt_logprobs": 2})).json
    told = reply["prompt_logprobs"] if path == CHAT else reply["choices"][0]["prompt_logprobs"]
    assert told == [
        None,
        {"97": entry(-3.0, 7, "a"), "120": entry(-0.5, 1, "x"), "121": entry(-1.5, 2, "y")},
        {"120": entry(-0.5, 1, "x"), "121": entry(-1.5, 2, "y")},
    ]
    assert reply["choices"][0]["logprobs"] is None
    assert (engine.plan.prompt_logprobs, engine.plan.top_logprobs) == (True, 2)


@pytest.mark.parametrize("path", BODIES)
async def test_none_beside_it_and_fewer_than_of_the_answer(client: AsgiClient, engine: FakeEngine, path: str) -> None:
    asked = {"logprobs": 1} if path == COMPLETIONS else {"logprobs": True, "top_logprobs": 1}
    reply = (await client.post(path, {**BODIES[path], "prompt_logprobs": 0, **asked})).json
    told = reply["prompt_logprobs"] if path == CHAT else reply["choices"][0]["prompt_logprobs"]
    assert told == [None, {"97": entry(-3.0, 7, "a")}, {"120": entry(-0.5, 1, "x")}]
    (choice,) = reply["choices"]
    # the answer has as many as were asked for it
    if path == CHAT:
        ((token,),) = ([choice["logprobs"]["content"][0]["top_logprobs"][0]["token"]],)
        assert (token, len(choice["logprobs"]["content"][0]["top_logprobs"])) == ("x", 1)
    else:
        assert choice["logprobs"]["top_logprobs"] == [{"H": -0.25, "x": -0.5}]
        assert choice["logprobs"]["tokens"] == ["H"]
    assert engine.plan.top_logprobs == 1


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_not_to_be_had(client: AsgiClient, engine: FakeEngine, path: str) -> None:
    for asked in ({"prompt_logprobs": 1, "stream": True}, {"prompt_logprobs": 21}, {"prompt_logprobs": -1}):
        error = (await client.post(path, {**BODIES[path], **asked})).error
        assert error["param"] == "prompt_logprobs"
    assert not engine.generations
    plain = (await client.post(path, BODIES[path])).json
    assert "prompt_logprobs" not in plain
    assert "prompt_logprobs" not in plain["choices"][0]


class Counting(ByteTokenizer):
    n_pieces = 0

    def piece(self, token: int) -> bytes:
        self.n_pieces += 1
        return super().piece(token)


ECHO = {"echo": True, "logprobs": 2}


@pytest.mark.parametrize("asked", [{"prompt_logprobs": 2}, ECHO, {**ECHO, "stream": True}])
async def test_they_are_written_once_for_all_choices(asked: dict[str, Any]) -> None:
    """A prompt of thousands of tokens takes a tenth of a second to write."""
    half = "\u00e9".encode()  # one character of two tokens, of which the prompt has the first
    scores = [TokenLogprob(token, -3.0, TOP, 7) for token in (98, 99, half[0])]
    written, told = [], []
    for n in (1, 3):
        scored = [Event(index, "", 0, prompt_logprobs=scores) for index in range(n)]
        said = [Event(index, "\u00e9", 1, "stop", [TokenLogprob(half[1], -0.25, TOP)]) for index in range(n)]
        engine = FakeEngine(play(scored, said))
        tokenizer = engine.tokenizer = Counting()
        body = {"prompt": [97, 98, 99, half[0]], "n": n, **asked}
        reply = await AsgiClient(make_app(engine)).post(COMPLETIONS, body)
        choices = [event["choices"][0] for event in reply.events] if "stream" in asked else reply.json["choices"]
        told.append([[c for c in choices if c["index"] == index] for index in range(n)])
        written.append(tokenizer.n_pieces)
    ((alone,), together) = told
    for index, one in enumerate(together):
        assert [{**choice, "index": 0} for choice in one] == alone, index
    n_answer = 4 if "echo" in asked else 0  # the names and pieces of an answer's own token
    assert written[1] - written[0] == 2 * n_answer
