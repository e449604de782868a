"""Anthropic's tools: which the model is shown, which it may call, which it has to."""

from __future__ import annotations

from typing import Any

import pytest
from support.anthropic_api import NOW, TOOLS, WEATHER, Messages, answered, called

from llamafast.api.messages.tools import ToolTable
from llamafast.engine.types import Event
from llamafast.errors import InvalidRequest

WEB = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
BASH = {"type": "bash_20250124", "name": "bash"}


@pytest.fixture
def api() -> Messages:
    return Messages()


def names(tools: Any) -> list[str]:
    return [tool.name for tool in tools]


async def test_a_tool_as_the_template_has_it(api: Messages) -> None:
    more = {"strict": True, "cache_control": {"type": "ephemeral"}, "type": "custom", "input_examples": []}
    prompt = await api.prompted(tools=[{**TOOLS[0], **more}])
    assert prompt.startswith(
        '<tools>[{"type": "function", "function": {"name": "get_weather", "description": "The weather of a city.", '
        '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}, '
        '"strict": true}}]</s>'
    )


@pytest.mark.parametrize(
    ("tool", "path"),
    [
        ({"name": "f"}, "tools[0].input_schema"),
        ({"input_schema": {}}, "tools[0].name"),
        ({"name": "a b", "input_schema": {}}, "tools[0].name"),
        ({"name": "f", "input_schema": {}, "description": 7}, "tools[0].description"),
        ({"name": "f", "input_schema": {}, "type": 7}, "tools[0].type"),
        ({"name": "f", "input_schema": {}, "type": "function"}, "tools[0].type"),
        ({"name": "f", "input_schema": {}, "type": "costum"}, "tools[0].type"),
        ({"name": "bash", "type": "bash"}, "tools[0].type"),
        ({"name": "f", "input_schema": {}, "defer_loading": "yes"}, "tools[0].defer_loading"),
        ({"name": "f", "input_schema": {}, "strict": "yes"}, "tools[0].strict"),
    ],
)
def test_a_tool_that_is_none(tool: Any, path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ToolTable([tool])
    assert caught.value.param == path


def test_one_name_twice() -> None:
    with pytest.raises(InvalidRequest, match="two tools named 'now'"):
        ToolTable([*TOOLS, TOOLS[1]])


def test_choices() -> None:
    table = ToolTable(TOOLS)
    for choice in (None, {"type": "auto"}):
        shown, callable_, forced = table.choose(choice)
        assert (names(shown), names(callable_), forced) == (["get_weather", "now"], ["get_weather", "now"], False)
    assert table.choose({"type": "any"}).forced
    shown, callable_, forced = table.choose({"type": "tool", "name": "now"})
    assert (names(shown), names(callable_), forced) == (["get_weather", "now"], ["now"], True)
    assert table.choose({"type": "none"}) == ((), (), False)


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ({"type": "tool", "name": "other"}, "not among the tools"),
        ({"type": "tool", "name": "web_search"}, "does not run here"),
        ({"type": "tool"}, "`tool_choice.name`"),
        ({"type": "required"}, "`tool_choice.type`"),
        ({}, "`tool_choice.type`"),
        ({"type": "auto", "disable_parallel_tool_use": 1}, "disable_parallel_tool_use"),
    ],
)
async def test_bad_choices(api: Messages, choice: Any, told: str) -> None:
    status, _, message = await api.error(tools=[*TOOLS, WEB], tool_choice=choice)
    assert (status, told in message) == (400, True)


async def test_a_call_is_forced_and_its_choice_kept(api: Messages) -> None:
    """llama-server lets any tool be called, and calls none or several where one is asked for."""
    await api.message(tools=TOOLS, tool_choice={"type": "tool", "name": "now"})
    assert api.engine.plan.matcher is not None
    status, _, message = await api.error(tool_choice={"type": "any"})
    assert (status, "no tool here" in message) == (400, True)
    prompt = await api.prompted(tools=TOOLS, tool_choice={"type": "none"})
    assert "get_weather" not in prompt
    assert api.engine.generations[-1].plan.matcher is None


async def test_without_parallel_calls_the_first_is_the_last(api: Messages) -> None:
    api.engine.script = lambda plan: _said(WEATHER, NOW)
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    assert [block["name"] for block in (await api.message(tools=TOOLS))["content"]] == ["get_weather", "now"]
    message = await api.message(tools=TOOLS, tool_choice=choice)
    assert [block["name"] for block in message["content"]] == ["get_weather"]
    assert message["stop_reason"] == "tool_use"


async def test_what_runs_elsewhere_is_not_shown_and_said_to_be_ignored(api: Messages) -> None:
    response = await api.post(tools=[*TOOLS, WEB, {"type": "mcp_toolset", "mcp_server_name": "x"}])
    assert response.headers["x-llamafast-ignored"] == "tools.mcp_toolset, tools.web_search_20250305"
    assert "web_search" not in api.prompt
    assert "x-llamafast-ignored" not in (await api.post(tools=TOOLS)).headers


async def test_what_anthropic_has_defined_and_clients_run(api: Messages) -> None:
    tools = [
        BASH,
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool", "max_characters": 9},
        {"type": "text_editor_20250124", "name": "str_replace_editor"},
        {"type": "memory_20250818", "name": "memory"},
    ]
    prompt = await api.prompted(tools=tools)
    for words in ("restart", "insert_text", "undo_edit", "old_path"):
        assert words in prompt
    call = '<tool_call>\n{"name": "bash", "arguments": {"command": "ls"}}\n</tool_call>'
    api.engine.script = lambda plan: _said(call)
    (block,) = (await api.message(tools=tools))["content"]
    assert (block["name"], block["input"]) == ("bash", {"command": "ls"})


async def test_what_is_loaded_later_stays_out_of_the_head_and_may_be_called(api: Messages) -> None:
    search = {"name": "ToolSearch", "input_schema": {"type": "object", "properties": {}}}
    later = {**TOOLS[0], "defer_loading": True}
    head = await api.prompted(tools=[search])
    tools = [search, later]
    assert await api.prompted(tools=tools) == head
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": [called("ToolSearch", {})]},
        {"role": "user", "content": [answered([{"type": "tool_reference", "tool_name": "get_weather"}])]},
    ]
    prompt = await api.prompted(turns, tools=tools)
    assert prompt.startswith(head.removesuffix("<assistant>"))
    assert '<tool>\n{"type": "function", "function": {"name": "get_weather"' in prompt
    api.engine.script = lambda plan: _said(WEATHER)
    assert (await api.message(turns, tools=tools))["content"][0]["name"] == "get_weather"
    # as a block of a system turn, and of one that is gone
    added = {"type": "tool_addition", "tool": {"type": "tool_reference", "name": "get_weather"}}
    turns = [{"role": "user", "content": "hi"}, {"role": "system", "content": [added]}]
    assert "<system-reminder>\n<tool>\n{" in await api.prompted(turns, tools=tools)
    assert "[there is no tool named get_weather any more]" in await api.prompted(turns, tools=[search])


async def test_a_schema_that_cannot_be_followed_is_named_as_it_was_sent(api: Messages) -> None:
    tool = {"name": "f", "strict": True, "input_schema": {"type": "object", "properties": {"a": {"type": "x"}}}}
    status, _, message = await api.error(tools=[tool], tool_choice={"type": "any"})
    assert (status, "tools[0].input_schema" in message) == (400, True)


def _said(*texts: str) -> Any:
    return [*([Event(0, text, 1)] for text in texts), [Event(0, "", 1, "stop")]]
