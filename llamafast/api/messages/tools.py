"""Anthropic's tools as functions: which the model is shown, which it may call, which it has to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from llamafast.api.messages.client_tools import client_tool
from llamafast.chat.json_text import json_text
from llamafast.chat.tools import Tool, ToolChoice, not_among_tools, nothing_to_call, read_function
from llamafast.errors import InvalidRequest, UnsupportedParameter

Json = Mapping[str, Any]

# How the types of tools begin that run at Anthropic, or for which no definition is known here.
_ELSEWHERE = (
    "web_search", "web_fetch", "code_execution", "computer", "browser", "advisor", "tool_search_tool", "mcp_toolset",
)  # fmt: skip
_CHOICES = ("auto", "any", "tool", "none")


class ToolTable:
    """The tools of a request by their names.

    Those of kinds that run at Anthropic are ``hidden`` from the model. What is to be loaded later (``defer_loading``)
    is not in the prompt's head, which therefore stays what it was, but may be called; it is told where the conversation
    refers to it.
    """

    def __init__(self, tools: Sequence[Json] | None) -> None:
        """Raises InvalidRequest with the path of a tool that is none, or has another one's name."""
        self.hidden: set[str] = set()
        self._hidden_names: dict[str, str] = {}
        self._tools: dict[str, Tool] = {}
        self._deferred: set[str] = set()
        for i, tool in enumerate(tools or ()):
            self._add(tool, f"tools[{i}]")

    def _add(self, tool: Json, path: str) -> None:
        kind = tool.get("type")
        if not isinstance(kind, str | None):
            raise InvalidRequest(f"`{path}.type` must be a string", param=f"{path}.type")
        if kind in (None, "custom"):
            read = _custom(tool, path)
        elif (known := client_tool(kind)) is not None:
            definition = {"name": tool.get("name"), "description": known.description, "parameters": known.parameters}
            read = read_function(definition, path)
        elif not kind.startswith(_ELSEWHERE):
            told = f"`{path}.type`: no tool has the type {kind[:64]!r}; functions have none, or `custom`"
            raise InvalidRequest(told, param=f"{path}.type")
        else:
            self.hidden.add(kind[:64])
            self._hidden_names[str(tool.get("name"))] = kind[:64]
            return
        if read.name in self._tools:
            raise InvalidRequest(f"`{path}`: there are two tools named {read.name[:64]!r}", param=f"{path}.name")
        self._tools[read.name] = read
        deferred = tool.get("defer_loading")
        if not isinstance(deferred, bool | None):
            raise InvalidRequest(f"`{path}.defer_loading` must be true or false", param=f"{path}.defer_loading")
        if deferred:
            self._deferred.add(read.name)

    def told(self, name: str) -> str:
        """What a prompt says of a tool where the conversation refers to it."""
        if (tool := self._tools.get(name)) is None:
            return f"[there is no tool named {name} any more]"
        return f"<tool>\n{json_text(tool.definition)}\n</tool>"

    def choose(self, choice: Json | None) -> ToolChoice:
        """What ``tool_choice`` makes of them. Raises InvalidRequest where it has another form or leaves nothing to
        call, UnsupportedParameter where it forces a tool that does not run here."""
        shown = tuple(tool for name, tool in self._tools.items() if name not in self._deferred)
        every = tuple(self._tools.values())
        mode = "auto" if choice is None else choice.get("type")
        if mode == "auto":
            return ToolChoice(shown, every, False)
        if mode == "none":
            return ToolChoice((), (), False)
        if mode == "any":
            if not every:
                raise nothing_to_call("tool_choice")
            return ToolChoice(shown, every, True)
        if mode != "tool" or choice is None:
            kinds = ", ".join(_CHOICES)
            raise InvalidRequest(f"`tool_choice.type` must be one of {kinds}", param="tool_choice.type")
        return ToolChoice(shown, (self._named(choice.get("name")),), True)

    def _named(self, name: object) -> Tool:
        path = "tool_choice.name"
        if not isinstance(name, str):
            raise InvalidRequest(f"`{path}` must be a string", param=path)
        if (kind := self._hidden_names.get(name)) is not None:
            raise UnsupportedParameter(f"`{path}`: a tool of type {kind!r} does not run here", param=path)
        if name not in self._tools:
            raise not_among_tools(name, path)
        return self._tools[name]


def parallel_of(choice: Json | None) -> bool | None:
    """``disable_parallel_tool_use`` of a choice as chat completions have it. Raises InvalidRequest."""
    disabled = None if choice is None else choice.get("disable_parallel_tool_use")
    if not isinstance(disabled, bool | None):
        path = "tool_choice.disable_parallel_tool_use"
        raise InvalidRequest(f"`{path}` must be true or false", param=path)
    return False if disabled else None


def _custom(tool: Json, path: str) -> Tool:
    schema = tool.get("input_schema")
    if not isinstance(schema, dict):
        raise InvalidRequest(f"`{path}.input_schema` must be an object, a JSON schema", param=f"{path}.input_schema")
    definition = {"name": tool.get("name"), "description": tool.get("description"), "parameters": schema}
    strict = {"strict": tool["strict"]} if tool.get("strict") is not None else {}
    return replace(read_function({**definition, **strict}, path), schema_name="input_schema")
