"""The language of ``response_schema``: a JSON schema whose ``x-`` keys say how to find values in text.

It is what ``transformers`` 4.57 called so, with what llama-cpp-python's example server added: see ``docs/config.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llamafast.chat.reply.dialects.source import Source
from llamafast.chat.reply.dialects.values import read_value
from llamafast.errors import ConfigError

Schema = Mapping[str, Any]

# The patterns of a node are fixed by the config; ``re`` keeps only 512 compiled ones.
_PATTERNS = ("x-regex", "x-regex-iterator", "x-regex-key-value")
_TYPES = frozenset({"object", "array", "string", "integer", "number", "boolean", "null", "any"})
_TRUE, _FALSE = ("true", "True", "1"), ("false", "False", "0")


def check(node: Any, path: str) -> None:
    """Raises ConfigError for a node that cannot be evaluated, whatever the text."""
    if isinstance(node, bool):
        return
    if not isinstance(node, dict):
        raise ConfigError(f"{path}: must be an object")
    for key in _PATTERNS:
        if key in node:
            groups = _groups(node[key], f"{path}.{key}")
            if key == "x-regex-key-value" and not {"key", "value"} <= groups:
                raise ConfigError(f"{path}.{key}: needs the groups key and value")
    for key in ("x-regex-substitutions", "x-mapping-regex"):
        for pattern, text in _pairs(node.get(key), f"{path}.{key}"):
            _groups(pattern, f"{path}.{key}")
            if not isinstance(text, str):
                raise ConfigError(f"{path}.{key}: a replacement must be a string")
    if not isinstance(node.get("x-mapping", {}), dict):
        raise ConfigError(f"{path}.x-mapping: must be an object")
    if (parser := node.get("x-parser")) is not None and parser not in _PARSERS:
        raise ConfigError(f"{path}.x-parser: must be one of {', '.join(_PARSERS)}")
    if not set(_listed(node.get("type"))) <= _TYPES:
        raise ConfigError(f"{path}.type: must be one of {', '.join(sorted(_TYPES))}")
    _check_children(node, path)


def _check_children(node: Mapping[str, Any], path: str) -> None:
    for name, child in _object(node, "properties", path).items():
        check(child, f"{path}.properties.{name}")
    for key in ("items", "additionalProperties"):
        if key in node:
            check(node[key], f"{path}.{key}")
    for key in ("oneOf", "anyOf", "prefixItems"):
        for i, child in enumerate(_listed(node.get(key))):
            check(child, f"{path}.{key}[{i}]")


def evaluate(node: Any, value: Any) -> Any:
    """What ``node`` finds in ``value``, which is text at first; None where it finds nothing.

    Raises ValueError where something that is required is not there.
    """
    if not isinstance(node, dict):
        return value if node else None
    if "const" in node:
        return node["const"]
    if value is None:
        return node.get("default")
    value = _searched(node, value)
    if value is None:
        return node.get("default")
    if "x-parser" in node and isinstance(value, str):
        value = _PARSERS[node["x-parser"]](value, node.get("x-parser-args") or {})
    if isinstance(value, str):
        value = node.get("x-mapping", {}).get(value, value)
        for pattern, text in _substitutions(node.get("x-mapping-regex")):
            value = re.sub(pattern, text, value, flags=re.DOTALL)
    choices = node.get("oneOf") or node.get("anyOf")
    if choices:
        return next((found for choice in choices if (found := evaluate(choice, value)) is not None), None)
    types = _listed(node.get("type"))
    return (
        next((found for kind in types if (found := _of_type(kind, node, value)) is not None), None) if types else value
    )


def _searched(node: Schema, value: Any) -> Any:
    """The part of the text that the node's patterns capture."""
    if not isinstance(value, str):
        return value
    for pattern, text in _substitutions(node.get("x-regex-substitutions")):
        value = re.sub(pattern, text, value, flags=re.DOTALL)
    if "x-regex" in node:
        match = re.search(node["x-regex"], value, re.DOTALL)
        value = None if match is None else _captured(match)
    if "x-regex-iterator" in node and isinstance(value, str):
        value = [_captured(match) for match in re.finditer(node["x-regex-iterator"], value, re.DOTALL)] or None
    if "x-regex-key-value" in node and isinstance(value, str):
        pairs = re.finditer(node["x-regex-key-value"], value, re.DOTALL)
        value = {match["key"]: match["value"] for match in pairs} or ({} if not value.strip() else None)
    return value


