"""What clients send to be read as grammars, patterns and schemas: the time it takes grows as its length does, and
whatever it is, the answer is a grammar or a refusal."""

from __future__ import annotations

import json
from contextlib import suppress
from time import thread_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engine import ByteTokenizer

from llamafast.chat.grammar.asked import Asked, Letters, Refusal, written
from llamafast.chat.grammar.bare_text import MAX_BRANCHES, Unwritable, branches
from llamafast.chat.grammar.calls import CallGrammar
from llamafast.chat.grammar.compiler import grammar_tokenizer
from llamafast.chat.grammar.in_json import quoted
from llamafast.chat.grammar.requested import lark_grammar
from llamafast.chat.reply.dialects.forms import Dialect
from llamafast.chat.reply.dialects.tables import DIALECTS, GENERIC
from llamafast.chat.reply.dialects.values import types_of
from llamafast.chat.tools import Tool
from llamafast.errors import InvalidRequest, UnsupportedParameter

TOKENIZER = grammar_tokenizer(ByteTokenizer())
# Of these characters: more than ten seconds where the time is a square of the length, a tenth of one where it is not.
N_CHARACTERS = 32 * 1024
SECONDS = 4.0
PIECES = [
    "\n", " ", "\r\n", "\t\n", "[", "]", "(", "?", "!", "?!", "\\", '\\"', '"', '""', '".."', '"a".."', "/", "\\/", "~",
    "<", "<a", "@", "&", "%", "%import ", "%import common.", "a", "A", "A_", "a ", "a:", "A:\n", "|", "//", "#", "# \n",
    "{", "{0,", "\\x{", "\\u", "\\p{", "(?:", "(?P<a", "[^", "[a", "*)", "a*", ".", "start", "start ", "start\n",
    "%llguidance", "::=", "root ::= ", "\x0b", "\u2028", "\u00a0", "i", '"a"i', "/a/x ", "-", "->",
]  # fmt: skip


def seconds(read: Any, text: str) -> float:
    begun = thread_time()
    with suppress(InvalidRequest):
        read(text)
    return thread_time() - begun


@pytest.mark.parametrize("piece", PIECES, ids=repr)
def test_texts_are_read_in_linear_time(piece):
    for before, after in (
        ("", ""),
        ('start: "x"\n// ', ""),
        ('start: "x" /', '"'),
        ('start: "', "/"),
        ("start: /[", "x/"),
    ):
        text = before + piece * (N_CHARACTERS // len(piece)) + after
        assert seconds(quoted, text) < SECONDS
        if "::=" not in text:
            assert seconds(lambda text: lark_grammar(text, "x"), text) < SECONDS


def itself(k: int) -> dict[str, Any]:
    """A schema that refers to itself ``k`` times, in every way."""
    return {
        "$defs": {
            "A": {"anyOf": [{"$ref": "#/$defs/A"}] * k},
            "B": {"anyOf": [*({"$ref": "#/$defs/B"} for _ in range(k)), {"type": "string", "maxLength": 2}]},
            "C": {"oneOf": [{"anyOf": [{"$ref": "#/$defs/C"}] * k}] * k},
        }
    }


def test_a_reference_is_followed_once():
    root = itself(128)
    for name in "AC":
        with pytest.raises(Unwritable):
            branches({"$ref": f"#/$defs/{name}"}, root)
    with pytest.raises(Unwritable, match="more than 256 branches"):
        branches({"anyOf": [{"type": "string"}] * (MAX_BRANCHES + 1)}, root)
    assert branches({"$ref": "#/$defs/B"}, itself(8)) == [{"type": "string", "maxLength": 2}]
    assert types_of({"$ref": "#/$defs/B"}, root) == {"string"}
    assert types_of({"$ref": "#/$defs/C"}, root) == frozenset()


FORCIBLE = [*DIALECTS, GENERIC]


@pytest.mark.parametrize("dialect", FORCIBLE, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("strict", [False, True])
def test_schemas_that_branch_are_written_in_linear_time(dialect, strict):
    for name in "ABC":
        schema = {**itself(60), "type": "object", "properties": {"x": {"$ref": f"#/$defs/{name}"}}, "required": ["x"]}
        calls = CallGrammar(dialect, lambda text: None, ())
        begun = thread_time()
        with suppress(UnsupportedParameter):
            calls.reply([Tool("f", schema, strict, {})], None, forced=True, parallel=False, begun="")
        assert thread_time() - begun < SECONDS


# Values of the wrong kind, and of the right one, under every keyword.
KEYWORDS = [
    "type", "enum", "const", "format", "pattern", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum",
    "multipleOf", "items", "prefixItems", "minItems", "maxItems", "properties", "required", "additionalProperties",
    "patternProperties", "anyOf", "oneOf", "allOf", "not", "$ref", "$defs", "definitions", "title", "description",
    "nullable", "uniqueItems", "x-guidance", "$id", "$schema", "if", "then", "dependentSchemas",
]  # fmt: skip
NAMES = st.sampled_from(
    ["string", "integer", "number", "object", "array", "boolean", "null", "bogus", "#", "#/$defs/a", "a", "("]
)
ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.sampled_from([8.0, 1.5, 1e300, -0.0, 2**70]) | NAMES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KEYWORDS, "a", "b"]), inner, max_size=3)
    ),
    max_leaves=8,
)
SCHEMAS = st.dictionaries(st.sampled_from(KEYWORDS), ODD, min_size=1, max_size=4)


