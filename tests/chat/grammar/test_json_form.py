"""How JSON is written through a grammar: in one form, with an end, and as clients ask otherwise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.fake_engine import ByteTokenizer

from llamafast._core.model import Model
from llamafast._core.vocab import Vocab
from llamafast.chat.grammar.asked import Asked, Letters, written
from llamafast.chat.grammar.calls import CallGrammar
from llamafast.chat.grammar.compiler import acceptor, compiled, grammar_text, grammar_tokenizer
from llamafast.chat.grammar.constraints import check
from llamafast.chat.grammar.requested import json_schema_grammar, requested_grammar
from llamafast.chat.grammar.schema import MAX_NUMBER, followed
from llamafast.chat.reply.dialects.forms import Dialect
from llamafast.chat.reply.dialects.tables import DIALECTS, GENERIC
from llamafast.chat.tools import Tool
from llamafast.errors import InvalidRequest

TOKENIZER = grammar_tokenizer(ByteTokenizer())
VALUE = {"a": [1, 2.5, {"b": None}], "c": {"d": "x", "e": []}, "f": True}
OPEN = {"type": "object", "properties": {"a": {"type": "array"}, "c": {}, "f": {"type": "boolean"}}}
ONE, COMPACT = json.dumps(VALUE), json.dumps(VALUE, separators=(",", ":"))
INDENTED, WIDE = json.dumps(VALUE, indent=2), json.dumps(VALUE).replace(":", ":" + " " * 49)


def taken(fields: dict[str, Any]) -> list[str]:
    """Which of the four forms a request's grammar takes."""
    asked = requested_grammar(fields)
    assert asked is not None
    takes = acceptor(asked[0])
    forms = {"one": ONE, "compact": COMPACT, "indented": INDENTED, "wide": WIDE}
    return [name for name, text in forms.items() if takes(text)]


FIELDS = [
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": OPEN}}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": OPEN, "strict": False}}},
    {"json_schema": OPEN},
    {"guided_json": json.dumps(OPEN)},
    {"structured_outputs": {"json": OPEN}},
    {"structured_outputs": {"json_object": True}},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: "-".join(fields))
def test_all_fields_write_one_form(fields):
    assert taken(fields) == ["one"]
    assert taken(fields | {"guided_whitespace_pattern": " ?"}) == ["one", "compact"]
    outputs = fields.get("structured_outputs", {})
    free = fields | {"structured_outputs": outputs | {"disable_any_whitespace": False}}
    assert taken(free) == ["one", "compact", "indented"]
    assert taken(fields | {"structured_outputs": outputs | {"disable_any_whitespace": True}}) == ["one"]
    pattern = fields | {"structured_outputs": outputs | {"whitespace_pattern": r"\s{0,50}"}}
    assert taken(pattern) == ["one", "compact", "indented", "wide"]


@pytest.mark.parametrize("dialect", [*DIALECTS, GENERIC], ids=lambda dialect: dialect.name)
def test_arguments_are_written_in_one_form(dialect):
    """Also where a dialect writes only some values as JSON. What stands around them is the dialect's affair."""
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": 2}
    schema = {"type": "object", "properties": {"zq": numbers}, "required": ["zq"]}
    for strict in (False, True):
        calls = CallGrammar(Dialect(name="x", forms=dialect.forms, reasoning=()), lambda text: None, ())
        grammars = calls.reply([Tool("f", schema, strict, {})], None, forced=True, parallel=False, begun="")
        assert grammars is not None
        walk: Any = compiled(TOKENIZER, grammar_text(grammars))
        out = bytearray()
        while not (b"zq" in out and out.endswith(b"[")):
            mask = walk.compute_bitmask()
            allowed = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
            # Harmony may think first, Kimi numbers its calls
            (byte,) = allowed if len(allowed) == 1 else set(b"c0") & set(allowed)
            assert walk.consume_token(byte)
            out.append(byte)
        if dialect.forms[0].shape in ("object", "named") and not dialect.forms[0].string_quote:
            assert out.endswith(b'"zq": [')
        # Gemma's templates write no spaces
        separator = b"," if dialect.forms[0].string_quote else b", "
        text = b"1" + separator + b"2" + b"]"
        assert walk.validate_tokens(list(text)) == len(text)
        other = b"1" + (b", " if separator == b"," else b",") + b"2"
        assert walk.validate_tokens(list(other)) < len(other)


def test_json_is_cut_into_tokens_as_the_model_is_used_to(smollm2):
    """What a grammar forces is the vocabulary's own cut of json.dumps' text, so no other token is ever in between."""
    vocabulary = Vocab(Model(str(smollm2), vocab_only=True))
    tokenizer = grammar_tokenizer(vocabulary)
    for value in (VALUE, {"setup": "Why?", "punchline": "So."}, [{"name": "Anna", "age": 31}, {"name": "B", "age": 7}]):
        text = json.dumps(value)
        tokens = list(vocabulary.tokenize(text, add_special=False, parse_special=False))
        forced: Any = compiled(tokenizer, grammar_text([json_schema_grammar({"const": value}, "x")]))
        assert list(forced.deep_copy().compute_ff_tokens()) == tokens
        kind = "array" if isinstance(value, list) else "object"
        free: Any = compiled(tokenizer, grammar_text([json_schema_grammar({"type": kind}, "x")]))
        assert free.deep_copy().try_consume_tokens(tokens) == len(tokens)


