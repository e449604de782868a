"""The anthropic package, whichever generation is found, against a server: one line of JSON for each check.

usage: python anthropic_client.py BASE_URL
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, Literal

import anthropic
from anthropic import beta_tool
from pydantic import BaseModel

URL = sys.argv[1]
MODEL = "scripted"
WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def tell(check: str, **told: Any) -> None:
    print(json.dumps({"check": check, **told}))


def ask(trigger: str, **fields: Any) -> dict[str, Any]:
    # of the sampling fields later generations know none
    greedy = {"temperature": 0, **fields.pop("extra_body", {})}
    messages = [{"role": "user", "content": f"<|s_{trigger}|>"}]
    return {"model": MODEL, "max_tokens": 200, "messages": messages, "extra_body": greedy, **fields}


def said(message: Any) -> dict[str, Any]:
    usage = message.usage
    blocks = [block.model_dump(exclude={"id", "citations", "caller", "toolset_name"}) for block in message.content]
    return {
        "blocks": [{name: value for name, value in block.items() if value is not None} for block in blocks],
        "stop_reason": message.stop_reason,
        "stop_sequence": message.stop_sequence,
        "input": usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens,
        "output": usage.output_tokens,
    }


@beta_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city} <|s_text|>"


class Place(BaseModel):
    city: Literal["Rome", "Oslo"]


def run(client: anthropic.Anthropic) -> None:
    for trigger in ("text", "think", "tool", "calls", "all"):
        asked = ask(trigger, tools=[WEATHER])
        whole = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            kinds = [event.type for event in stream]
            streamed = stream.get_final_message()
        tell(trigger, whole=said(whole), streamed=said(streamed), kinds=kinds)
    counted = client.messages.count_tokens(model=MODEL, messages=ask("all")["messages"], tools=[WEATHER])
    tell("count", n=counted.input_tokens)
    choice: Any = {"type": "tool", "name": "get_weather"}
    tell("forced", **said(client.messages.create(**ask("tool", tools=[WEATHER], tool_choice=choice))))
    none: Any = {"type": "none"}
    tell("none", **said(client.messages.create(**ask("tool", tools=[WEATHER], tool_choice=none))))
    one: Any = {"type": "auto", "disable_parallel_tool_use": True}
    tell("one", **said(client.messages.create(**ask("calls", tools=[WEATHER], tool_choice=one))))
    tell("stopped", **said(client.messages.create(**ask("text", stop_sequences=["reply"]))))
    tell("short", **said(client.messages.create(**ask("text", max_tokens=2))))
    for stream in (False, True):
        runner = client.beta.messages.tool_runner(
            model=MODEL, max_tokens=200, tools=[get_weather], messages=ask("calls")["messages"],
            extra_body={"temperature": 0}, **({"stream": True} if stream else {}),
        )  # fmt: skip
        turns = [turn.get_final_message() if stream else turn for turn in runner]
        tell(f"runner {stream}", turns=[said(turn) for turn in turns])
    parsed = client.messages.parse(**ask("text", output_format=Place))
    tell("parse", city=isinstance(parsed.parsed_output, Place), text=parsed.content[-1].text)
    tell("models", ids=[model.id for model in client.models.list()], one=client.models.retrieve(MODEL).id)
    for name, asked in (
        ("unknown model", ask("text", extra_body={"model": "claude"})),
        ("too long", ask("text") | {"messages": [{"role": "user", "content": "x " * 9000}]}),
        ("thread", ask("text", extra_body={"thread": {"type": "create"}})),
    ):
        try:
            client.messages.create(**asked)
        except anthropic.APIStatusError as error:
            body: Any = error.body
            tell(name, kind=type(error).__name__, type=body["error"]["type"], message=body["error"]["message"],
                 id=error.request_id, details=body["error"]["details"])  # fmt: skip


async def run_async(client: anthropic.AsyncAnthropic) -> None:
    tell("async", **said(await client.messages.create(**ask("text"))))
    async with client.messages.stream(**ask("think")) as stream:
        texts = [text async for text in stream.text_stream]
        tell("async stream", texts=texts, **said(await stream.get_final_message()))
    async with client.messages.stream(**ask("text") | {"max_tokens": 3000}) as stream:
        async for _ in stream:
            break  # and away
    tell("left", **said(await client.messages.create(**ask("text"))))


with anthropic.Anthropic(base_url=URL, api_key="none", max_retries=0) as client:
    tell("generation", version=anthropic.__version__)
    run(client)
asyncio.run(run_async(anthropic.AsyncAnthropic(base_url=URL, auth_token="none", max_retries=0)))
