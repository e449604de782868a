"""Tool calls and reasoning as the openai package and LangChain read them, from a model with fixed answers."""

from __future__ import annotations

import json

import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
# trigger: content, reasoning, the cities of its calls
ANSWERS = {
    "text": ("Hello there, this reply is fixed.", "", []),
    "think": ("The answer is 4.", "Let me reason briefly.", []),
    "tool": ("", "", ["Paris"]),
    "calls": ("Two calls.", "", ["Rome", "Oslo"]),
    "all": ("On it.", "I need the weather.", ["Bonn"]),
}


@pytest.fixture
def base_url(scripted_server):
    return f"http://127.0.0.1:{scripted_server.port}/v1"


@pytest.fixture
def client(base_url):
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield client


def ask(trigger, **options):
    messages = [{"role": "user", "content": f"<|s_{trigger}|>"}]
    return {"model": "scripted", "messages": messages, "temperature": 0, "tools": [WEATHER], **options}


def check(message, content, reasoning, cities):
    assert (message.content or "") == content
    assert getattr(message, "reasoning_content", "") == reasoning
    calls = message.tool_calls or []
    assert [call.function.name for call in calls] == ["get_weather"] * len(cities)
    assert [json.loads(call.function.arguments) for call in calls] == [{"city": city} for city in cities]
    assert len({call.id for call in calls}) == len(cities)


@pytest.mark.parametrize(("trigger", "answer"), ANSWERS.items(), ids=ANSWERS)
def test_the_strict_accumulator_ends_with_what_is_sent_whole(client, trigger, answer):
    whole = client.chat.completions.create(**ask(trigger))
    with client.chat.completions.stream(**ask(trigger), stream_options={"include_usage": True}) as stream:
        events = [event.type for event in stream]
        streamed = stream.get_final_completion()
    for completion in (whole, streamed):
        (choice,) = completion.choices
        check(choice.message, *answer)
        assert choice.finish_reason == ("tool_calls" if answer[2] else "stop")
        assert completion.usage.completion_tokens_details.reasoning_tokens > 0 or not answer[1]
    assert streamed.usage.completion_tokens == whole.usage.completion_tokens
    assert events.count("tool_calls.function.arguments.done") == len(answer[2])
    assert ("content.done" in events) == bool(answer[0])


def test_a_reply_that_is_cut_within_a_call(client):
    whole = client.chat.completions.create(**ask("tool", max_tokens=4))
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].message.tool_calls[0].function.arguments == '{"city"'
    with client.chat.completions.stream(**ask("tool", max_tokens=4)) as stream:
        for _ in stream:
            pass
        with pytest.raises(openai.LengthFinishReasonError) as cut:
            stream.get_final_completion()
    (choice,) = cut.value.completion.choices
    assert (choice.finish_reason, choice.message.tool_calls[0].function.arguments) == ("length", '{"city"')


def test_a_reply_that_is_cut_while_reasoning(client):
    (choice,) = client.chat.completions.create(**ask("think", max_tokens=3)).choices
    assert (choice.finish_reason, choice.message.content) == ("length", "")
    assert choice.message.reasoning_content == "Let me reason"


THOUGHTS = {0: "", 1: "Let me", 2: "Let me reason", 3: "Let me reason briefly.", 99: "Let me reason briefly."}


@pytest.mark.parametrize(("n_tokens", "thought"), THOUGHTS.items())
@pytest.mark.parametrize("field", ["thinking_token_budget", "reasoning_budget", "reasoning"])
def test_thoughts_end_within_their_budget(client, field, n_tokens, thought):
    extra_body = {field: {"max_tokens": n_tokens} if field == "reasoning" else n_tokens}
    (choice,) = client.chat.completions.create(**ask("think", extra_body=extra_body, n=1)).choices
    assert (getattr(choice.message, "reasoning_content", ""), choice.message.content) == (thought, "The answer is 4.")
    with client.chat.completions.stream(**ask("think", extra_body=extra_body)) as stream:
        streamed = stream.get_final_completion().choices[0].message
    assert getattr(streamed, "reasoning_content", "") == thought


