"""What a request's constraint fields ask for → one grammar in llguidance's form.

All but ``constraint_fields`` is done where it can be ended (``chat.grammar.trial``): translating may take long.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from llamafast.chat.grammar.compiler import Grammar
from llamafast.chat.grammar.schema import followed
from llamafast.chat.grammar.size import check_size
from llamafast.chat.grammar.white_space import ONE_FORM, WHITESPACE_OPTIONS, spacing_asked
from llamafast.errors import InvalidRequest, UnsupportedParameter

# Translating GBNF takes the square of its rules, half a second for these.
MAX_GBNF_RULES = 800
# Lark's notation: a line that begins so. Anything else is GBNF.
_LARK = re.compile(r"^[^\S\n]*(?:%llguidance\b|start[^\S\n]*:)", re.MULTILINE)
# Where a schema stands in ``response_format``.
SCHEMA = "response_format.json_schema.schema"
_TEXTS = ("grammar", "guided_regex", "guided_choice", "guided_grammar", "guided_whitespace_pattern")
_KINDS = {
    "json_schema": "json",
    "grammar": "grammar",
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}


def constraint_fields(said: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``Task.constraints`` asks for something: the fields of OpenAI (``response_format``), llama-server and
    vLLM that constrain the text."""
    found = dict(said)
    form, outputs = said.get("response_format"), said.get("structured_outputs")
    if form is not None and form.get("type") == "text":
        del found["response_format"]
    if outputs is not None:
        # false switches a kind off, but says something of white space
        given = {key: value for key, value in outputs.items() if value is not None}
        given = {key: value for key, value in given.items() if value is not False or key in WHITESPACE_OPTIONS}
        found["structured_outputs"] = given or None
    return {name: value for name, value in found.items() if value is not None and not (name in _TEXTS and not value)}


def requested_grammar(
    fields: Mapping[str, Any], names: Mapping[str, str] = MappingProxyType({})
) -> tuple[Grammar, str] | None:
    """The grammar that ``constraint_fields`` ask for and what the client calls the field it comes from, which ``names``
    say where that is not the field's own name; None for free text.

    Raises InvalidRequest or UnsupportedParameter when the fields contradict each other or cannot be made a grammar;
    whether the grammar compiles is found out later.
    """
    asked: list[tuple[str, str, Any]] = []
    if "response_format" in fields:
        asked.append(("response_format", "response_format", fields["response_format"]))
    outputs = fields.get("structured_outputs", {})
    asked += [("structured_outputs", key, value) for key, value in outputs.items() if key not in WHITESPACE_OPTIONS]
    asked += [(name, kind, fields[name]) for name, kind in _KINDS.items() if name in fields]
    if len(asked) > 1:
        called = [names.get(name, name) for name, _, _ in asked]
        several = ", ".join(dict.fromkeys(called))
        raise InvalidRequest(f"only one constraint is possible, this request has several: {several}", param=called[1])
    spacing, source = spacing_asked(fields)
    if not asked and source is None:
        return None
    if source is not None and (not asked or asked[0][1] not in ("json", "json_object", "response_format")):
        raise InvalidRequest(f"`{source}` says how JSON is written, and this request asks for none", param=source)
    ((field, kind, value),) = asked
    param = names.get(field, field)
    if kind == "response_format":
        return _response_format(value, spacing, names), param
    return _of_kind(kind, value, param, spacing), param


def json_schema_grammar(
    schema: Any, param: str, *, exact: bool = True, spacing: Mapping[str, Any] = ONE_FORM
) -> Grammar:
    """Texts that are JSON values of ``schema``, an object's declared properties in the order of the schema.

    ``spacing`` is what llguidance is told of the white space between the tokens of the JSON.
    ``exact``: a keyword that cannot be followed is an error later on, else it is left out.
    """
    if not isinstance(schema, dict | bool):
        raise InvalidRequest(f"`{param}`: a JSON schema must be an object or a boolean", param=param)
    try:
        check_size(json.dumps(schema), param)
        schema = followed(schema, exact=exact) if isinstance(schema, dict) else schema
    except RecursionError as error:
        raise InvalidRequest(f"`{param}`: the schema is nested too deeply", param=param) from error
    if isinstance(schema, bool):
        schema = {} if schema else {"not": {}}
    return {"json_schema": {**schema, "x-guidance": {**spacing, "lenient": not exact, "coerce_one_of": not exact}}}


def text_grammar(syntax: str, text: str, param: str) -> Grammar:
    """A grammar in ``syntax``: "regex", or "lark" for Lark and GBNF. Raises InvalidRequest."""
    if syntax != "regex":
        return lark_grammar(text, param)
    check_size(text, param)
    (grammar,) = json.loads(LLMatcher.grammar_from_regex(text))["grammars"]
    return {"lark_grammar": grammar["lark_grammar"]}


def lark_grammar(text: str, param: str) -> Grammar:
    """A grammar in GBNF or Lark syntax. Raises InvalidRequest where GBNF is not well-formed."""
    check_size(text, param)
    if _LARK.search(text):
        return {"lark_grammar": text}
    if text.count("::=") > MAX_GBNF_RULES:
        raise InvalidRequest(f"`{param}` has more than {MAX_GBNF_RULES} rules; in Lark's notation it may", param=param)
    try:
        return {"lark_grammar": gbnf_to_lark(text)}
    except Exception as error:  # a rule that is not defined raises just that
        raise InvalidRequest(
            f"`{param}` is not a valid grammar: {_line(error)}", param=param, told=_line(error)
        ) from error


def _response_format(value: Mapping[str, Any], spacing: Mapping[str, Any], names: Mapping[str, str]) -> Grammar:
    param = names.get("response_format", "response_format")
    kind = value.get("type")
    if kind == "json_object":
        # llama-server takes a schema here
        return json_schema_grammar(value.get("schema") or {"type": "object"}, param, spacing=spacing)
    if kind == "json_schema":
        described = value.get("json_schema")
        if not isinstance(described, dict) or "schema" not in described:
            raise InvalidRequest(f"`{names.get(SCHEMA, SCHEMA)}` is required", param=param)
        exact = described.get("strict") is not False
        return json_schema_grammar(described["schema"], param, exact=exact, spacing=spacing)
    if isinstance(kind, str):
        raise UnsupportedParameter(
            f"`{param}.type` must be text, json_object or json_schema, not {kind[:64]!r}", param=param
        )
    raise InvalidRequest(f"`{param}` must be an object with a string `type`", param=param)


def _of_kind(kind: str, value: Any, param: str, spacing: Mapping[str, Any]) -> Grammar:
    """A grammar by vLLM's names for the kinds."""
    if kind == "json":
        schema = _parsed(value, param) if isinstance(value, str) else value
        return json_schema_grammar(schema, param, spacing=spacing)
    if kind == "json_object":
        return json_schema_grammar({"type": "object"}, param, spacing=spacing)
    if kind == "choice":
        if not isinstance(value, list) or not value or not all(isinstance(text, str) and text for text in value):
            raise InvalidRequest(f"`{param}`: choices must be non-empty strings, at least one", param=param)
        check_size("".join(value), param)
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
        raise InvalidRequest(f"`{param}` is a string that is not JSON: {_line(error)}", param=param) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
