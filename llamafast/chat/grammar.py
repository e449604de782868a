"""What a request's constraint fields ask for → one grammar in llguidance's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations
from types import MappingProxyType
from typing import Any, Protocol

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from llamafast.errors import InvalidRequest, UnsupportedParameter

# Characters of a grammar or schema; compiling takes up to seconds for this many.
MAX_CHARACTERS = 128 * 1024
# Translating GBNF takes the square of its rules, half a second for these.
MAX_GBNF_RULES = 800
# Between the tokens of JSON. Without a bound a model that has lost its way writes nothing else.
_WHITESPACE = r"[ \t\r\n]{0,100}"
# The most branches of a ``oneOf`` that are compared each with each.
MAX_EXCLUSIVE = 256
# Keywords whose values are no schemas, and those whose values are schemas by name.
_VALUES = frozenset({"const", "enum", "default", "examples"})
_NAMED = frozenset({"properties", "patternProperties", "dependentSchemas", "$defs", "definitions"})
_ANYTHING: Mapping[str, Any] = MappingProxyType({})

Grammar = dict[str, Any]


class ConstraintOptions(Protocol):
    """The request fields of OpenAI (``response_format``), llama-server and vLLM that constrain the text."""

    response_format: dict[str, Any] | None
    json_schema: dict[str, Any] | bool | None
    grammar: str | None
    structured_outputs: dict[str, Any] | None
    guided_json: dict[str, Any] | str | None
    guided_regex: str | None
    guided_choice: list[str] | None
    guided_grammar: str | None


def requested_grammar(options: ConstraintOptions) -> tuple[Grammar, str] | None:
    """The grammar that a request asks for and the field it comes from; None for free text.

    Raises InvalidRequest or UnsupportedParameter when the fields contradict each other or cannot be made a grammar;
    whether the grammar compiles is found out later.
    """
    found: list[tuple[Grammar, str]] = []
    if options.response_format is not None and (grammar := _response_format(options.response_format)):
        found.append((grammar, "response_format"))
    if options.structured_outputs is not None:
        for kind, value in options.structured_outputs.items():
            if value is not None and value is not False:
                found.append((_of_kind(kind, value, "structured_outputs"), "structured_outputs"))
    single = {
        "json_schema": ("json", options.json_schema),
        "grammar": ("grammar", options.grammar or None),
        "guided_json": ("json", options.guided_json),
        "guided_regex": ("regex", options.guided_regex or None),
        "guided_choice": ("choice", options.guided_choice or None),
        "guided_grammar": ("grammar", options.guided_grammar or None),
    }
    found += [(_of_kind(kind, value, name), name) for name, (kind, value) in single.items() if value is not None]
    if len(found) > 1:
        names = ", ".join(dict.fromkeys(name for _, name in found))
        raise InvalidRequest(f"only one constraint is possible, this request has several: {names}", param=found[1][1])
    return found[0] if found else None


def json_schema_grammar(schema: Any, param: str, *, exact: bool = True, whitespace: str = _WHITESPACE) -> Grammar:
    """Texts that are JSON values of ``schema``, an object's declared properties in the order of the schema.

    ``whitespace`` is a regular expression of what may stand between the tokens of the JSON.
    ``exact``: a keyword that cannot be followed is an error later on, else it is left out.
    """
    if not isinstance(schema, dict | bool):
        raise InvalidRequest(f"`{param}`: a JSON schema must be an object or a boolean", param=param)
    try:
        _check_size(json.dumps(schema), param)
        schema = _OneOf(schema).merged(schema) if isinstance(schema, dict) else schema
    except RecursionError as error:
        raise InvalidRequest(f"`{param}`: the schema is nested too deeply", param=param) from error
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    options: Any = {"whitespace_pattern": whitespace, "lenient": not exact, "coerce_one_of": not exact}
    return {"json_schema": {**schema, "x-guidance": options}}


def text_grammar(syntax: str, text: str, param: str) -> Grammar:
    """A grammar in ``syntax``: "regex", or "lark" for Lark and GBNF. Raises InvalidRequest."""
    if syntax != "regex":
        return lark_grammar(text, param)
    _check_size(text, param)
    (grammar,) = json.loads(LLMatcher.grammar_from_regex(text))["grammars"]
    return {"lark_grammar": grammar["lark_grammar"]}


def lark_grammar(text: str, param: str) -> Grammar:
    """A grammar in GBNF or Lark syntax. Raises InvalidRequest where GBNF is not well-formed."""
    _check_size(text, param)
    if text.count("::=") > MAX_GBNF_RULES:
        raise InvalidRequest(f"`{param}` has more than {MAX_GBNF_RULES} rules; in Lark's notation it may", param=param)
    try:
        return {"lark_grammar": any_to_lark(text)}
    except Exception as error:  # a rule that is not defined raises just that
        raise InvalidRequest(f"`{param}` is not a valid grammar: {str(error)[:300]}", param=param) from error


def _response_format(value: Mapping[str, Any]) -> Grammar | None:
    kind = value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        # llama-server takes a schema here
        return json_schema_grammar(value.get("schema") or {"type": "object"}, "response_format")
    if kind == "json_schema":
        described = value.get("json_schema")
        if not isinstance(described, dict) or "schema" not in described:
            raise InvalidRequest("`response_format.json_schema.schema` is required", param="response_format")
        return json_schema_grammar(described["schema"], "response_format", exact=described.get("strict") is not False)
    if isinstance(kind, str):
        raise UnsupportedParameter(
            f"`response_format.type` must be text, json_object or json_schema, not {kind[:64]!r}",
            param="response_format",
        )
    raise InvalidRequest("`response_format` must be an object with a string `type`", param="response_format")


def _of_kind(kind: str, value: Any, param: str) -> Grammar:
    """A grammar by vLLM's names for the kinds."""
    if kind == "json":
        return json_schema_grammar(_parsed(value, param) if isinstance(value, str) else value, param)
    if kind == "json_object":
        return json_schema_grammar({"type": "object"}, param)
    if kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
            raise InvalidRequest(f"`{param}`: choices must be non-empty strings, at least one", param=param)
        _check_size("".join(value), param)
        # a terminal: as a rule each would be an item of its own for the parser
        alternatives = " | ".join(json.dumps(text, ensure_ascii=False) for text in value)
        return {"lark_grammar": f"start: CHOICE\nCHOICE: {alternatives}"}
    if kind not in ("regex", "grammar"):
        raise UnsupportedParameter(f"`{param}.{kind[:64]}` is not supported", param=param)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"`{param}`: a {kind} must be a non-empty string", param=param)
    return text_grammar(kind, value, param)


