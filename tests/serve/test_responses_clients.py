"""The Responses API as its clients use it: the real openai package and openai-agents against the real server."""

from __future__ import annotations

import asyncio
from typing import Any

import agents
import openai
import pytest

TEXT = "Hello there, this reply is fixed."
WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}

# Twenty letters, then more alternatives at once than are followed.
FAILING_GRAMMAR = "start: /[ab]{20}/ x\nx: " + " | ".join(f'y y "{i:x}"' for i in range(4000)) + '\ny: "q"?'


def ask(text: str) -> str:
    return f"<|s_{text}|>"


@pytest.fixture
def url(scripted_server) -> str:
    return f"http://127.0.0.1:{scripted_server.port}/v1"


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def final(client: openai.OpenAI, **fields: Any) -> Any:
    """The Response at the end of a stream; the SDK raises on any event out of order."""
    with client.responses.stream(model="scripted", temperature=0, **fields) as stream:
        for _ in stream:
            pass
        return stream.get_final_response()


def test_text(client) -> None:
    response = final(client, input=ask("text"))
    assert response.output_text == TEXT
    whole = client.responses.create(model="scripted", temperature=0, input=ask("text"))
    assert whole.output_text == TEXT
    assert whole.usage.output_tokens == response.usage.output_tokens


def test_reasoning(client) -> None:
    response = final(client, input=ask("think"))
    reasoning, message = response.output
    assert reasoning.type == "reasoning"
    assert "Let me reason briefly." in reasoning.content[0].text
    assert response.output_text.strip() == "The answer is 4."
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    assert message.type == "message"


def test_a_summary_of_reasoning(client) -> None:
    response = final(client, input=ask("think"), reasoning={"summary": "auto"})
    reasoning, _ = response.output
    assert [part.text for part in reasoning.summary] == [part.text for part in reasoning.content]
    assert response.reasoning.summary == "auto"


def test_a_function_call(client) -> None:
    response = final(client, input=ask("tool"), tools=[WEATHER])
    (call,) = response.output
    assert (call.type, call.name, call.arguments) == ("function_call", "get_weather", '{"city": "Paris"}')
    again = client.responses.create(
        model="scripted",
        temperature=0,
        tools=[WEATHER],
        previous_response_id=response.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}, user(ask("text"))],
    )
    assert again.output_text == TEXT


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def test_a_custom_tool(client) -> None:
    custom: Any = {"type": "custom", "name": "get_weather"}
    response = final(client, input=ask("tool"), tools=[custom])
    (call,) = response.output
    assert (call.type, call.name, call.input) == ("custom_tool_call", "get_weather", "Paris")


def test_a_namespace(client) -> None:
    space: Any = {"type": "namespace", "name": "home", "description": "", "tools": [WEATHER]}
    response = client.responses.create(model="scripted", temperature=0, input=ask("text"), tools=[space])
    assert response.output_text == TEXT


def test_a_reply_cut_short(client) -> None:
    with client.responses.stream(model="scripted", input=ask("text"), max_output_tokens=2) as stream:
        last = list(stream)[-1]
    assert last.type == "response.incomplete"
    assert last.response.status == "incomplete"
    assert last.response.incomplete_details.reason == "max_output_tokens"


def test_log_probabilities(tiny_server) -> None:
    """Those of chat completions, in the deltas and in the message.

    Each request has a salt of its own, so that all of them compute the whole prompt. Of a prompt that is kept the last
    token is computed again, alone, and ggml adds up a product of one row in another order than one of several: the log
    probabilities of everything after it would differ by up to 1e-6.
    """

    def salted(salt: str) -> Any:
        extra = {"ignore_eos": True, "cache_salt": f"log probabilities, {salt}"}
        return {"model": "tiny/llama", "temperature": 0, "top_logprobs": 2, "extra_body": extra}

    with openai.OpenAI(base_url=f"http://127.0.0.1:{tiny_server.port}/v1", api_key="none", max_retries=0) as client:
        chat = client.chat.completions.create(messages=[user("hi")], max_tokens=12, logprobs=True, **salted("chat"))
        asked: Any = {"input": "hi", "max_output_tokens": 12, "include": ["message.output_text.logprobs"]}
        with client.responses.stream(**asked, **salted("streamed")) as stream:
            deltas = [event for event in stream if event.type == "response.output_text.delta"]
        whole = client.responses.create(**asked, **salted("whole"))
    content = chat.choices[0].logprobs.content
    (part,) = whole.output[0].content
    assert part.text == chat.choices[0].message.content
    assert [(told.token, told.logprob) for told in part.logprobs] == [(told.token, told.logprob) for told in content]
    assert [told.bytes for told in part.logprobs] == [told.bytes for told in content]
    assert all(len(told.top_logprobs) == 2 for told in part.logprobs)
    streamed = [(told.token, told.logprob) for delta in deltas for told in delta.logprobs]
    assert streamed == [(told.token, told.logprob) for told in part.logprobs]


