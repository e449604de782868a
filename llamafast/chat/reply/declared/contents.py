"""What the text of a region means: the content parsers of ``response_template``, by their names there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import regex

Arguments = Mapping[str, Any]
ReadContent = Callable[[str, Arguments], Any]

_BARE_KEY = re.compile(r"(?<=[{,])(\w+):")
_PLACEHOLDER = re.compile(r"\{(\w+(?:\.\w+)*)\}")


def _text(text: str, arguments: Arguments) -> str:
    return text.strip() if arguments.get("strip", True) else text


def _int(text: str, arguments: Arguments) -> int:
    return int(_text(text, arguments))


def _float(text: str, arguments: Arguments) -> float:
    return float(_text(text, arguments))


def _bool(text: str, arguments: Arguments) -> bool:
    return _text(text, arguments).lower() in ("true", "1")


def _json(text: str, arguments: Arguments) -> Any:
    """JSON. ``string_delims``: pairs of marks that quote strings as they are; ``unquoted_keys``: bare words before a
    colon are keys; ``allow_non_json``: text that is no JSON stays text."""
    written = text
    pairs = arguments.get("string_delims") or []
    if pairs or arguments.get("unquoted_keys"):
        quoted = "|".join(f"{re.escape(begin)}(.*?){re.escape(end)}" for begin, end in pairs) or "(?!)"
        pieces, at = [], 0
        for match in re.finditer(quoted, text, re.DOTALL):
            pieces += [_with_quoted_keys(text[at : match.start()], arguments), json.dumps(match[match.lastindex or 0])]
            at = match.end()
        written = "".join([*pieces, _with_quoted_keys(text[at:], arguments)])
    try:
        return json.loads(written)
    except ValueError:
        if arguments.get("allow_non_json"):
            return _text(text, arguments)
        raise


def _with_quoted_keys(text: str, arguments: Arguments) -> str:
    return _BARE_KEY.sub(r'"\1":', text) if arguments.get("unquoted_keys") else text


def _xml_inline(text: str, arguments: Arguments) -> dict[str, Any]:
    """Tags found by ``tag_pattern``, with the groups ``key`` and ``value``; ``merge_duplicates`` makes lists."""
    values: dict[str, Any] = {}
    for match in regex.finditer(arguments["tag_pattern"], text, flags=regex.DOTALL):
        key, value = match["key"], _value(match.groupdict().get("value") or "", arguments)
        if key not in values or not arguments.get("merge_duplicates"):
            values[key] = value
        elif isinstance(values[key], list):
            values[key].append(value)
        else:
            values[key] = [values[key], value]
    return values


def _kv_lines(text: str, arguments: Arguments) -> dict[str, Any]:
    """One ``key: value`` a line; ``line_sep`` and ``kv_sep`` are what separates them."""
    separator = arguments.get("kv_sep", ":")
    values = {}
    for line in text.split(arguments.get("line_sep", "\n")):
        key, found, value = _text(line, arguments).partition(separator)
        if found:
            values[_text(key, arguments)] = _value(_text(value, arguments), arguments)
    return values


def _value(text: str, arguments: Arguments) -> Any:
    nested = arguments.get("value_parser")
    return text if nested is None else CONTENTS[nested.get("name", "text")](text, nested.get("args", {}))


CONTENTS: dict[str, ReadContent] = {
    "text": _text,
    "int": _int,
    "float": _float,
    "bool": _bool,
    "json": _json,
    "xml-inline": _xml_inline,
    "kv-lines": _kv_lines,
}


def is_mixed(form: Any) -> bool:
    """Whether a transform has a string with a placeholder and other text, which has no meaning."""
    if isinstance(form, dict):
        return any(map(is_mixed, form.values()))
    if isinstance(form, list):
        return any(map(is_mixed, form))
    return isinstance(form, str) and bool(_PLACEHOLDER.search(form)) and not _PLACEHOLDER.fullmatch(form)


def transformed(form: Any, scope: Mapping[str, Any]) -> Any:
    """``form`` with its placeholders replaced from ``scope``. Raises ValueError for one that is not there."""
    if isinstance(form, dict):
        return {key: transformed(value, scope) for key, value in form.items()}
    if isinstance(form, list):
        return [transformed(value, scope) for value in form]
    if not isinstance(form, str) or not (whole := _PLACEHOLDER.fullmatch(form)):
        return form
    value: Any = scope
    for name in whole[1].split("."):
        if not isinstance(value, Mapping) or name not in value:
            raise ValueError(f"{form} is not there")
        value = value[name]
    return value