def _parsed(text: str, param: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"`{param}` is a string that is not JSON: {str(error)[:200]}", param=param) from error


def _check_size(text: str, param: str) -> None:
    if len(text) > MAX_CHARACTERS:
        raise InvalidRequest(f"`{param}` is longer than {MAX_CHARACTERS} characters", param=param)


class _OneOf:
    """One schema's ``oneOf``."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        # by the identities of two schemas; a pair whose answer depends on itself is not disjoint for certain
        self._disjoint: dict[tuple[int, int], bool] = {}

    def merged(self, schema: Any) -> Any:
        """``schema`` with ``anyOf`` in place of each ``oneOf`` no two branches of which can hold at once: then both
        mean the same, and llguidance follows ``anyOf`` only."""
        if isinstance(schema, list):
            return [self.merged(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        merged = {key: self._below(key, value) for key, value in schema.items()}
        branches = schema.get("oneOf")
        if isinstance(branches, list) and len(branches) <= MAX_EXCLUSIVE and "anyOf" not in schema:
            shapes = [self._resolved(branch) for branch in branches]
            if all(self._exclude(one, other) for one, other in combinations(shapes, 2)):
                merged["anyOf"] = merged.pop("oneOf")
        return merged

    def _below(self, key: str, value: Any) -> Any:
        if key in _VALUES:
            return value
        if key in _NAMED and isinstance(value, dict):
            return {name: self.merged(schema) for name, schema in value.items()}
        return self.merged(value)

    def _resolved(self, schema: Any) -> Mapping[str, Any]:
        """What a local ``$ref`` points at, one step of it."""
        if not isinstance(schema, dict):
            return _ANYTHING
        target: Any = self._root
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        for step in reference[2:].split("/"):
            target = target.get(step) if isinstance(target, dict) else None
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
    names = {types} if isinstance(types, str) else {name for name in types or [] if isinstance(name, str)}
    return names | {"number"} if "integer" in names else names


def _record(schema: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = schema.get(key)
    return value if isinstance(value, dict) else {}


def _names(schema: Mapping[str, Any]) -> set[str]:
    names = schema.get("required")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