def test_thoughts_end_within_their_budget_where_the_answer_follows_a_grammar(client):
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}, "strict": True}}
    for n_tokens in (0, 1, 2):
        budget = {"thinking_token_budget": n_tokens}
        asked = ask("think", tools=openai.NOT_GIVEN, response_format=form, extra_body=budget)
        (choice,) = client.chat.completions.create(**asked).choices
        assert getattr(choice.message, "reasoning_content", "") == THOUGHTS[n_tokens]
        assert json.loads(choice.message.content) in ("yes", "no")


def test_thoughts_that_nobody_wants_to_read(client):
    for extra_body in ({"include_reasoning": False}, {"reasoning": {"exclude": True}}):
        (choice,) = client.chat.completions.create(**ask("think", extra_body=extra_body)).choices
        assert not hasattr(choice.message, "reasoning_content")
        assert choice.message.content == "The answer is 4."
        with client.chat.completions.stream(**ask("think", extra_body=extra_body)) as stream:
            assert "reason" not in stream.get_final_completion().choices[0].message.model_dump_json(exclude_none=True)


def test_several_choices_stream_side_by_side(client):
    with client.chat.completions.stream(**ask("calls", n=3)) as stream:
        for _ in stream:
            pass
        choices = stream.get_final_completion().choices
    assert [choice.index for choice in choices] == [0, 1, 2]
    for choice in choices:
        check(choice.message, *ANSWERS["calls"])


def test_one_call_at_a_time(client):
    (choice,) = client.chat.completions.create(**ask("calls", parallel_tool_calls=False)).choices
    check(choice.message, "Two calls.", "", ["Rome"])


def test_no_tools_no_calls(client):
    for options in ({"tool_choice": "none"}, {"tools": openai.NOT_GIVEN}):
        (choice,) = client.chat.completions.create(**ask("tool", **options)).choices
        assert choice.message.tool_calls is None
        assert choice.message.content.startswith("<tool_call>")
        assert choice.finish_reason == "stop"


def test_the_old_form_of_functions(client):
    options = ask("tool", tools=openai.NOT_GIVEN, functions=[WEATHER["function"]])
    (choice,) = client.chat.completions.create(**options).choices
    assert (choice.finish_reason, choice.message.content) == ("function_call", None)
    assert (choice.message.function_call.name, choice.message.function_call.arguments) == (
        "get_weather",
        '{"city": "Paris"}',
    )
    chunks = client.chat.completions.create(**options, stream=True)
    deltas = [chunk.choices[0].delta.function_call for chunk in chunks if chunk.choices[0].delta.function_call]
    assert deltas[0].name == "get_weather"
    assert "".join(delta.arguments for delta in deltas) == '{"city": "Paris"}'


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city} <|s_text|>"


@pytest.fixture
def langchain(base_url):
    return ChatOpenAI(base_url=base_url, api_key="none", model="scripted", temperature=0).bind_tools([get_weather])


def test_langchain_runs_a_tool_and_returns_its_answer(langchain):
    messages = [HumanMessage("<|s_calls|>")]
    answer = langchain.invoke(messages)
    assert [call["args"] for call in answer.tool_calls] == [{"city": "Rome"}, {"city": "Oslo"}]
    assert not answer.invalid_tool_calls
    messages.append(answer)
    for call in answer.tool_calls:
        result = get_weather.invoke(call)
        assert isinstance(result, ToolMessage)
        messages.append(result)
    assert langchain.invoke(messages).content == ANSWERS["text"][0]


def test_langchain_streams_calls(langchain):
    total = None
    for chunk in langchain.stream("<|s_all|>"):
        total = chunk if total is None else total + chunk
    assert total.content == "On it."
    assert [(call["name"], call["args"]) for call in total.tool_calls] == [("get_weather", {"city": "Bonn"})]
    assert total.response_metadata["finish_reason"] == "tool_calls"
