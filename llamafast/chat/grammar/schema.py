"""A client's JSON schema → the one that llguidance is given.

What is written always fits the client's schema. It is narrower in numbers, which have an end (see ``_bounded``), and it
says in llguidance's words what that knows by other ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache, partial
from itertools import combinations
from types import MappingProxyType
from typing import Any

from llamafast.chat.grammar.compiler import Uncompilable, acceptor
from llamafast.chat.reply.dialects.values import target_of

# The most branches of a ``oneOf`` that are compared each with each.
MAX_EXCLUSIVE = 256
# The largest double below 2**63: integers beyond it have no place in int64, for which most readers take them.
MAX_NUMBER = 9223372036854774784
# The most decimals that llguidance can be told: it makes 1e-11 of no integer and a power of ten.
_DECIMALS = 1e-10
# Keywords whose values are no schemas, and those whose values are schemas by name.
_VALUES = frozenset({"const", "enum", "default", "examples"})
_NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
_COUNTS = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains", "maxContains"}
)
_DEFINITIONS = frozenset({"$defs", "definitions"})
_WAYS = ("$ref", "anyOf", "oneOf")
_JOINING = frozenset({"allOf", "not", "if", "then", "else", "dependentSchemas", "contains", "propertyNames"})
_ABOUT = frozenset({"title", "description", "default", "examples", "deprecated", "readOnly", "$comment", "$schema"})
_OF_NUMBERS = frozenset({"type", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_ANYTHING: Mapping[str, Any] = MappingProxyType({})


def whole_counts(schema: Any) -> Any:
    """``schema`` with lengths and counts such as 8.0, which JSON Schema calls integers, as integers."""
    if isinstance(schema, list):
        return [whole_counts(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: _whole(value) if key in _COUNTS else _below(whole_counts, key, value) for key, value in schema.items()}


def readable(schema: dict[str, Any], *, exact: bool) -> dict[str, Any]:
    """The same schema in the words that are read here. With ``exact`` what cannot be followed stays, to be refused;
    else patterns and references are left out where they lead nowhere.

    Malformed keywords stay as they are. Raises RecursionError for what is nested too deeply.
    """
    whole: dict[str, Any] = whole_counts(schema)
    return whole if exact else _without_what_leads_nowhere(whole, whole)


def followed(schema: dict[str, Any], *, exact: bool) -> dict[str, Any]:
    """The schema for llguidance, ``exact`` as for ``readable``. Raises RecursionError likewise."""
    read = readable(schema, exact=exact)
    return _Rewriting(read).root(read)


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _below(apply: Any, key: str, value: Any) -> Any:
    """``value`` of a keyword with ``apply`` done to the schemas in it."""
    if key in _VALUES:
        return value
    if key in _NAMED and isinstance(value, dict):
        return {name: apply(schema) for name, schema in value.items()}
    return apply(value)


def _without_what_leads_nowhere(schema: Any, root: Mapping[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_without_what_leads_nowhere(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _below(partial(_without_what_leads_nowhere, root=root), key, value) for key, value in schema.items()}
    if isinstance(pattern := kept.get("pattern"), str) and not _is_pattern(pattern):
        del kept["pattern"]
    if isinstance(named := kept.get("patternProperties"), dict):
        kept["patternProperties"] = {name: value for name, value in named.items() if _is_pattern(name)}
    if "$ref" in kept and not isinstance(target_of(kept["$ref"], root), dict | bool):
        del kept["$ref"]
    return kept


@lru_cache(1024)
def _is_pattern(pattern: str) -> bool:
    """Whether llguidance can follow ``pattern``."""
    try:
        acceptor({"json_schema": {"type": "string", "pattern": pattern}})
    except Uncompilable:
        return False
    return True


class _Rewriting:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._exclusive = _Exclusive(root)
        # a definition that has to hold together with something else may be used so from anywhere
        self._joined = any(_joined_references(root, False))
        self._shared = _Shared(root)

    def root(self, schema: dict[str, Any]) -> dict[str, Any]:
        rewritten: dict[str, Any] = self.schema(schema, merged=False)
        return self._shared.defined(rewritten)

    def schema(self, schema: Any, merged: bool) -> Any:
        """``merged``: it may have to hold together with another, of which llguidance makes one."""
        if isinstance(schema, list):
            return [self.schema(item, merged) for item in schema]
        if not isinstance(schema, dict):
            return schema
        inner = merged or _joins(schema)
        rewritten = {}
        for key, value in schema.items():
            within = self._joined if key in _DEFINITIONS else inner
            rewritten[key] = _below(partial(self.schema, merged=within), key, value)
        if self._exclusive.are(schema):
            rewritten["anyOf"] = rewritten.pop("oneOf")
        bounded = _bounded(rewritten, merged=inner or self._joined)
        return bounded if inner or bounded is rewritten else self._shared.reference(bounded)


def _joins(schema: Mapping[str, Any]) -> bool:
    """Whether what ``schema`` leads to has to hold together with its other keywords."""
    ways = [way for way in _WAYS if way in schema]
    others = schema.keys() - _ABOUT - _DEFINITIONS - set(_WAYS)
    return not _JOINING.isdisjoint(schema) or len(ways) > 1 or bool(ways and others)


def _joined_references(schema: Any, merged: bool) -> Iterator[bool]:
    """For each ``$ref`` whether what it leads to is merged with something."""
    if isinstance(schema, list):
        for item in schema:
            yield from _joined_references(item, merged)
    elif isinstance(schema, dict):
        inner = merged or _joins(schema)
        if "$ref" in schema:
            yield inner
        for key, value in schema.items():
            within = inner and key not in _DEFINITIONS
            if key in _NAMED and isinstance(value, dict):
                yield from _joined_references([*value.values()], within)
            elif key not in _VALUES:
                yield from _joined_references(value, within)


def _bounded(schema: dict[str, Any], *, merged: bool) -> dict[str, Any]:
    """Numbers with an end: what int64 holds, and ten decimals, unless the schema asks for more.

    Without, a model that has begun to repeat a digit writes digits for ever. Both keywords only narrow a schema, so
    what is written still fits the client's; an exponent has no place beside them. Where schemas are ``merged``
    llguidance would multiply one ``multipleOf`` with another, and fails.
    """
    types = schema.get("type")
    names = types if isinstance(types, list) else [types]
    if ("integer" not in names and "number" not in names) or "const" in schema or "enum" in schema:
        return schema
    least = [schema[key] for key in ("minimum", "exclusiveMinimum") if key in schema]
    most = [schema[key] for key in ("maximum", "exclusiveMaximum") if key in schema]
    if not all(_is_number(bound) and abs(bound) < MAX_NUMBER for bound in least + most):
        return schema
    bounds: dict[str, Any] = {} if least else {"minimum": -MAX_NUMBER}
    if not most:
        bounds["maximum"] = MAX_NUMBER
    if "number" in names and "multipleOf" not in schema and not merged:
        bounds["multipleOf"] = _DECIMALS
    return {**schema, **bounds}


class _Shared:
    """The bounded numbers of one schema, each defined once: llguidance takes a millisecond for one."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        given = root.get("$defs", {})
        # below an "$id" references lead elsewhere
        self._possible = isinstance(given, dict) and '"$id"' not in json.dumps(root)
        self._prefix = "-" * (1 + max((len(name) for name in given), default=0)) if self._possible else ""
        self._names: dict[str, str] = {}
        self._definitions: dict[str, Any] = {}

    def reference(self, schema: dict[str, Any]) -> dict[str, Any]:
        """What takes the place of ``schema`` where that says nothing but which numbers, and nothing of definitions."""
        said = {key: value for key, value in schema.items() if key not in _ABOUT}
        if not self._possible or said.keys() - _OF_NUMBERS:
            return schema
        name = self._names.setdefault(json.dumps(said), f"{self._prefix}{len(self._names)}")
        self._definitions[name] = said
        return {"$ref": f"#/$defs/{name}"}

    def defined(self, root: dict[str, Any]) -> dict[str, Any]:
        if not self._definitions:
            return root
        return {**root, "$defs": {**root.get("$defs", {}), **self._definitions}}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Exclusive:
    """The ``oneOf`` of one schema whose branches exclude each other: then ``anyOf``, which llguidance follows, means
    the same."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        # by the identities of two schemas; a pair whose answer depends on itself is not disjoint for certain
        self._disjoint: dict[tuple[int, int], bool] = {}

    def are(self, schema: Mapping[str, Any]) -> bool:
        branches = schema.get("oneOf")
        if not isinstance(branches, list) or len(branches) > MAX_EXCLUSIVE or "anyOf" in schema:
            return False
        shapes = [self._resolved(branch) for branch in branches]
        return all(self._exclude(one, other) for one, other in combinations(shapes, 2))

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        """What a local ``$ref`` points at, one step of it."""
        if not isinstance(schema, dict):
            return _ANYTHING
        if "$ref" not in schema:
            return schema
        target = target_of(schema["$ref"], self._root)
        return target if isinstance(target, dict) else _ANYTHING

    def _exclude(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        """Whether it is certain that no value fits both."""
        pair = (id(one), id(other))
        if pair not in self._disjoint:
            self._disjoint[pair] = False
            self._disjoint[pair] = self._compare(one, other)
        return self._disjoint[pair]

    def _compare(self, one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
        values = _allowed(one), _allowed(other)
        if values[0] is not None and values[1] is not None:
            return not values[0] & values[1]
        types = _types(one), _types(other)
        if types[0] and types[1] and not types[0] & types[1]:
            return True
        if types != ({"object"}, {"object"}):
            return False
        sides = [(_record(side, "properties"), _names(side)) for side in (one, other)]
        return any(
            self._exclude(self._resolved(sides[0][0].get(name)), self._resolved(sides[1][0].get(name)))
            for name in sides[0][1] & sides[1][1]
        )


def _allowed(schema: Mapping[str, Any]) -> set[str] | None:
    """The strings that ``const`` or ``enum`` allow, None where there are none of them or others than strings."""
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return set(values) if isinstance(values, list) and all(isinstance(value, str) for value in values) else None


def _types(schema: Mapping[str, Any]) -> set[str]:
    types = schema.get("type")
    names = {name for name in (types if isinstance(types, list) else [types]) if isinstance(name, str)}
    return names | {"number"} if "integer" in names else names


def _record(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = schema.get(key)
    return value if isinstance(value, dict) else {}


def _names(schema: Mapping[str, Any]) -> set[str]:
    names = schema.get("required")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
