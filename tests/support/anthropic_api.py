"""Anthropic's Messages over a scripted engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace
from support.apps import make_app
from support.asgi_client import AsgiClient, Response
from support.fake_engine import INFO, FakeEngine

from llamafast.api.app import App

PATH = "/v1/messages"
MODEL = "org/fake-model"
TURNS = [{"role": "user", "content": "hi"}]
# Calls and results in the prompt as they were sent, tools in words before all.
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</s>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}</s>'
    "{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
TOOLS = [
    {
        "name": "get_weather",
        "description": "The weather of a city.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
    {"name": "now", "input_schema": {"type": "object", "properties": {}}},
]
WEATHER = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'


def called(name: str, given: Mapping[str, Any], id: str = "toolu_1") -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": name, "input": dict(given)}


def answered(content: Any, id: str = "toolu_1", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, "content": content, **more}


def hermes(template: str = TEMPLATE, **info: Any) -> FakeEngine:
    """An engine whose model writes calls and reasoning as Hermes does."""
    return FakeEngine(info=replace(INFO, **{"chat_template": template, "max_seq_len": 4096} | info))


def hermes_app(engine: FakeEngine, **options: Any) -> App:
    return make_app(engine, model={"dialect": "hermes"}, **{"max_body_bytes": 1 << 20} | options)


class Messages:
    """What a client asks, and what it is told."""

    def __init__(self, engine: FakeEngine | None = None, app: App | None = None, **options: Any) -> None:
        self.engine = engine or hermes()
        self.client = AsgiClient(app or hermes_app(self.engine, **options))

    async def post(self, messages: Any = TURNS, path: str = PATH, **fields: Any) -> Response:
        request = {"model": MODEL, "max_tokens": 100, "messages": messages, **fields}
        return await self.client.post(path, {name: value for name, value in request.items() if value is not None})

    async def message(self, messages: Any = TURNS, **fields: Any) -> dict[str, Any]:
        response = await self.post(messages, **fields)
        assert response.status == 200, response.body
        message: dict[str, Any] = response.json
        return message

    async def error(self, messages: Any = TURNS, **fields: Any) -> tuple[int, str, str]:
        response = await self.post(messages, **fields)
        body = response.json
        assert (body["type"], body["request_id"]) == ("error", response.headers["request-id"])
        assert body["error"].keys() == {"type", "message", "details"}
        return response.status, body["error"]["type"], body["error"]["message"]

    async def events(self, messages: Any = TURNS, **fields: Any) -> list[dict[str, Any]]:
        return events_of(await self.post(messages, stream=True, **fields))

    @property
    def prompt(self) -> str:
        """The newest request's."""
        return self.engine.tokenizer.detokenize(self.engine.generations[-1].plan.prompts[0])

    async def prompted(self, messages: Any = TURNS, **fields: Any) -> str:
        await self.message(messages, **fields)
        return self.prompt


def events_of(response: Response) -> list[dict[str, Any]]:
    """A stream's events, each of which goes by its type."""
    events = []
    for frame in response.frames:
        name, data = frame.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events
