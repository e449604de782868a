"""JSON schemas and grammars against a vocabulary of bytes."""

from __future__ import annotations

import io
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.fake_engine import ByteTokenizer

from llamafast.chat.constraint import Constraints, check, check_lines
from llamafast.chat.grammar import lark_grammar
from llamafast.errors import InvalidRequest

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def walk(grammars: list[dict[str, Any]], text: str) -> tuple[int, bool]:
    """How many bytes of ``text`` are allowed and whether it may end there."""
    matcher: Any = Constraints(ByteTokenizer()).compile(grammars, "x").deep_copy()
    return matcher.try_consume_tokens(list(text.encode())), matcher.is_accepting()


@pytest.mark.parametrize(
    ("schema", "text", "result"),
    [
        (PERSON, '{"name": "Zoë", "age": 3}', "accepted"),
        (PERSON, '{\n    "name":"b"\n}', "accepted"),
        (PERSON, '{"age": 3}', "refused"),
        (PERSON, '{"name": "b", "age": -1}', "refused"),
        (PERSON, '{"name": "b", "x": 1}', "refused"),
        (PERSON, '{"name": "b"', "refused"),
        (PERSON, '{"name": "b"} ', "refused"),
        (True, "[1, {}]", "accepted"),
        ({"enum": ["a", 2]}, "2", "accepted"),
        ({"type": "string", "maxLength": 3}, '"abcd"', "refused"),
        ({"type": "string", "pattern": "^[ab]+$"}, '"abc"', "refused"),
        ({"type": "array", "items": {"$ref": "#"}}, "[[],[[]]]", "accepted"),
        (False, "1", "uncompilable"),
        ({"$ref": "#"}, "1", "uncompilable"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "1", "uncompilable"),
        ({"not": {"type": "string"}}, "1", "uncompilable"),
        ({"type": "string", "format": "no-such"}, '"a"', "uncompilable"),
    ],
)  # fmt: skip
def test_schemas(schema, text, result):
    assert check(schema, text).result == result


def test_a_refusal_names_the_byte():
    assert check(PERSON, '{"name": 1}').reason == "not allowed at byte 9: '1}'"
    assert check(PERSON, '{"na').reason == "not complete at byte 4"


def test_branches_that_exclude_each_other_are_followed_exactly():
    def kind(name: str, **more: Any) -> dict[str, Any]:
        return {"type": "object", "properties": {"kind": {"const": name}, **more}, "required": ["kind"]}

    schema = {"oneOf": [{"$ref": "#/$defs/a"}, kind("b")], "$defs": {"a": kind("a", n={"type": "integer"})}}
    assert check(schema, '{"kind": "a", "n": 3}').result == "accepted"
    assert check(schema, '{"kind": "c"}').result == "refused"
    assert check({"oneOf": [{"type": "integer"}, {"type": ["string", "null"]}]}, "null").result == "accepted"
    # 1 is an integer and a number: both branches hold
    assert check({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "1").result == "uncompilable"
    assert check({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "1", exact=False).result == "accepted"
    assert check({"const": {"oneOf": [{"type": "integer"}]}}, '{"oneOf": [{"type": "integer"}]}').result == "accepted"


def deep(n: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(n):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        deep(50_000),
        {"enum": [f"value {i}" for i in range(50_000)]},
        {"$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 8} for i in range(30)}, "$ref": "#/$defs/d0"},
        {"type": "string", "pattern": "((a{0,90}){0,90}){0,90}" * 40},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(4_000)}},
    ],
    ids=["deep", "enum", "refs", "pattern", "properties"],
)
def test_bombs_are_refused_or_bounded(schema):
    verdict = check(schema, "{")
    assert verdict.result in ("uncompilable", "refused")
    assert len(verdict.reason or "") < 700


LEAVES = (
    st.builds(lambda a, b: {"type": "integer", "minimum": min(a, b), "maximum": max(a, b)}, *[st.integers(-99, 99)] * 2)
    | st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 5))
    | st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"enum": ["a", 1, None]}, {"const": "k"}])
)
SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(lambda items, n: {"type": "array", "items": items, "maxItems": n}, inner, st.integers(0, 3))
        | st.builds(
            lambda named, k: {
                "type": "object", "properties": named, "required": sorted(named)[:k], "additionalProperties": False,
            },
            st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3).map(lambda d: dict(sorted(d.items()))),
            st.integers(0, 3),
        )
        | st.lists(inner, min_size=1, max_size=3).map(lambda branches: {"anyOf": branches})
    ),
    max_leaves=6,
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-120, 120) | st.text("ak", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from("abc"), inner, max_size=3).map(lambda d: dict(sorted(d.items())))
    ),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(SCHEMAS, VALUES)
def test_a_text_is_accepted_when_its_value_is_valid(schema, value):
    valid = jsonschema.Draft202012Validator(schema).is_valid(value)
    verdict = check(schema, json.dumps(value))
    if verdict.result != "uncompilable":
        assert (verdict.result == "accepted") == valid, (schema, value, verdict)


def test_grammars_in_both_notations():
    assert walk([lark_grammar('root ::= "a"+ [0-9]', "x")], "aaa5") == (4, True)
    assert walk([lark_grammar('start: "a"+ /[0-9]/', "x")], "aaa5") == (4, True)
    with pytest.raises(InvalidRequest, match="not a valid grammar"):
        lark_grammar('root ::= ("a"', "x")


def test_the_line_protocol():
    lines = [
        json.dumps({"schema": PERSON, "data": {"name": "b"}}),
        "",
        json.dumps({"schema": PERSON, "data": {"age": 1}}),
        json.dumps({"schema": {"not": {}}, "data": 1}),
        json.dumps({"schema": True, "text": "[1"}),
        "[]",
        "{",
    ]
    target = io.StringIO()
    check_lines(io.StringIO("\n".join(lines)), target)
    results = [json.loads(line) for line in target.getvalue().splitlines()]
    assert [result["result"] for result in results] == [
        "accepted", "refused", "uncompilable", "refused", "uncompilable", "uncompilable",
    ]  # fmt: skip
    assert results[0]["reason"] is None
    assert results[1]["reason"].startswith("not allowed at byte")
