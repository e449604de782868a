"""One reading of ``tool_choice``, whatever the names of tools look like at an endpoint."""

from __future__ import annotations

from typing import Any

import pytest

from llamafast.chat.tools import Tool, ToolChoice, choose_tools, function_named, read_functions
from llamafast.errors import InvalidRequest, UnsupportedParameter

F, G = TOOLS = read_functions([{"name": "f"}, {"name": "g"}])
NAMED: Any = {"type": "function", "function": {"name": "g"}}


def choose(choice: Any, tools: tuple[Tool, ...] = TOOLS) -> ToolChoice:
    return choose_tools(tools, choice, function_named(tools))


def hosted_or_named(named: Any, path: str) -> Tool | None:
    return None if named["type"] == "hosted" else function_named(TOOLS)(named, path)


def test_modes() -> None:
    assert choose(None) == choose("auto") == ToolChoice(TOOLS, TOOLS, False)
    assert choose("required") == ToolChoice(TOOLS, TOOLS, True)
    assert choose("none") == ToolChoice((), (), False)
    assert choose(None, ()) == choose("auto", ()) == ToolChoice((), (), False)


@pytest.mark.parametrize("named", [NAMED, {"type": "function", "name": "g"}, {"name": "g"}])
def test_one_tool_is_forced(named: Any) -> None:
    assert choose(named) == ToolChoice(TOOLS, (G,), True)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("mode", [{}, {"mode": "auto"}, {"mode": "required"}])
def test_allowed_tools_are_shown_among_all_and_called_alone(mode: dict[str, str], nested: bool) -> None:
    listed = {"tools": [NAMED, {"name": "g"}], **mode}
    choice = {"type": "allowed_tools", **({"allowed_tools": listed} if nested else listed)}
    assert choose(choice) == ToolChoice(TOOLS, (G,), mode.get("mode") == "required")


def test_a_tool_of_a_kind_that_is_not_shown_can_be_allowed_beside_others_and_not_forced() -> None:
    hosted = {"type": "hosted"}
    choice: Any = {"type": "allowed_tools", "mode": "required", "tools": [hosted, NAMED]}
    assert choose_tools(TOOLS, choice, hosted_or_named) == ToolChoice(TOOLS, (G,), True)
    with pytest.raises(InvalidRequest, match="no tool here can be called"):
        choose_tools(TOOLS, {**choice, "tools": [hosted]}, hosted_or_named)
    with pytest.raises(UnsupportedParameter, match="'hosted' does not run here"):
        choose_tools(TOOLS, hosted, hosted_or_named)


@pytest.mark.parametrize(
    ("choice", "param"),
    [
        ("sometimes", "c"),
        ([NAMED], "c"),
        ({}, "c"),
        ({"type": "custom", "custom": {"name": "g"}}, "c"),
        ({"name": "h"}, "c"),
        ({"type": "allowed_tools"}, "c.tools"),
        ({"type": "allowed_tools", "tools": ["g"]}, "c.tools"),
        ({"type": "allowed_tools", "tools": []}, "c"),
        ({"type": "allowed_tools", "tools": [NAMED], "mode": "none"}, "c.mode"),
        ({"type": "allowed_tools", "tools": [NAMED, {"name": "h"}]}, "c.tools[1]"),
        ({"type": "allowed_tools", "allowed_tools": [NAMED]}, "c.allowed_tools.tools"),
        ({"type": "allowed_tools", "allowed_tools": {"tools": [{"type": "x"}]}}, "c.allowed_tools.tools[0]"),
    ],
)
def test_what_is_wrong_is_named(choice: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose_tools(TOOLS, choice, function_named(TOOLS), "c")
    assert caught.value.param == param


def test_no_tool_can_be_required_where_there_are_none() -> None:
    with pytest.raises(InvalidRequest, match="no tool here can be called"):
        choose("required", ())
