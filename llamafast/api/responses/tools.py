"""The tools of the Responses API → functions as chat templates know them, and back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from llamafast.api.responses.client_tools import CLIENT_TOOLS, runs_at_client
from llamafast.api.responses.custom_input import INPUT
from llamafast.chat.tools import Json, Tool, ToolChoice, choose_tools, not_among_tools, read_function
from llamafast.errors import InvalidRequest

# joins namespace and name: templates, grammars and clients of chat completions take no dot in a function's name
_SEPARATOR = "__"

ValueT = TypeVar("ValueT")


class ToolName(NamedTuple):
    """Who is called. ``kind`` is function, custom (which takes free text) or one of ``CLIENT_TOOLS``."""

    name: str
    namespace: str | None = None
    kind: str = "function"


def chat_name(name: str, namespace: str | None) -> str:
    """The one name a tool has in the prompt."""
    return f"{namespace}{_SEPARATOR}{name}" if namespace else name


class ToolTable:
    """The tools a model is shown as ``functions``. Those of the kinds in ``hidden`` run at OpenAI and are not shown."""

    def __init__(self, tools: Sequence[Json], items: Sequence[Json] = (), n_before: int = 0) -> None:
        """``tools`` are the request's; ``additional_tools`` among the ``items`` of its conversation bring more, the
        later one in place of an earlier one of the same name. The first ``n_before`` items come from earlier responses:
        paths of errors count from after them.

        Raises InvalidRequest for a tool without type or name, and for two of one name in one list.
        """
        self._names: dict[str, ToolName] = {}
        self._by_name: dict[str, Tool] = {}
        self.hidden: set[str] = set()
        self._add(tools, "tools")
        for i, item in enumerate(items):
            if item.get("type") == "additional_tools":
                path = f"input[{i - n_before}]"
                self._add(_objects(item, "tools", path), f"{path}.tools")
        self.functions: list[Tool] = list(self._by_name.values())

    def _add(self, tools: Sequence[Json], path: str) -> None:
        """Take in the tools of one list, which ``path`` is the place of."""
        names: dict[str, ToolName] = {}
        functions: dict[str, Tool] = {}
        for tool, namespace, where in _flattened(tools, path):
            name = tool["type"] if tool["type"] in CLIENT_TOOLS else _text(tool, "name", where)
            shown = chat_name(name, namespace)
            if shown in functions:
                raise InvalidRequest(f"`{where}`: there are two tools named {shown[:64]!r}", param=f"{where}.name")
            names[shown] = ToolName(name, namespace, tool["type"])
            functions[shown] = _function(tool, shown, where)
        self.hidden |= {str(tool["type"])[:64] for tool in tools if not _is_shown(tool)} - {"namespace"}
        self._names |= names
        self._by_name |= functions

    def tool_name(self, shown: str) -> ToolName:
        """Who it is that the model called; a name that it made up is a function's."""
        return self._names.get(shown) or ToolName(shown)

    def choose(self, choice: str | Json | None) -> ToolChoice:
        """What ``tool_choice`` makes of the tools.

        Raises InvalidRequest when it names no tool, UnsupportedParameter when it forces one that does not run here.
        """
        return choose_tools(self.functions, choice, self._chosen)

    def _chosen(self, named: Json, path: str) -> Tool | None:
        """The tool that an object at ``path`` names; None where it is of a kind that is not shown."""
        if not _is_shown(named):
            return None
        kind, namespace = named["type"], named.get("namespace")
        name = kind if kind in CLIENT_TOOLS else _text(named, "name", path)
        shown = chat_name(name, namespace if isinstance(namespace, str) else None)
        if shown not in self._names or (kind in CLIENT_TOOLS and self._names[shown].kind != kind):
            raise not_among_tools(shown, path)
        return self._by_name[shown]


def _is_shown(tool: Json) -> bool:
    return tool.get("type") in ("function", "custom") or runs_at_client(tool)


def _flattened(tools: Sequence[Json], path: str) -> Iterator[tuple[Json, str | None, str]]:
    """What the model is shown, each with its namespace and its path in the request."""
    for i, tool in enumerate(tools):
        where = f"{path}[{i}]"
        kind = _text(tool, "type", where)
        if _is_shown(tool):
            yield tool, None, where
        elif kind == "namespace":
            namespace = _text(tool, "name", where)
            for j, member in enumerate(_objects(tool, "tools", where)):
                inside = f"{where}.tools[{j}]"
                if _text(member, "type", inside) not in ("function", "custom"):
                    raise InvalidRequest(f"`{inside}.type` must be function or custom", param=f"{inside}.type")
                yield member, namespace, inside


def _function(tool: Json, shown: str, path: str) -> Tool:
    if tool["type"] in CLIENT_TOOLS:
        _, description, parameters = CLIENT_TOOLS[tool["type"]]
        return read_function({"name": shown, "description": description, "parameters": parameters}, path)
    if tool["type"] != "custom":
        known = {key: tool[key] for key in ("description", "parameters", "strict") if tool.get(key) is not None}
        return read_function({"name": shown, **known}, path)
    syntax, grammar = _input_format(tool, path)
    explanation = f"The input follows this {syntax} grammar:\n{grammar}" if grammar is not None else ""
    definition = {
        "name": shown,
        "description": "\n\n".join(filter(None, [_optional(tool, "description", str, path), explanation])),
        "parameters": {
            "type": "object",
            "properties": {INPUT: {"type": "string", "description": "The tool's whole input, as plain text."}},
            "required": [INPUT],
            "additionalProperties": False,
        },
    }
    return msgspec.structs.replace(read_function(definition, path), grammar=grammar, syntax=syntax)


def _input_format(tool: Json, path: str) -> tuple[Literal["lark", "regex"], str | None]:
    """The syntax and the grammar of a custom tool's input; None for any text."""
    form = _optional(tool, "format", dict, path) or {"type": "text"}
    where = f"{path}.format"
    kind, syntax = form.get("type"), form.get("syntax")
    if kind == "text":
        return "lark", None
    if kind != "grammar" or syntax not in ("lark", "regex"):
        raise InvalidRequest(f"`{where}` must be text, or a grammar whose `syntax` is lark or regex", param=where)
    return syntax, _text(form, "definition", where)


def custom_arguments(text: str) -> str:
    """The arguments a model would have written to give a custom tool the input ``text``."""
    return json.dumps({INPUT: text}, ensure_ascii=False)


def _objects(owner: Json, field: str, path: str) -> list[dict[str, Any]]:
    values = owner.get(field)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise InvalidRequest(f"`{path}.{field}` must be a list of objects", param=f"{path}.{field}")
    return values


def _optional(tool: Json, field: str, kind: type[ValueT], path: str) -> ValueT | None:
    value = tool.get(field)
    if value is not None and not isinstance(value, kind):
        raise InvalidRequest(f"`{path}.{field}` must be of type {kind.__name__}", param=f"{path}.{field}")
    return value


def _text(tool: Json, field: str, path: str) -> str:
    value = tool.get(field)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"`{path}.{field}` must be a string that is not empty", param=f"{path}.{field}")
    return value
