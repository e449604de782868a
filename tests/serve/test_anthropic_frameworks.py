"""LangChain and pydantic-ai over Anthropic's Messages. They are imported by the tests: they take seconds."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel

from benchmarks.server import Server

pytestmark = pytest.mark.heavy
TEXT = "Hello there, this reply is fixed."


def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city} <|s_text|>"


weather.__name__ = "get_weather"


class Place(BaseModel):
    """Where to go."""

    city: Literal["Rome", "Oslo"]


@pytest.fixture
def langchain(scripted_server: Server) -> Any:
    from langchain_anthropic import ChatAnthropic

    url = f"http://127.0.0.1:{scripted_server.port}"
    return ChatAnthropic(model="scripted", base_url=url, api_key="none", max_retries=0, max_tokens=200)


def test_langchain(langchain: Any) -> None:
    from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
    from langchain_core.tools import tool

    get_weather = tool(weather)
    bound = langchain.bind_tools([get_weather])
    messages: list[Any] = [HumanMessage("<|s_calls|>")]
    answer = bound.invoke(messages)
    assert isinstance(answer, AIMessage)
    assert [call["args"] for call in answer.tool_calls] == [{"city": "Rome"}, {"city": "Oslo"}]
    messages += [answer, *(get_weather.invoke(call) for call in answer.tool_calls)]
    assert bound.invoke(messages).content == TEXT
    chunks = [chunk for chunk in bound.stream("<|s_all|>") if isinstance(chunk, AIMessageChunk)]
    total = sum(chunks[1:], chunks[0])
    assert [(call["name"], call["args"]) for call in total.tool_calls] == [("get_weather", {"city": "Bonn"})]
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] == sum(
        answer.usage_metadata[key] for key in ("input_tokens", "output_tokens")
    )


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_langchain_gets_an_object(langchain: Any, method: Literal["function_calling", "json_schema"]) -> None:
    assert isinstance(langchain.with_structured_output(Place, method=method).invoke("<|s_tool|>"), Place)


async def test_pydantic_ai(scripted_server: Server) -> None:
    from anthropic import AsyncAnthropic
    from pydantic_ai import Agent
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    url = f"http://127.0.0.1:{scripted_server.port}"
    async with AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        model = AnthropicModel("scripted", provider=AnthropicProvider(anthropic_client=client))
        agent = Agent(model, model_settings={"max_tokens": 200})

        agent.tool_plain(weather)
        assert (await agent.run("<|s_calls|>")).output == TEXT
        typed = Agent(model, output_type=Place, model_settings={"max_tokens": 200})
        assert isinstance((await typed.run("<|s_tool|>")).output, Place)
