"""The functions that a request lets the model call."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from llamafast.errors import InvalidRequest, UnsupportedParameter

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}", re.ASCII)
_NO_PARAMETERS = {"type": "object", "properties": {}}


class Tool(Struct, frozen=True):
    """A function: ``parameters`` is the JSON schema of its arguments, ``definition`` what a chat template reads.

    With ``strict`` arguments follow the schema also in calls that nobody forces. ``grammar``, written in ``syntax``, is
    what the one parameter of a function of free text follows. ``path`` is where the request has the function.
    """

    name: str
    parameters: dict[str, Any]
    strict: bool
    definition: dict[str, Any]
    grammar: str | None = None
    syntax: Literal["lark", "regex"] = "lark"
    path: str = "tools"

    @property
    def constrained(self) -> bool:
        """Whether its calls are constrained also where nobody forces them."""
        return self.strict or self.grammar is not None

    @property
    def followed(self) -> str:
        """The path of what its calls follow."""
        return f"{self.path}.{'parameters' if self.grammar is None else 'format.definition'}"


def read_tools(tools: Sequence[Any] | None, param: str = "tools") -> tuple[Tool, ...]:
    """``tools`` of a request, in OpenAI's shape. Raises InvalidRequest with the path,
    UnsupportedParameter for kinds other than ``function``."""
    read = []
    for i, tool in enumerate(tools or ()):
        path = f"{param}[{i}]"
        if not isinstance(tool, dict) or not isinstance(kind := tool.get("type"), str):
            raise InvalidRequest(f"`{path}` must be an object with a string `type`", param=path)
        if kind != "function":
            raise UnsupportedParameter(f"`{path}`: tools of type {kind[:64]!r} are not supported", param=f"{path}.type")
        read.append(read_function(tool.get("function"), f"{path}.function"))
    return _distinct(read, param)


def read_functions(functions: Sequence[Any] | None) -> tuple[Tool, ...]:
    """``functions`` of a request: the form that ``tools`` replaced. Raises InvalidRequest."""
    read = [read_function(function, f"functions[{i}]") for i, function in enumerate(functions or ())]
    return _distinct(read, "functions")


class ToolChoice(NamedTuple):
    """``shown`` are the tools that the template lists, ``callable`` those that the model may call; with ``forced`` it
    has to call one of them."""

    shown: tuple[Tool, ...]
    callable: tuple[Tool, ...]
    forced: bool


def choose_tools(tools: tuple[Tool, ...], choice: Any, param: str = "tool_choice") -> ToolChoice:
    """What ``choice`` makes of ``tools``, in OpenAI's forms: a mode, one function, or ``allowed_tools``.

    Raises InvalidRequest where it names no tool or an unknown one, or has another form.
    """
    if choice is None or choice in ("none", "auto", "required"):
        if choice == "required" and not tools:
            raise InvalidRequest(f"`{param}` is only possible with tools", param=param)
        allowed = () if choice == "none" else tools
        return ToolChoice(allowed, allowed, choice == "required")
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools":
            inner = choice.get("allowed_tools", choice)
            names = [_chosen_name(tool) for tool in _list(inner, "tools")]
            mode = inner.get("mode", "auto") if isinstance(inner, dict) else None
            if names and mode in ("auto", "required"):
                by_name = {tool.name: tool for tool in tools}
                chosen = tuple(_named(by_name, name, param) for name in dict.fromkeys(names))
                return ToolChoice(tools, chosen, mode == "required")
        elif choice.get("type", "function") == "function":
            by_name = {tool.name: tool for tool in tools}
            return ToolChoice(tools, (_named(by_name, _chosen_name(choice), param),), True)
    raise InvalidRequest(
        f"`{param}` must be none, auto, required, one function or allowed_tools of type function", param=param
    )


def _chosen_name(choice: Any) -> str | None:
    """The name in ``{"function": {"name": …}}`` or, in the old form and Responses', ``{"name": …}``."""
    if isinstance(choice, dict):
        inner = choice.get("function", choice)
        name = inner.get("name") if isinstance(inner, dict) else None
        return name if isinstance(name, str) else None
    return None


def _list(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def _named(tools: Mapping[str, Tool], name: str | None, param: str) -> Tool:
    if name is not None and name in tools:
        return tools[name]
    raise InvalidRequest(f"`{param}` names {(name or '')[:64]!r}, which is none of the tools", param=param)


def read_function(function: Any, path: str) -> Tool:
    """A function's name, description, parameters and strictness. Raises InvalidRequest."""
    if not isinstance(function, dict):
        raise InvalidRequest(f"`{path}` must be an object", param=path)
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"`{path}.name` must be 1 to 128 letters, digits, underscores, dots or dashes", param=f"{path}.name"
        )
    for key, kind in (("description", str), ("parameters", dict), ("strict", bool)):
        if not isinstance(function.get(key), kind | None):
            raise InvalidRequest(f"`{path}.{key}` must be of type {kind.__name__}", param=f"{path}.{key}")
    # templates list the properties without asking whether there are any
    parameters = function.get("parameters") or _NO_PARAMETERS
    given = {key: value for key, value in function.items() if value is not None}
    definition = {"type": "function", "function": {**given, "parameters": parameters}}
    return Tool(name, parameters, bool(function.get("strict")), definition, path=path)


def _distinct(tools: list[Tool], param: str) -> tuple[Tool, ...]:
    if len({tool.name for tool in tools}) < len(tools):
        raise InvalidRequest(f"two entries of `{param}` have the same name", param=param)
    return tuple(tools)
