"""Values as models write them → JSON, piece by piece.

What a model means as an object may be JSON, JSON with bare keys, a Python literal, or Gemma's notation with strings
between ``<|"|>``. One reader takes them all, since none of them is a different valid JSON text: strict JSON comes out
as it went in. It checks that brackets match and strings end, not the whole grammar.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from json.encoder import encode_basestring
from typing import Any
from urllib.parse import unquote

from llamafast.chat.reply.dialects.source import BLANK, Marks, Sink, Source, Step

_CLOSERS = {"{": "}", "[": "]", "(": ")"}
_JSON_BRACKETS = str.maketrans("()", "[]")
_WORD = re.compile(r"""[^{}\[\](),:"\n]*""")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_CONSTANTS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_IN_STRING = {'"': re.compile(r'["\\\x00-\x1f]'), "'": re.compile(r"""['"\\\x00-\x1f]""")}
_ESCAPABLE = frozenset('"\\/bfnrtu')
_GEMMA_QUOTE = '<|"|>'
_GEMMA_END = Marks([_GEMMA_QUOTE])
# That one parameter's types are gathered from.
MAX_SCHEMAS = 256


def escaped(text: str) -> str:
    """``text`` as it stands within a JSON string; of several pieces, each may be escaped on its own."""
    return encode_basestring(text)[1:-1]


def read_value(source: Source, sink: Sink) -> Step[bool]:
    """Read one value and hand it to ``sink`` as JSON. False where it is none, or the text ends within it.

    What was handed over by then is the beginning of a value.
    """
    closers: list[str] = []
    comma = ""  # the last comma and the white space before it, until something follows that it separates
    while True:
        blank = yield from source.run(BLANK)
        char = yield from source.peek()
        if not char:
            return False
        if closers and char == ",":
            source.at += 1
            comma = blank + ","
        elif char in "}])":
            if not closers or closers.pop() != char:
                return False
            source.at += 1
            sink(comma[:-1] + blank + char.translate(_JSON_BRACKETS))
            comma = ""
            if not closers:
                return True
        elif char in ",:":
            if not closers:
                return False
            source.at += 1
            sink(blank + char)
        else:
            sink(comma + blank)
            comma = ""
            if char in "{[(":
                source.at += 1
                closers.append(_CLOSERS[char])
                sink(char.translate(_JSON_BRACKETS))
            elif not (yield from _read_scalar(source, sink, char)):
                return False
            if not closers:
                return True


def read_string(source: Source) -> Step[str | None]:
    """Read a quoted string and return what it says; None where there is none."""
    char = yield from source.peek()
    if char not in _IN_STRING or not char:
        return None
    source.at += 1
    pieces: list[str] = []
    if not (yield from _read_quoted(source, pieces.append, char)):
        return None
    try:
        text: str = json.loads("".join(pieces))
        text.encode()
    except ValueError:  # a broken \u escape, or half of a surrogate pair
        return None
    return text


def _read_scalar(source: Source, sink: Sink, char: str) -> Step[bool]:
    if char in _IN_STRING:
        source.at += 1
        return (yield from _read_quoted(source, sink, char))
    if char == "<" and (yield from source.literal(_GEMMA_QUOTE)):
        sink('"')
        complete = yield from source.until(_GEMMA_END, lambda text: sink(escaped(text)))
        if complete:
            sink('"')
        return bool(complete)
    word = (yield from source.run(_WORD)).rstrip()
    is_key = (yield from source.peek()) == ":"
    sink(encode_basestring(word) if is_key else _scalar(word))
    return not source.ended or source.at < len(source.text)


def _scalar(word: str) -> str:
    return _CONSTANTS.get(word) or (word if _NUMBER.fullmatch(word) else encode_basestring(word))