def outcome(asked: Asked) -> None:
    found = written(asked, TOKENIZER)
    assert isinstance(found, str | Refusal)
    if isinstance(found, Refusal):
        assert "\n" not in found.message
        assert "%json" not in found.message
        assert found.error().status == 400


@settings(max_examples=150, deadline=None)
@given(SCHEMAS | ODD, st.sampled_from(["json_schema", "response_format", "loose", "object", "guided", "outputs"]))
def test_malformed_schemas_are_refused_in_fields(schema, kind):
    outcome(
        Asked(
            {
                "json_schema": {"json_schema": schema},
                "response_format": {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}},
                "loose": {
                    "response_format": {"type": "json_schema", "json_schema": {"schema": schema, "strict": False}}
                },
                "object": {"response_format": {"type": "json_object", "schema": schema}},
                "guided": {"guided_json": json.dumps(schema)},
                "outputs": {"structured_outputs": {"json": schema, "disable_any_whitespace": False}},
            }[kind]
        )
    )


@settings(max_examples=150, deadline=None)
@given(SCHEMAS, SCHEMAS, st.booleans(), st.sampled_from(FORCIBLE))
def test_malformed_schemas_are_refused_in_tools(whole, inner, strict, dialect):
    for parameters in (whole, {"type": "object", "properties": {"x": inner}, "required": ["x"], "$defs": {"a": whole}}):
        tool = Tool("f", parameters, strict, {}, path="tools[3].function")
        outcome(Asked({}, Letters(dialect, {}, ()), (tool,), forced=True))


@settings(max_examples=100, deadline=None)
@given(
    st.text(st.sampled_from('start:ab"/[](){}|*+?~\\ \n%#:=rotlj.,<>&@!-'), max_size=40),
    st.sampled_from(["grammar", "guided_regex", "structured_outputs", "lark", "regex"]),
)
def test_malformed_grammars_are_refused(text, kind):
    if kind in ("lark", "regex"):
        schema = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
        tool = Tool("f", schema, False, {}, f"start: {text}" if kind == "lark" else text, kind)
        for dialect in (GENERIC, next(dialect for dialect in DIALECTS if dialect.name == "qwen-xml")):
            outcome(Asked({}, Letters(Dialect(name="x", forms=dialect.forms, reasoning=()), {}, ()), (tool,)))
    elif kind == "structured_outputs":
        outcome(Asked({kind: {"grammar": f"root ::= {text}"}}))
    else:
        outcome(Asked({kind: text or "a"}))
