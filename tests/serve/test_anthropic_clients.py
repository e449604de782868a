"""Anthropic's clients and a model with fixed answers: its own package of two generations, Vercel's AI SDK, LangChain,
pydantic-ai."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
from anthropic import AsyncAnthropic
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.tools import tool
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.providers.anthropic import AnthropicProvider

from benchmarks.server import Server
from serve.test_responses_node import installed, run_node

SCRIPT = Path(__file__).with_name("anthropic_client.py")
# Where `make test-faults` puts the generation of the package before.
OLDER = Path(__file__).parents[2] / ".cache" / "anthropic-0"
TEXT = "Hello there, this reply is fixed."


def called(city: str) -> dict[str, Any]:
    return {"type": "tool_use", "name": "get_weather", "input": {"city": city}}


def spoken(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def thought(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": text, "signature": "llamafast"}


ANSWERS = {
    "text": [spoken(TEXT)],
    "think": [thought("Let me reason briefly."), spoken("The answer is 4.")],
    "tool": [called("Paris")],
    "calls": [spoken("Two calls."), called("Rome"), called("Oslo")],
    "all": [thought("I need the weather."), spoken("On it."), called("Bonn")],
}


@pytest.fixture(scope="module")
def url(scripted_server: Server) -> str:
    return f"http://127.0.0.1:{scripted_server.port}"


@pytest.fixture(
    scope="module", params=[pytest.param(None, id="2"), pytest.param(OLDER, id="0", marks=pytest.mark.heavy)]
)
def checks(url: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the package saw."""
    older = {} if request.param is None else {"PYTHONPATH": str(request.param)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), url], env=os.environ | older, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    told = {line.pop("check"): line for line in map(json.loads, done.stdout.splitlines())}
    assert told["generation"]["version"].startswith("2." if request.param is None else "0.")
    return told


def test_what_is_streamed_is_what_is_told_whole(checks: dict[str, Any]) -> None:
    for trigger, blocks in ANSWERS.items():
        check = checks[trigger]
        assert check["whole"]["blocks"] == blocks
        assert check["whole"]["stop_reason"] == ("tool_use" if blocks[-1]["type"] == "tool_use" else "end_turn")
        assert check["streamed"] == check["whole"]
        assert (check["kinds"][0], check["kinds"][-1]) == ("message_start", "message_stop")
        assert check["kinds"].count("content_block_stop") == len(blocks)


def test_tokens_are_counted_as_a_message_sums_them(checks: dict[str, Any]) -> None:
    assert checks["count"]["n"] == checks["all"]["whole"]["input"]


def test_tools_are_chosen(checks: dict[str, Any]) -> None:
    (forced,) = checks["forced"]["blocks"]
    assert (forced["type"], forced["name"], list(forced["input"])) == ("tool_use", "get_weather", ["city"])
    assert checks["none"]["blocks"][0]["text"].startswith("<tool_call>")
    assert checks["none"]["stop_reason"] == "end_turn"
    assert checks["one"]["blocks"] == ANSWERS["calls"][:2]


def test_ends(checks: dict[str, Any]) -> None:
    stopped, short = checks["stopped"], checks["short"]
    assert (stopped["blocks"], stopped["stop_reason"]) == ([spoken("Hello there, this ")], "stop_sequence")
    assert stopped["stop_sequence"] == "reply"
    assert 5 <= stopped["output"] <= 6
    assert (short["stop_reason"], short["output"], short["blocks"]) == ("max_tokens", 2, [spoken("Hello there")])


def test_tools_are_run_and_what_they_say_is_answered(checks: dict[str, Any]) -> None:
    for stream in (False, True):
        asks, answers = checks[f"runner {stream}"]["turns"]
        assert (asks["blocks"], answers["blocks"]) == (ANSWERS["calls"], ANSWERS["text"])


def test_a_model_of_the_answer_and_models(checks: dict[str, Any]) -> None:
    assert checks["parse"]["city"]
    assert checks["models"] == {"ids": ["scripted"], "one": "scripted"}


def test_errors(checks: dict[str, Any]) -> None:
    unknown, long, thread = checks["unknown model"], checks["too long"], checks["thread"]
    assert (unknown["kind"], unknown["type"]) == ("NotFoundError", "not_found_error")
    assert long["message"].startswith("prompt is too long: ")
    assert thread["details"]["error_code"] == "thread_unsupported_request"
    assert all(error["id"].startswith("req_") for error in (unknown, long, thread))


def test_an_asynchronous_client_and_one_that_leaves(checks: dict[str, Any]) -> None:
    assert checks["async"]["blocks"] == checks["left"]["blocks"] == ANSWERS["text"]
    assert "".join(checks["async stream"]["texts"]) == "The answer is 4."
    assert checks["async stream"]["blocks"] == ANSWERS["think"]


def test_vercels_ai_sdk(url: str) -> None:
    saw = run_node(installed(Path(__file__).with_name("anthropic_client.mjs")), f"{url}/v1")
    for trigger, reasoning, text, calls in (
        ("text", None, TEXT, []),
        ("think", "Let me reason briefly.", "The answer is 4.", []),
        ("all", "I need the weather.", "On it.", [["get_weather", {"city": "Bonn"}]]),
    ):
        for check in (saw[trigger], saw[f"{trigger} streamed"]):
            assert (check.get("reasoning"), check["text"], check["calls"]) == (reasoning, text, calls)
            assert check["finish"] == ("tool-calls" if calls else "stop")
    assert saw["loop"] == {"text": TEXT, "steps": 2}
    assert saw["object"]["object"]["city"] in ("Rome", "Oslo")
    assert saw["too long"]["status"] == 400


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city} <|s_text|>"


class Place(BaseModel):
    """Where to go."""

    city: Literal["Rome", "Oslo"]


@pytest.fixture
def langchain(url: str) -> ChatAnthropic:
    return ChatAnthropic(model="scripted", base_url=url, api_key="none", max_retries=0, max_tokens=200)


def test_langchain(langchain: ChatAnthropic) -> None:
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
def test_langchain_gets_an_object(langchain: ChatAnthropic, method: Literal["function_calling", "json_schema"]) -> None:
    assert isinstance(langchain.with_structured_output(Place, method=method).invoke("<|s_tool|>"), Place)


async def test_pydantic_ai(url: str) -> None:
    async with AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        model = AnthropicModel("scripted", provider=AnthropicProvider(anthropic_client=client))
        agent = Agent(model, model_settings={"max_tokens": 200})

        @agent.tool_plain
        def get_weather(city: str) -> str:
            """The weather in a city."""
            return f"sunny in {city} <|s_text|>"

        assert (await agent.run("<|s_calls|>")).output == TEXT
        typed = Agent(model, output_type=Place, model_settings={"max_tokens": 200})
        assert isinstance((await typed.run("<|s_tool|>")).output, Place)