def _read_quoted(source: Source, sink: Sink, quote: str) -> Step[bool]:
    """The rest of a string whose opening quote was read."""
    special = _IN_STRING[quote]
    sink('"')
    while True:
        match = special.search(source.text, source.at)
        stop = len(source.text) if match is None else match.start()
        if stop > source.at:
            sink(source.text[source.at : stop])
            source.at = stop
        if match is None:
            if source.ended:
                return False
            yield
            continue
        source.at += 1
        if match[0] == quote:
            sink('"')
            return True
        if match[0] == "\\":
            char = yield from source.peek()
            if not char:
                return False
            source.at += 1
            sink(_escape(char))
        else:
            sink(escaped(match[0]))


def _escape(char: str) -> str:
    """A backslash and ``char`` in JSON: what is no escape there stands for itself."""
    if char in _ESCAPABLE:
        return "\\" + char
    return char if char == "'" else "\\\\" + escaped(char)


def json_types(value: Any) -> tuple[str, ...]:
    """What JSON Schema calls a JSON value, the narrowest name first."""
    if isinstance(value, bool):
        return ("boolean",)
    if isinstance(value, int):
        return ("integer", "number")
    names = {str: "string", float: "number", list: "array", dict: "object"}
    return (names.get(type(value), "null"),)


def types_of(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """The JSON types that ``schema`` allows, as far as it says; ``root`` is what its ``$ref`` point into.

    Looks at each schema once and at no more than ``MAX_SCHEMAS``.
    """
    types: set[str] = set()
    seen: set[int] = set()
    waiting = [schema]
    while waiting and len(seen) < MAX_SCHEMAS:
        one = waiting.pop()
        if not isinstance(one, dict) or id(one) in seen:
            continue
        seen.add(id(one))
        declared = one.get("type")
        types.update(t for t in (declared if isinstance(declared, list) else [declared]) if isinstance(t, str))
        if one.get("nullable") is True:
            types.add("null")
        if declared is None:
            values = [one["const"]] if "const" in one else one.get("enum")
            types.update(json_types(value)[0] for value in (values if isinstance(values, list) else ()))
        for key in ("anyOf", "oneOf", "allOf"):
            waiting += one[key] if isinstance(one.get(key), list) else ()
        if "$ref" in one:
            waiting.append(target_of(one["$ref"], root))
    return frozenset(types)


def target_of(reference: Any, root: Mapping[str, Any]) -> Any:
    """What a ``$ref`` points at within ``root``; None where that is nothing."""
    if not isinstance(reference, str) or reference[:2] not in ("#", "#/"):
        return None
    target: Any = root
    for step in reference[2:].split("/") if reference != "#" else ():
        name = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(target, list):
            target = target[int(name)] if name.isdecimal() and len(name) < 8 and int(name) < len(target) else None
        else:
            target = target.get(name) if isinstance(target, dict) else None
    return target


def coerced(text: str, types: frozenset[str]) -> str:
    """``text``, which a model wrote without quotes, as the JSON value of one of ``types``; else as a string."""
    word = text.strip()
    if "null" in types and word in ("null", "None"):
        return "null"
    if "boolean" in types and word.lower() in ("true", "false"):
        return word.lower()
    if types & {"integer", "number"} and (number := _number(word, "number" in types)):
        return number
    if types & {"object", "array"} and (value := _container(word, types)):
        return value
    if "boolean" in types and word in ("0", "1"):
        return "true" if word == "1" else "false"
    return encode_basestring(text)


def _number(word: str, fractions: bool) -> str:
    """``word`` as a JSON number, empty where it is none; whole numbers may be written 3.0."""
    try:
        value = float(word)
    except ValueError:
        return ""
    if not math.isfinite(value) or not (fractions or value.is_integer()):
        return ""
    if _NUMBER.fullmatch(word) and (fractions or word.lstrip("-").isdigit()):
        return word
    return str(int(value)) if value.is_integer() else json.dumps(value)


def _container(word: str, types: frozenset[str]) -> str:
    """``word`` as a JSON object or array, empty where it is none of ``types``."""
    source, pieces = Source(), list[str]()
    source.add(word)
    source.ended = True
    for _ in read_value(source, pieces.append):
        raise AssertionError("nothing to wait for")
    text = "".join(pieces)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    kind = "object" if isinstance(value, dict) else "array" if isinstance(value, list) else ""
    return text if kind in types and source.at == len(word) else ""