def most(schema: dict[str, Any], digits: str, start: str = "") -> int:
    """How many of ``digits`` may follow ``start``."""
    walk: Any = compiled(TOKENIZER, grammar_text([json_schema_grammar(schema, "x")]))
    before = list(start.encode())
    assert walk.try_consume_tokens(before) == len(before)
    return int(walk.try_consume_tokens(list(digits.encode())))


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer"},
        {"type": "number"},
        {"type": ["integer", "null"]},
        {"type": "integer", "minimum": 0},
        {"type": "number", "maximum": 5e15},
        {"type": "integer", "multipleOf": 7},
        {"$ref": "#/$defs/n", "$defs": {"n": {"type": "number", "exclusiveMinimum": -3}}},
        {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "number"}]},
        {"allOf": [{"type": "integer"}]},
        {"oneOf": [{"type": "integer"}, {"type": "null"}]},
    ],
)
def test_numbers_end(schema):
    for exact in (True, False):
        grammar = json_schema_grammar(schema, "x", exact=exact)
        for digits in ("9" * 40, "1" * 40, "-" + "8" * 40, "0." + "3" * 40, "1e" + "3" * 40, "1.5E-" + "3" * 40):
            walk: Any = compiled(TOKENIZER, grammar_text([grammar]))
            assert walk.try_consume_tokens(list(digits.encode())) <= 20


def test_numbers_are_as_long_as_they_need_be():
    for number in (MAX_NUMBER, -MAX_NUMBER, 0, 1234567890123456789):
        assert check({"type": "integer"}, str(number)).result == "accepted"
        assert check({"type": "number"}, str(number)).result == "accepted"
    assert check({"type": "number"}, "-3.1415926535").result == "accepted"
    assert check({"type": "number", "minimum": 0, "maximum": 1}, "0.0000000001").result == "accepted"
    # what a schema itself asks for is not narrowed
    assert check({"type": "integer", "minimum": 10**19, "maximum": 10**19}, str(MAX_NUMBER + 1023)).result == "accepted"
    assert check({"type": "number", "multipleOf": 0.25}, "7.75").result == "accepted"
    assert check({"type": "number", "const": 12}, "12").result == "accepted"
    # merging is llguidance's: one factor of each, whatever is narrowed beside it
    both = {"allOf": [{"type": "number", "multipleOf": 5}, {"type": "number"}]}
    assert check(both, "15").result == "accepted"
    referred = {"$defs": {"n": {"type": "number"}}, "allOf": [{"$ref": "#/$defs/n"}, {"multipleOf": 3}]}
    assert check(referred, "9").result == "accepted"


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "string", "minLength": 2.0, "maxLength": 3.0}, '"ab"', '"a"'),
        ({"type": "array", "items": {"type": "integer", "minimum": 8.0}, "maxItems": 1.0}, "[8]", "[7]"),
        ({"type": "integer", "multipleOf": 1.0}, "8", "8.5"),
        ({"type": "integer", "maximum": 8.0}, "8", "9"),
        ({"type": "integer", "const": 8.0}, "8", "9"),
        ({"enum": [8.0, "x"]}, "8", "9"),
    ],
)
def test_floats_that_are_whole_are_integers(schema, good, bad):
    assert check(schema, good).result == "accepted"
    assert check(schema, bad).result == "refused"
    qwen = next(dialect for dialect in DIALECTS if dialect.name == "qwen-xml")
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    for dialect in (qwen, GENERIC):
        asked = Asked({}, Letters(dialect, {}, ()), (Tool("f", parameters, True, {}),), forced=True)
        assert isinstance(written(asked, TOKENIZER), str)


LEADS_NOWHERE = [
    {"type": "string", "pattern": "(?=a)b"},
    {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "(?<!x)y", "minLength": 1},
    {"$ref": "#/$defs/none"},
    {"$ref": "https://example.com/schema"},
    {"type": "array", "items": {"$ref": "#/$defs/none"}},
    {"type": "object", "patternProperties": {"(?=a)": {"type": "string"}}},
    {"type": "string", "format": "no-such", "contentEncoding": "base64"},
    {"anyOf": [{"$ref": "#/$defs/none"}, {"type": "string", "pattern": "\\1(a)"}]},
]


@pytest.mark.parametrize("schema", LEADS_NOWHERE, ids=json.dumps)
@pytest.mark.parametrize("dialect", [*DIALECTS, GENERIC], ids=lambda dialect: dialect.name)
def test_a_free_tool_is_followed_as_far_as_it_can_be(schema, dialect):
    parameters = {"type": "object", "properties": {"x": schema, "n": {"enum": [7]}}, "required": ["x", "n"]}
    tool = Tool("f", parameters, False, {}, path="tools[2].function")
    asked = Asked({}, Letters(dialect, {}, ()), (tool,), forced=True)
    assert isinstance(written(asked, TOKENIZER), str)


def test_what_is_left_out_of_a_schema():
    schema = {"type": "object", "properties": {"a": LEADS_NOWHERE[0], "pattern": {"$ref": "#/properties/b"}, "b": {}}}
    kept = followed(schema, exact=False)["properties"]
    assert kept == {"a": {"type": "string"}, "pattern": {"$ref": "#/properties/b"}, "b": {}}
    assert followed(schema, exact=True) == schema


def test_nothing_is_said_of_white_space_where_no_json_is_asked_for():
    for fields in (
        {"guided_whitespace_pattern": " "},
        {"structured_outputs": {"regex": "a", "whitespace_pattern": ""}},
    ):
        with pytest.raises(InvalidRequest, match="says how JSON is written"):
            requested_grammar(fields)
