"""``model.response_template``: how to read replies, in the form that Hugging Face's ``transformers`` 5 reads.

``docs/config.md`` describes it. Where ``transformers`` would keep only the last of several regions of one text field,
what all of them say is kept: a stream cannot take words back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import regex

from llamafast.chat.reply.declared.contents import CONTENTS, is_mixed, transformed
from llamafast.chat.reply.declared.parser import (
    REASONING_FIELDS,
    Call,
    CallField,
    CallText,
    DeclaredReply,
    DroppedField,
    Field,
    TextField,
)
from llamafast.chat.reply.declared.regions import Delimiter, Region
from llamafast.chat.reply.deltas import NewParser
from llamafast.chat.tools import Tool
from llamafast.errors import ConfigError

_KEYS = frozenset({"version", "defaults", "fields", "start_anchor", "start_anchor_pattern"})
_FIELD_KEYS = frozenset(
    {"open", "open_pattern", "close", "close_pattern", "content", "content_args", "repeats", "join", "optional"}
    | {"transform", "transform_each"}
)
_BETWEEN_REGIONS = "\n"


class ResponseTemplate:
    """Raises ConfigError for a template that ``transformers`` would not load, or whose text would not come as it is."""

    def __init__(self, template: Mapping[str, Any]) -> None:
        _refuse_unknown("model.response_template", template, _KEYS)
        if template.get("version", 1) != 1:
            raise _fault("version", "only version 1 is known")
        fields = template.get("fields")
        if not isinstance(fields, dict) or not fields:
            raise _fault("fields", "must be an object that is not empty")
        if not isinstance(template.get("defaults", {}), dict):
            raise _fault("defaults", "must be an object")
        anchor = _delimiter(template, "start_anchor", "start_anchor_pattern", "")
        if anchor is None:
            raise _fault("start_anchor", "this or start_anchor_pattern is required")
        self._anchor = anchor.pattern
        self._regions: list[Region] = []
        self._fields: dict[str, Field] = {}
        for name, field in fields.items():
            self._add(name, field, f"fields.{name}")
        if sum(region.opening is None for region in self._regions) > 1:
            raise _fault("fields", "only one of them may have neither open nor open_pattern")

    def parser(self, prompt: str, tools: Sequence[Tool], *, split_reasoning: bool) -> NewParser:
        """What reads the replies to ``prompt``, which may have written the beginning of a reply behind the anchor."""
        begun = 0
        for match in self._anchor.finditer(prompt):
            begun = match.end()
        return partial(
            DeclaredReply,
            self._regions,
            self._fields,
            tools,
            split_reasoning=split_reasoning,
            begun=prompt[begun:],
        )

    def _add(self, name: str, field: Any, path: str) -> None:
        _refuse_unknown(path, field, _FIELD_KEYS)
        content, join, transform = field.get("content", "text"), field.get("join"), field.get("transform")
        if content not in CONTENTS:
            raise _fault(f"{path}.content", f"must be one of {', '.join(CONTENTS)}")
        if join is not None and not (isinstance(join, str) and field.get("repeats")):
            raise _fault(f"{path}.join", "must be a string, and needs repeats")
        if is_mixed(transform):
            raise _fault(f"{path}.transform", "a placeholder must be the whole string")
        if not isinstance(field.get("transform_each", False), bool) or (field.get("transform_each") and not transform):
            raise _fault(f"{path}.transform_each", "must be true or false, and needs transform")
        opening = _delimiter(field, "open", "open_pattern", path)
        closing = _delimiter(field, "close", "close_pattern", path)
        groups = [group for one in (opening, closing) if one is not None for group in one.pattern.groupindex]
        if groups and transform is None:
            raise _fault(path, f"the groups {', '.join(groups)} need a transform that uses them")
        self._regions.append(Region(name, opening, closing))
        self._fields[name] = self._field(name, field, path)

    def _field(self, name: str, field: Mapping[str, Any], path: str) -> Field:
        arguments = field.get("content_args", {})
        if not isinstance(arguments, dict):
            raise _fault(f"{path}.content_args", "must be an object")
        content = field.get("content", "text")
        if content == "xml-inline":
            _check_tag_pattern(arguments, f"{path}.content_args.tag_pattern")
        if name == "tool_calls":
            read = partial(_read_calls, content, arguments, field.get("transform"), bool(field.get("transform_each")))
            return CallField(read)
        if name != "content" and name not in REASONING_FIELDS:
            return DroppedField()
        if content != "text" or field.get("transform") is not None:
            raise _fault(path, "text is passed on as it comes: content must be text and there is no transform")
        joint = _BETWEEN_REGIONS if field.get("join") is None else field["join"]
        return TextField(name in REASONING_FIELDS, strip=arguments.get("strip", True) is not False, joint=joint)


def _read_calls(content: str, arguments: Mapping[str, Any], form: Any, each: bool, text: CallText) -> list[Call]:
    value = CONTENTS[content](text.body, arguments)
    if form is None:
        calls = value if isinstance(value, list) else [value]
    elif each:
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ValueError("not a list of objects")
        calls = [transformed(form, {**text.captures, **item}) for item in value]
    else:
        calls = [transformed(form, {**text.captures, "content": value})]
    return [read_call(call) for call in calls]


def read_call(value: Any) -> Call:
    """A call in OpenAI's shape, or its bare function. Raises ValueError for anything else."""
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(name := function.get("name"), str) or not name:
        raise ValueError("not a tool call")
    return Call(name, function.get("arguments"))


def _delimiter(spec: Mapping[str, Any], literal: str, pattern: str, path: str) -> Delimiter | None:
    if literal in spec and pattern in spec:
        raise _fault(path or literal, f"{literal} and {pattern} exclude each other")
    key = f"{path}.{literal}".lstrip(".")
    if literal in spec:
        given = spec[literal]
        literals = [given] if isinstance(given, str) else given
        if not isinstance(literals, list) or not literals or not all(isinstance(one, str) and one for one in literals):
            raise _fault(key, "must be a string or a list of strings, none of them empty")
        return Delimiter.of_literals(literals)
    if pattern not in spec:
        return None
    try:
        return Delimiter.of_pattern(spec[pattern])
    except (regex.error, TypeError) as error:
        raise _fault(f"{path}.{pattern}".lstrip("."), f"not a regular expression: {error}") from error


def _check_tag_pattern(arguments: Mapping[str, Any], path: str) -> None:
    try:
        groups = regex.compile(arguments.get("tag_pattern")).groupindex
    except (regex.error, TypeError) as error:
        raise _fault(path, f"not a regular expression: {error}") from error
    if "key" not in groups:
        raise _fault(path, "must have a group named key")


def _refuse_unknown(path: str, spec: Any, known: frozenset[str]) -> None:
    if not isinstance(spec, dict):
        raise _fault(path, "must be an object")
    if unknown := sorted(spec.keys() - known):
        raise _fault(path, f"unknown keys {', '.join(unknown)}")


def _fault(path: str, text: str) -> ConfigError:
    prefix = "model.response_template"
    return ConfigError(f"{path if path.startswith(prefix) else f'{prefix}.{path}'}: {text}")
