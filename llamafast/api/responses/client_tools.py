"""The tools that OpenAI has defined and clients run: what the model is shown of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from llamafast.chat.json_text import json_text

_TEXT = {"type": "string"}
_NATURAL = {"type": "integer", "minimum": 0}


class ClientTool(NamedTuple):
    """A function named as its type. What the model gives it stands in the call's item under ``field``."""

    field: str
    description: str
    parameters: dict[str, Any]


CLIENT_TOOLS = {
    "local_shell": ClientTool(
        "action",
        "Runs one command and returns its output.",
        {
            "type": "object",
            "properties": {
                "command": {"type": "array", "items": _TEXT, "description": "The program and its arguments."},
                "working_directory": _TEXT,
                "timeout_ms": _NATURAL,
            },
            "required": ["command"],
            "additionalProperties": False,
        },
    ),
    "shell": ClientTool(
        "action",
        "Runs commands in a shell and returns what they print.",
        {
            "type": "object",
            "properties": {
                "commands": {"type": "array", "items": _TEXT, "description": "Each runs by itself."},
                "timeout_ms": _NATURAL,
                "max_output_length": _NATURAL,
            },
            "required": ["commands"],
            "additionalProperties": False,
        },
    ),
    "apply_patch": ClientTool(
        "operation",
        "Creates, changes or deletes one file.",
        {
            "type": "object",
            "properties": {
                "type": {"enum": ["create_file", "update_file", "delete_file"]},
                "path": _TEXT,
                "diff": {
                    "type": "string",
                    "description": "Lines that begin with '+', '-' or a space, below '@@' lines; none to delete.",
                },
            },
            "required": ["type", "path"],
            "additionalProperties": False,
        },
    ),
}


def arguments_of(name: str, given: Mapping[str, Any]) -> str:
    """The arguments a model would have written, out of what a call's item has under ``field``."""
    shown = CLIENT_TOOLS[name].parameters["properties"]
    said = {key: value for key, value in given.items() if key in shown and value is not None}
    return json_text(said)


def runs_at_client(tool: Mapping[str, Any]) -> bool:
    """A shell in a container is one of OpenAI's own machines. A choice of a tool may have any JSON for a type."""
    kind, environment = tool.get("type"), tool.get("environment")
    hosted = isinstance(environment, dict) and environment.get("type", "local") != "local"
    return isinstance(kind, str) and kind in CLIENT_TOOLS and not hosted
