"""The tools that Anthropic has defined and clients run: what the model is shown of them."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

_TEXT = {"type": "string"}
_LINE = {"type": "integer", "minimum": 0}
_RANGE = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}
_DATED = re.compile(r"(.+)_[0-9]{8}", re.ASCII)


class ClientTool(NamedTuple):
    description: str
    parameters: dict[str, Any]


def _commands(*names: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"command": {"enum": list(names)}, **properties},
        "required": ["command"],
        "additionalProperties": False,
    }


_BASH = ClientTool(
    "Runs a command in a shell that stays open, and returns what it prints.",
    {
        "type": "object",
        "properties": {
            "command": {**_TEXT, "description": "What to run; not needed to restart."},
            "restart": {"type": "boolean", "description": "Whether to begin a new shell instead."},
        },
        "additionalProperties": False,
    },
)
_EDITED: dict[str, Any] = {
    "path": {**_TEXT, "description": "The file or folder."},
    "view_range": {**_RANGE, "description": "To view: the first and the last line, -1 for the end."},
    "file_text": {**_TEXT, "description": "To create: all of the file."},
    "old_str": {**_TEXT, "description": "To replace: text that occurs exactly once."},
    "new_str": {**_TEXT, "description": "What comes in its place."},
    "insert_line": {**_LINE, "description": "To insert: behind which line, 0 for the beginning."},
}
_INSERTED = {"insert_text": {**_TEXT, "description": "What is inserted."}}
_VIEWS = ("view", "create", "str_replace", "insert")
_EDITOR = ClientTool("Views, creates and changes files.", _commands(*_VIEWS, **_EDITED, **_INSERTED))
# it inserted `new_str`, and could take the last change back
_FIRST_EDITOR = ClientTool("Views, creates and changes files.", _commands(*_VIEWS, "undo_edit", **_EDITED))
_MEMORY = ClientTool(
    "Reads and changes files in /memories, which outlive the conversation.",
    _commands(
        *_VIEWS, "delete", "rename", **_EDITED, **_INSERTED,
        old_path={**_TEXT, "description": "To rename: from."}, new_path={**_TEXT, "description": "To rename: to."},
    ),
)  # fmt: skip
_TOOLS = {"bash": _BASH, "text_editor": _EDITOR, "memory": _MEMORY}
_FIRST_EDITORS = frozenset({"text_editor_20241022", "text_editor_20250124"})


def client_tool(kind: str) -> ClientTool | None:
    """The tool of this type, such as ``bash_20250124``; None for one that runs at Anthropic, or that nobody knows."""
    if kind in _FIRST_EDITORS:
        return _FIRST_EDITOR
    dated = _DATED.fullmatch(kind)
    return None if dated is None else _TOOLS.get(dated[1])