def _captured(match: re.Match[str]) -> Any:
    """The named groups that took part, else the first group, else the whole match."""
    if match.re.groupindex:
        return {name: text for name, text in match.groupdict().items() if text is not None}
    return match[1] if match.re.groups else match[0]


def _of_type(kind: str, node: Schema, value: Any) -> Any:
    if kind == "object":
        return _of_object(node, value)
    if kind == "array":
        items = value if isinstance(value, list) else [value]
        schemas = list(_listed(node.get("prefixItems")))
        found = (
            evaluate(schemas[i] if i < len(schemas) else node.get("items", True), item) for i, item in enumerate(items)
        )
        return [item for item in found if item is not None]
    if kind == "string":
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if kind == "boolean":
        word = str(value).strip()
        return True if word in _TRUE else False if word in _FALSE else None
    if kind == "null":
        return None
    if kind in ("integer", "number"):
        return _number(value, whole=kind == "integer")
    return value


def _of_object(node: Schema, value: Any) -> dict[str, Any] | None:
    """Of a dict the properties, of text whatever the properties find in it."""
    if not isinstance(value, str | dict):
        return None
    properties = node.get("properties", {})
    found = {
        name: evaluate(child, value if isinstance(value, str) else value.get(name))
        for name, child in properties.items()
    }
    rest = node.get("additionalProperties", not properties)
    if isinstance(value, dict) and rest is not False:
        found |= {name: evaluate(rest, item) for name, item in value.items() if name not in properties}
        # what the text says is null is null
        found = {name: item for name, item in found.items() if item is not None or name in value}
    else:
        found = {name: item for name, item in found.items() if item is not None}
    if missing := [name for name in node.get("required", ()) if name not in found]:
        raise ValueError(f"nothing found for {', '.join(missing)}")
    return found


def _number(value: Any, *, whole: bool) -> int | float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
        if number.is_integer() and (whole or isinstance(value, int) or (isinstance(value, str) and "." not in value)):
            return int(value) if isinstance(value, int | str) and "." not in str(value) else int(number)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if whole else number


def _parse_json(text: str, arguments: Schema) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        if arguments.get("allow_non_json"):
            return text
        raise


def _parse_gemma(text: str, arguments: Schema) -> Any:
    """Gemma's notation: bare keys, strings between ``<|"|>``."""
    source, pieces = Source(), list[str]()
    source.add(text)
    source.ended = True
    for _ in read_value(source, pieces.append):
        raise AssertionError("nothing to wait for")
    return json.loads("".join(pieces))


_PARSERS: dict[str, Callable[[str, Schema], Any]] = {"json": _parse_json, "gemma4-tool-call": _parse_gemma}


def _substitutions(given: Any) -> Iterator[tuple[str, str]]:
    for pair in given or ():
        yield pair if not isinstance(pair, dict) else (pair["pattern"], pair["replacement"])


def _pairs(given: Any, path: str) -> list[tuple[Any, Any]]:
    try:
        return [(pattern, text) for pattern, text in _substitutions(given)]
    except (TypeError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}: must be a list of pairs of a pattern and its replacement") from error


def _groups(pattern: Any, path: str) -> set[str]:
    try:
        return set(re.compile(pattern, re.DOTALL).groupindex)
    except (re.error, TypeError, RecursionError, OverflowError) as error:
        raise ConfigError(f"{path}: not a regular expression: {error}") from error


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _object(node: Mapping[str, Any], key: str, path: str) -> dict[str, Any]:
    value = node.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{path}.{key}: must be an object")
    return value
