"""The functions that a request lets the model call."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from msgspec import Struct

from llamafast.errors import InvalidRequest, UnsupportedParameter

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}", re.ASCII)
_TYPES = {"description": (str, "a string"), "parameters": (dict, "an object"), "strict": (bool, "a boolean")}
_NO_PARAMETERS = {"type": "object", "properties": {}}

Json = Mapping[str, Any]


class Tool(Struct, frozen=True):
    """A function: ``parameters`` is the JSON schema of its arguments, ``definition`` what a chat template reads.

    With ``strict`` arguments follow the schema also in calls that nobody forces. ``grammar``, written in ``syntax``, is
    what the one parameter of a function of free text follows. ``path`` is where the request has the function, and
    ``schema_name`` what it calls the schema.
    """

    name: str
    parameters: dict[str, Any]
    strict: bool
    definition: dict[str, Any]
    grammar: str | None = None
    syntax: Literal["lark", "regex"] = "lark"
    path: str = "tools"
    schema_name: str = "parameters"

    @property
    def constrained(self) -> bool:
        """Whether its calls are constrained also where nobody forces them."""
        return self.strict or self.grammar is not None

    @property
    def followed(self) -> str:
        """The path of what its calls follow."""
        return f"{self.path}.{self.schema_name if self.grammar is None else 'format.definition'}"


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


# From an object that names a tool and its path in the request to the Tool; None where it is of a kind that the model is
# not shown. Raises InvalidRequest, with the path, where it names none.
Find: TypeAlias = Callable[[Json, str], Tool | None]


def choose_tools(tools: Sequence[Tool], choice: Any, find: Find, param: str = "tool_choice") -> ToolChoice:
    """What ``choice`` makes of ``tools``: a mode, one tool, or ``allowed_tools``, whose list and mode may stand in an
    object of that name (chat completions) or beside their type (Responses). Of its list only what the model is shown
    counts.

    Raises InvalidRequest where the choice has another form or leaves nothing to call, UnsupportedParameter where it
    forces a tool that the model is not shown.
    """
    shown = tuple(tools)
    if choice is None or choice in ("none", "auto", "required"):
        if choice == "required" and not shown:
            raise nothing_to_call(param)
        allowed = () if choice == "none" else shown
        return ToolChoice(allowed, allowed, choice == "required")
    if not isinstance(choice, dict):
        raise InvalidRequest(f"`{param}` must be none, auto, required, one tool or allowed_tools", param=param)
    if choice.get("type") == "allowed_tools":
        nested = "allowed_tools" in choice
        allowed, forced = _allowed(choice["allowed_tools"] if nested else choice, find, param, nested=nested)
        return ToolChoice(shown, allowed, forced)
    tool = find(choice, param)
    if tool is None:
        kind = str(choice.get("type"))[:64]
        raise UnsupportedParameter(f"`{param}`: a tool of type {kind!r} does not run here", param=param)
    return ToolChoice(shown, (tool,), True)


def _allowed(options: Any, find: Find, param: str, *, nested: bool) -> tuple[tuple[Tool, ...], bool]:
    """The tools that ``allowed_tools`` leaves, each once, and whether one of them has to be called."""
    path = f"{param}.allowed_tools" if nested else param
    listed = options.get("tools") if isinstance(options, dict) else None
    if not isinstance(listed, list) or not all(isinstance(named, dict) for named in listed):
        raise InvalidRequest(f"`{path}.tools` must be a list of objects", param=f"{path}.tools")
    found = [find(named, f"{path}.tools[{i}]") for i, named in enumerate(listed)]
    allowed = {tool.name: tool for tool in found if tool is not None}
    if not allowed:
        raise nothing_to_call(param)
    mode = options.get("mode", "auto")
    if mode not in ("auto", "required"):
        raise InvalidRequest(f"`{path}.mode` must be auto or required", param=f"{path}.mode")
    return tuple(allowed.values()), mode == "required"


def nothing_to_call(param: str) -> InvalidRequest:
    """What is wrong with a choice at ``param`` that leaves no tool."""
    return InvalidRequest(f"`{param}` asks for calls, and no tool here can be called", param=param)


def not_among_tools(name: str, path: str) -> InvalidRequest:
    """What is wrong with a choice at ``path`` that names ``name``."""
    return InvalidRequest(f"`{path}` names {name[:64]!r}, which is not among the tools", param=path)


def function_named(tools: Sequence[Tool]) -> Callable[[Json, str], Tool]:
    """The ``Find`` of chat completions, which name a tool as ``{"type": "function", "function": {"name": …}}``, or
    without the inner object, as the old form and Responses do."""
    by_name = {tool.name: tool for tool in tools}

    def find(named: Json, path: str) -> Tool:
        if named.get("type", "function") != "function":
            raise InvalidRequest(f"`{path}` must be of type function", param=path)
        inner = named.get("function", named)
        name = inner.get("name") if isinstance(inner, dict) else None
        if not isinstance(name, str):
            raise InvalidRequest(f"`{path}` must name a function", param=path)
        if name not in by_name:
            raise not_among_tools(name, path)
        return by_name[name]

    return find


def read_function(function: Any, path: str) -> Tool:
    """A function's name, description, parameters and strictness. Raises InvalidRequest."""
    if not isinstance(function, dict):
        raise InvalidRequest(f"`{path}` must be an object", param=path)
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"`{path}.name` must be 1 to 128 letters, digits, underscores, dots or dashes", param=f"{path}.name"
        )
    for key, (kind, told) in _TYPES.items():
        if not isinstance(function.get(key), kind | None):
            raise InvalidRequest(f"`{path}.{key}` must be {told}", param=f"{path}.{key}")
    # templates list the properties without asking whether there are any
    parameters = function.get("parameters") or _NO_PARAMETERS
    given = {key: value for key, value in function.items() if value is not None}
    definition = {"type": "function", "function": {**given, "parameters": parameters}}
    return Tool(name, parameters, bool(function.get("strict")), definition, path=path)


def _distinct(tools: list[Tool], param: str) -> tuple[Tool, ...]:
    if len({tool.name for tool in tools}) < len(tools):
        raise InvalidRequest(f"two entries of `{param}` have the same name", param=param)
    return tuple(tools)