def test_a_stream_that_fails(tiny_server) -> None:
    """A grammar that becomes too complex once some text is written: the text stays, then comes the failure."""
    asked: Any = {"model": "tiny/llama", "input": "hi", "temperature": 1, "extra_body": {"grammar": FAILING_GRAMMAR}}
    with openai.OpenAI(base_url=f"http://127.0.0.1:{tiny_server.port}/v1", api_key="none", max_retries=0) as client:
        with client.responses.stream(**asked) as stream:
            events = list(stream)
        with pytest.raises(openai.BadRequestError, match="too complex"):
            client.responses.create(**asked)
        with client.responses.connect() as socket:
            frame = {"type": "response.create", **asked, **asked["extra_body"]}
            socket.send({key: value for key, value in frame.items() if key != "extra_body"})  # type: ignore[arg-type]
            failed = next(event for event in socket if event.type in ("response.failed", "response.completed"))
        after = client.responses.create(model="tiny/llama", input="hi", max_output_tokens=4)
    last = events[-1]
    assert (last.type, failed.type) == ("response.failed", "response.failed")
    assert failed.response.error == last.response.error
    assert last.response.status == "failed"
    assert "too complex" in last.response.error.message
    (message,) = last.response.output
    assert message.status == "incomplete"
    told = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert message.content[0].text == told
    assert len(told) > 10
    assert after.status in ("completed", "incomplete")


def test_refusals(client) -> None:
    for stream in (True, False):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="scripted", input="x" * 100_000, stream=stream)
        assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="scripted", input="x", previous_response_id="resp_none")
    assert caught.value.code == "previous_response_not_found"


def test_stored_responses(client) -> None:
    created = client.responses.create(model="scripted", temperature=0, input=ask("text"))
    assert client.responses.retrieve(created.id).output_text == TEXT
    (item,) = client.responses.input_items.list(created.id).data
    assert item.content[0].text == ask("text")
    assert client.responses.input_tokens.count(model="scripted", input=ask("text")).input_tokens == (
        created.usage.input_tokens
    )
    client.responses.delete(created.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(created.id)


async def test_async(url) -> None:
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def one(kind: str) -> Any:
            async with client.responses.stream(model="scripted", temperature=0, input=ask(kind)) as stream:
                return await stream.get_final_response()

        text, thought = await asyncio.gather(one("text"), one("think"))
    assert text.output_text == TEXT
    assert thought.output[0].type == "reasoning"


def test_a_socket(client) -> None:
    with client.responses.connect() as socket:
        socket.response.create(model="scripted", input=ask("text"), temperature=0, store=False)
        first = until_completed(socket)
        assert first.output_text == TEXT
        socket.response.create(
            model="scripted", input=ask("think"), temperature=0, store=False, previous_response_id=first.id
        )
        second = until_completed(socket)
        assert second.usage.input_tokens_details.cached_tokens > 0
        socket.response.create(model="scripted", input="x", previous_response_id="resp_none")
        error = socket.recv()
        assert (error.type, error.error.code) == ("error", "previous_response_not_found")


def until_completed(socket: Any) -> Any:
    for event in socket:
        assert event.type != "error", event
        if event.type == "response.completed":
            return event.response
    raise AssertionError("the socket closed")


async def test_an_async_socket(url) -> None:
    async with (
        openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client,
        client.responses.connect() as socket,
    ):
        await socket.response.create(model="scripted", input=ask("text"), temperature=0)
        async for event in socket:
            if event.type == "response.completed":
                assert event.response.output[0].content[0].text == TEXT
                break


async def test_an_agent_calls_its_tool(url) -> None:
    """openai-agents: the model calls a function, the agent runs it, the model answers."""
    asked: list[str] = []

    # a strict tool would make the scripted model spell its call in tokens that its script does not know
    @agents.function_tool(strict_mode=False)
    def get_weather(city: str) -> str:
        """Tells the weather."""
        asked.append(city)
        return ask("text")

    agents.set_tracing_disabled(True)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        agent = agents.Agent(
            name="a",
            model=agents.OpenAIResponsesModel("scripted", openai_client=client),
            tools=[get_weather],
            model_settings=agents.ModelSettings(temperature=0),
        )
        result = await agents.Runner.run(agent, ask("tool"))
        assert (asked, result.final_output) == (["Paris"], TEXT)
        streamed = agents.Runner.run_streamed(agent, ask("tool"))
        kinds = [event.type async for event in streamed.stream_events()]
        assert "raw_response_event" in kinds
        assert streamed.final_output == TEXT
