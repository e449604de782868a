"""llama-server's `prompt_progress` and `timings` beside a text, in each API that streams it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient, Response
from support.fake_engine import FakeEngine, play

from llamafast.engine.types import Event

TEXT = "x" * 199  # and BOS
BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x" * 181}]},
    "/v1/completions": {"prompt": TEXT},
    "/completion": {"prompt": TEXT},
}
SAID = ([Event(0, "a", 1)], [Event(0, "b", 1)], [Event(0, "", 1, "stop")])


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine(play(40, 41, 42, 120, 200, *SAID))
    engine.cached_tokens = 40
    return engine


@pytest.fixture
def client(engine: FakeEngine) -> AsgiClient:
    return AsgiClient(make_app(engine))


def chunks(response: Response) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for frame in response.frames if (line := frame.strip()) != "data: [DONE]"]


def text(chunk: dict[str, Any]) -> str:
    if "content" in chunk:
        return str(chunk["content"])
    return "".join(choice.get("text") or choice.get("delta", {}).get("content") or "" for choice in chunk["choices"])


@pytest.mark.parametrize("path", BODIES)
async def test_the_progress_of_a_prompt(client: AsgiClient, engine: FakeEngine, path: str) -> None:
    told = chunks(await client.post(path, {**BODIES[path], "stream": True, "return_progress": True}))
    assert engine.plan.tell_progress
    assert len(engine.plan.prompts[0]) == 200
    progress = [(at, chunk["prompt_progress"]) for at, chunk in enumerate(told) if "prompt_progress" in chunk]
    # 41 is less than a hundredth more
    assert [one["processed"] for _, one in progress] == [40, 42, 120, 200]
    assert {(one["total"], one["cache"]) for _, one in progress} == {(200, 40)}
    assert all(one["time_ms"] >= 0 for _, one in progress)
    first_text = next(at for at, chunk in enumerate(told) if text(chunk))
    assert all(at < first_text and not text(told[at]) for at, _ in progress)
    assert "".join(map(text, told)) == "ab"


@pytest.mark.parametrize("path", BODIES)
async def test_nobody_is_told_who_does_not_ask_or_stream(client: AsgiClient, engine: FakeEngine, path: str) -> None:
    for asked in ({"stream": True}, {"return_progress": True}, {"stream": True, "return_progress": False}):
        response = await client.post(path, {**BODIES[path], **asked})
        assert response.status == 200
        assert b"prompt_progress" not in response.body
        assert not engine.generations[-1].plan.tell_progress


@pytest.mark.parametrize("path", BODIES)
async def test_timings_are_in_every_chunk_with_news(client: AsgiClient, path: str) -> None:
    told = chunks(await client.post(path, {**BODIES[path], "stream": True, "timings_per_token": True}))
    with_text = [chunk for chunk in told if text(chunk)]
    assert [chunk["timings"]["predicted_n"] for chunk in with_text] == [1, 2]
    assert told[-1]["timings"]["predicted_n"] == 3
    assert {chunk["timings"]["prompt_n"] for chunk in with_text} == {160}
    whole = (await client.post(path, {**BODIES[path], "timings_per_token": True})).json
    assert whole["timings"]["predicted_n"] == 3


async def test_where_progress_is_not_told_it_is_refused(client: AsgiClient) -> None:
    error = (await client.post("/v1/responses", {"input": "a", "return_progress": True})).error
    assert error["param"] == "return_progress"
    assert "`return_progress` to /v1/chat/completions" in error["message"]


async def test_timings_tell_of_drafts_where_there_were_any_and_of_the_queue(
    client: AsgiClient, engine: FakeEngine
) -> None:
    body = {**BODIES["/v1/chat/completions"], "timings_per_token": True}
    timings = (await client.post("/v1/chat/completions", body)).json["timings"]
    assert timings["queue_ms"] == 1.0
    assert "draft_n" not in timings
    submit = engine.submit

    def drafting(*asked: Any) -> Any:
        generation = submit(*asked)
        generation.drafted_tokens = (9, 7)  # type: ignore[misc]
        return generation

    engine.submit = drafting  # type: ignore[method-assign]
    timings = (await client.post("/v1/chat/completions", body)).json["timings"]
    assert (timings["draft_n"], timings["draft_n_accepted"]) == (9, 7)
