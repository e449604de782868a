"""Values of a schema as dialects with tags write them: strings without quotes and escapes, JSON for anything else.

What a string may be becomes a terminal of llguidance's Lark, so that lengths, patterns and formats hold here too.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from re import _constants, _parser  # type: ignore[attr-defined]
from typing import Any

from llamafast.chat.reply.dialects.values import json_types, target_of

# Of one value.
MAX_BRANCHES = 256

_LONG_MONTH = "(0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])"
_SHORT_MONTH = "(0[469]|11)-(0[1-9]|[12][0-9]|30)"
_FEBRUARY = "02-(0[1-9]|1[0-9]|2[0-8])"
_LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
_DATE = f"([0-9]{{4}}-({_LONG_MONTH}|{_SHORT_MONTH}|{_FEBRUARY})|{_LEAP_YEAR}-02-29)"
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "ipv4": f"{_BYTE}(\\.{_BYTE}){{3}}",
    "email": "[a-zA-Z0-9._%+-]+@[a-zA-Z0-9-]+(\\.[a-zA-Z0-9-]+)+",
}
# Beside a string that is bounded, what else a value may be has to be a regular expression as well. Numbers have an end,
# as in ``chat.grammar.schema``.
_SCALARS = {
    "null": "null",
    "boolean": "(true|false)",
    "integer": "-?(0|[1-9][0-9]{0,18})",
    "number": "-?(0|[1-9][0-9]{0,18})(\\.[0-9]{1,10})?",
}
_ABOUT = frozenset({"type", "title", "description", "default", "examples", "deprecated", "readOnly", "$comment"})
_OF_STRINGS = frozenset({"minLength", "maxLength", "pattern", "format"})
_OF_NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})


class Unwritable(Exception):
    """A schema whose strings cannot be bounded; the message says why."""


def branches(schema: Any, root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """``schema`` without what leads to other schemas or names several types: values fit one of these.

    What a reference points at counts once. Raises Unwritable where keywords beside what leads elsewhere would have to
    hold too, where there are more than ``MAX_BRANCHES`` or none, and where a keyword is malformed.
    """
    found: list[Mapping[str, Any]] = []
    seen: set[int] = set()
    waiting = [schema]
    n_read = 0
    while waiting:
        one = waiting.pop()
        n_read += 1
        if n_read > MAX_BRANCHES:
            raise Unwritable(f"it has more than {MAX_BRANCHES} branches")
        if isinstance(one, dict):
            ways = [key for key in ("$ref", "anyOf", "oneOf") if key in one]
            if not ways:
                found += _by_type(one)
            else:
                waiting += reversed(_below(one, ways, root, seen))
        elif one is not False:
            found.append({})
    if not found:
        raise Unwritable("nothing fits it")
    return found


def _below(schema: Mapping[str, Any], ways: Sequence[str], root: Mapping[str, Any], seen: set[int]) -> list[Any]:
    """What ``schema`` leads to, without the targets of references that were ``seen``."""
    if len(ways) > 1 or schema.keys() - _ABOUT - {"$defs", "definitions"} - set(ways):
        raise Unwritable(f"`{ways[0]}` stands beside other keywords")
    if ways[0] == "$ref":
        target = target_of(schema["$ref"], root)
        if not isinstance(target, dict | bool):
            raise Unwritable(f"the reference {schema['$ref']!r:.100} leads elsewhere")
        if id(target) in seen:
            return []
        seen.add(id(target))
        return [target]
    below = schema[ways[0]]
    if not isinstance(below, list):
        raise Unwritable(f"`{ways[0]}` is no list")
    return below


def _by_type(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    types = schema.get("type")
    for one in types if isinstance(types, list) else [types]:
        if not isinstance(one, str | None):
            raise Unwritable(f"there is no type {one!r:.100}")
        foreign = _OF_NUMBERS if one == "string" else _OF_STRINGS if one else frozenset()
        alone = {key: value for key, value in schema.items() if key not in foreign}
        yield from _by_values(alone if one is None else {**alone, "type": one})


def is_text(branch: Mapping[str, Any]) -> bool:
    """Whether its values are strings. What names no type may be one."""
    if "enum" in branch:
        return all(isinstance(value, str) for value in branch["enum"])
    return bool(branch.get("type", "string") == "string")


def text_terminal(texts: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> str | None:
    """A terminal of what the string branches ``texts``, or one of ``others``, may be; None: any text.

    Raises Unwritable.
    """
    written = [_text(branch) for branch in texts]
    if not all(written):
        return None
    return " | ".join(f"({one})" for one in [*filter(None, written), *map(_scalar, others)])


def _by_values(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Where a schema of one type lists its values, the strings among them and the others, as ``enum``."""
    if "const" not in schema and "enum" not in schema:
        yield schema
        return
    values = [schema["const"]] if "const" in schema else schema["enum"]
    if not isinstance(values, list):
        raise Unwritable("`enum` is no list")
    fitting = [value for value in values if schema.get("type") in (None, *json_types(value))]
    for kind in (True, False):
        if some := [value for value in fitting if isinstance(value, str) is kind]:
            yield {"enum": some}


def _text(branch: Mapping[str, Any]) -> str:
    """The terminal of one branch, empty for any text."""
    if unknown := branch.keys() - _ABOUT - _OF_STRINGS - {"enum"}:
        raise Unwritable(f"`{min(unknown)}` cannot be followed")
    if "enum" in branch:
        return _choice(branch["enum"])
    bounds = []
    least, most = _count(branch.get("minLength", 0)), branch.get("maxLength")
    if least or most is not None:
        bounds.append(f"/(.|\\n){{{least},{'' if most is None else _count(most)}}}/")
    if "pattern" in branch:
        bounds.append(_searched(branch["pattern"]))
    if "format" in branch:
        if not isinstance(branch["format"], str) or branch["format"] not in FORMATS:
            raise Unwritable(f"the format {branch['format']!r:.100} is not known")
        bounds.append(f"/{FORMATS[branch['format']]}/")
    return " & ".join(bounds)


def _choice(texts: Iterable[str]) -> str:
    return " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)


def _scalar(branch: Mapping[str, Any]) -> str:
    if "enum" in branch:
        return _choice(json.dumps(value, ensure_ascii=False) for value in branch["enum"])
    if branch.keys() - _ABOUT or branch.get("type") not in _SCALARS:
        raise Unwritable("a bounded string cannot stand beside such a value")
    return f"/{_SCALARS[branch['type']]}/"


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Unwritable(f"{value!r:.100} is no length")
    return value


def _searched(pattern: Any) -> str:
    """The texts in which ``pattern`` is found, which may be tied to their beginning and end only as a whole."""
    try:
        with warnings.catch_warnings(action="ignore"):
            nodes = list(_parser.parse(pattern))
        first = bool(nodes) and nodes[0] == (_constants.AT, _constants.AT_BEGINNING) and pattern.startswith("^")
        last = bool(nodes) and nodes[-1] == (_constants.AT, _constants.AT_END) and pattern.endswith("$")
        inner = repr(nodes[first : len(nodes) - last])
    except (TypeError, re.error, RecursionError, OverflowError) as error:
        raise Unwritable(f"the pattern {pattern!r:.100} cannot be read: {error}") from error
    if "AT_" in inner:
        raise Unwritable(f"the pattern {pattern!r:.100} has an anchor within")
    body = pattern[first : len(pattern) - last].replace("\n", "\\n")
    body = re.sub(r"\\.|/", lambda match: "\\/" if match[0] == "/" else match[0], body)
    before, after = ("" if tied else "(.|\\n)*" for tied in (first, last))
    return f"/{before}({body}){after}/"
