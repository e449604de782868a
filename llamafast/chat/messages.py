"""A chat's messages as the client sent them → as a template can read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llamafast.errors import InvalidRequest, UnsupportedParameter

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
# The kinds of content part that are text, each with the field that holds it.
_TEXT_FIELDS = {"text": "text", "refusal": "refusal"}


def normalise_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Content becomes one string (null: the empty one), ``developer`` becomes ``system``; all other fields stay.

    Raises InvalidRequest for an unknown role or content of a wrong type, UnsupportedParameter for a content part
    that is not text; ``param`` is the path to the field.
    """
    return [_normalise(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _normalise(message: Mapping[str, Any], path: str) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(f"{path}.role must be one of {', '.join(sorted(_ROLES))}", param=f"{path}.role")
    content = message.get("content")
    return {
        **message,
        "role": "system" if role == "developer" else role,
        "content": _text(content, f"{path}.content"),
    }


def _text(content: Any, path: str) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part_text(part, f"{path}[{j}]") for j, part in enumerate(content))
    raise InvalidRequest(f"{path} must be a string, a list of content parts or null", param=path)


def _part_text(part: Any, path: str) -> str:
    if not isinstance(part, dict) or not isinstance(kind := part.get("type"), str):
        raise InvalidRequest(f"{path} must be an object with a string `type`", param=path)
    field = _TEXT_FIELDS.get(kind)
    if field is None:
        raise UnsupportedParameter(f"{path}: content of type {kind[:64]!r} is not supported yet", param=f"{path}.type")
    text = part.get(field)
    if not isinstance(text, str):
        raise InvalidRequest(f"{path}.{field} must be a string", param=f"{path}.{field}")
    return text
