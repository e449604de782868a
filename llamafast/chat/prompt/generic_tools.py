"""What a client sent in words, for templates that do not print it: tools, their calls and results, documents.

Calls have the form that the model's parser and the grammars of forced calls know, so nothing after the prompt differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llamafast.chat.json_text import json_text
from llamafast.chat.reply.dialects.forms import CallForm

_EXAMPLE = ("function_name", {"parameter_name": "value"})


def tool_prompt(definitions: Sequence[Mapping[str, Any]], form: CallForm) -> str:
    """The tools a model may call and how it calls them."""
    return (
        "# Tools\n\nYou may call functions to help with the user's query. These functions exist, each described by "
        f"one JSON object:\n<tools>\n{_lines(definitions)}\n</tools>\n\n"
        "To call functions, write each call in this form, with the function's own name and arguments:\n"
        f"{form.written([_EXAMPLE])}\n\n"
        "Their results are then given to you."
    )


def written_result(text: str) -> str:
    return f"<tool_response>\n{text}\n</tool_response>"


def document_prompt(documents: Sequence[Mapping[str, Any]]) -> str:
    """The documents that an answer may rest on."""
    return f"# Documents\n\nThese documents were given:\n<documents>\n{_lines(documents)}\n</documents>"


def with_fields_in_text(document: Mapping[str, Any], printed: frozenset[str]) -> dict[str, Any]:
    """``document`` for a template that prints only the fields in ``printed``: the others stand before its text."""
    others = {key: value for key, value in document.items() if key not in printed and value not in (None, "")}
    if not others:
        return dict(document)
    lines = [f"{key}: {value if isinstance(value, str) else json_text(value)}" for key, value in others.items()]
    return {**document, "text": "\n".join([*lines, "", str(document.get("text", ""))]).rstrip("\n")}


def with_schemas(definition: Mapping[str, Any]) -> dict[str, Any]:
    """A tool's definition in which the description of each parameter that has parts says what they are."""
    function = definition["function"]
    parameters = function["parameters"]
    properties = parameters.get("properties")
    if not isinstance(properties, dict):
        return dict(definition)
    told = {
        key: {**schema, "description": f"{schema.get('description') or ''}\n{json_text(schema)}".lstrip("\n")}
        if isinstance(schema, dict) and any(isinstance(part, dict | list) for part in schema.values())
        else schema
        for key, schema in properties.items()
    }
    return {**definition, "function": {**function, "parameters": {**parameters, "properties": told}}}


def with_descriptions(value: Any) -> Any:
    """A tool's definition in which every function and parameter has a description, if an empty one."""
    if not isinstance(value, Mapping):
        return value
    given = {key: with_descriptions(item) for key, item in value.items()}
    properties = given.get("properties")
    for owner in (given.get("function"), *(properties.values() if isinstance(properties, dict) else ())):
        if isinstance(owner, dict):
            owner.setdefault("description", "")
    return given


def _lines(objects: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(map(json_text, objects))
