"""JSON schemas and grammars against a vocabulary of bytes."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafast.chat.grammar.compiler import compiled, grammar_text, single_bytes
from llamafast.chat.grammar.constraints import check, check_lines, place, written
from llamafast.chat.grammar.requested import constraint_fields, lark_grammar, requested_grammar
from llamafast.errors import InvalidRequest

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def walk(grammars: list[dict[str, Any]], text: str) -> tuple[int, bool]:
    """How many bytes of ``text`` are allowed and whether it may end there."""
    matcher: Any = compiled(single_bytes(), grammar_text(grammars))
    return matcher.try_consume_tokens(list(text.encode())), matcher.is_accepting()


@pytest.mark.parametrize(
    ("schema", "text", "result"),
    [
        (PERSON, '{"name": "Zoë", "age": 3}', "accepted"),
        (PERSON, '{"name":"b"}', "refused"),
        (PERSON, '{ "name": "b"}', "refused"),
        (PERSON, '{"age": 3}', "refused"),
        (PERSON, '{"name": "b", "age": -1}', "refused"),
        (PERSON, '{"name": "b", "x": 1}', "refused"),
        (PERSON, '{"name": "b"', "refused"),
        (PERSON, '{"name": "b"} ', "refused"),
        (True, "[1, {}]", "accepted"),
        ({"enum": ["a", 2]}, "2", "accepted"),
        ({"type": "string", "maxLength": 3}, '"abcd"', "refused"),
        ({"type": "string", "pattern": "^[ab]+$"}, '"abc"', "refused"),
        ({"type": "array", "items": {"$ref": "#"}}, "[[], [[]]]", "accepted"),
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


def test_branches_may_refer_to_themselves():
    def tree(kind: str) -> dict[str, Any]:
        own = {"next": {"$ref": f"#/$defs/{kind}"}, "kind": {"const": kind}}
        return {"type": "object", "properties": own, "required": list(own)}

    schema = {"oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {kind: tree(kind) for kind in "ab"}}
    # each branch excludes the other where its own `next` does, and so on for ever
    assert check(schema, '{"next": {').result == "uncompilable"
    for kind in "ab":
        schema["$defs"][kind]["required"] = ["kind"]
    assert check(schema, '{"next": {"kind": "b"}, "kind": "b"}').result == "accepted"
    assert check(schema, '{"next": {"kind": "a"}, "kind": "b"}').result == "refused"


def test_comparing_branches_takes_no_longer_than_there_are_pairs():
    def chain(name: str) -> dict[str, Any]:
        links = {f"{name}{i}": {"$ref": f"#/$defs/{name}{i + 1}"} for i in range(60)}
        return {key: {"type": "object", "properties": {"x": to, "y": to}, "required": ["x", "y"]}
                for key, to in links.items()} | {f"{name}60": {"type": "object"}}  # fmt: skip

    schema = {"oneOf": [{"$ref": "#/$defs/a0"}, {"$ref": "#/$defs/b0"}], "$defs": chain("a") | chain("b")}
    assert check(schema, "{}").result == "uncompilable"


def test_properties_may_be_called_like_keywords():
    schema = {"type": "object", "properties": {"enum": {"oneOf": [{"type": "integer"}, {"type": "string"}]}}}
    assert check(schema, '{"enum": 1}').result == "accepted"


def test_choices_may_be_many_and_begin_alike():
    said = {"guided_choice": ["x", "xy", *(f"choice {i}" for i in range(9_000))]}
    asked = requested_grammar(constraint_fields(said))
    assert asked is not None
    for text in ("x", "xy", "choice 8999"):
        assert walk([asked[0]], text) == (len(text), True)
    assert walk([asked[0]], "choice") == (6, False)


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


def test_grammars_in_both_notations():
    assert walk([lark_grammar('root ::= "a"+ [0-9]', "x")], "aaa5") == (4, True)
    assert walk([lark_grammar('start: "a"+ /[0-9]/', "x")], "aaa5") == (4, True)
    with pytest.raises(InvalidRequest, match="not a valid grammar"):
        lark_grammar('root ::= ("a"', "x")
    with pytest.raises(InvalidRequest, match="more than 800 rules"):
        lark_grammar('root ::= "a"\n' * 801, "x")


def test_the_line_protocol():
    lines = [
        json.dumps({"schema": PERSON, "data": {"name": "b"}}),
        "",
        json.dumps({"schema": PERSON, "data": {"age": 1}}),
        json.dumps({"schema": {"not": {}}, "data": 1}),
        json.dumps({"schema": True, "text": "[1"}),
        json.dumps({"schema": {"const": "\x7fé"}, "data": "\x7fé"}),
        "[]",
        "{",
    ]
    target = io.StringIO()
    verdicts = list(check_lines(io.StringIO("\n".join(lines)), target))
    results = [json.loads(line) for line in target.getvalue().splitlines()]
    assert [result["result"] for result in results] == [
        "accepted", "refused", "uncompilable", "refused", "accepted", "uncompilable", "uncompilable",
    ]  # fmt: skip
    assert [verdict.result for verdict in verdicts] == [result["result"] for result in results]
    assert results[0] == {"result": "accepted", "reason": None}
    assert results[1]["reason"].startswith("not allowed at byte")


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=4), parts, max_size=4),
    max_leaves=12,
))  # fmt: skip
def test_every_byte_of_a_value_has_its_place(value):
    """What a place names begins where the first byte with that place is, with its key before it."""
    text = written(value).encode()
    places = [place(value, at) for at in range(len(text) + 1)]
    assert places[0] == "$"
    assert places[-1] == "$"
    leaves = {"$": value}
    open_ones = [("$", value)]
    while open_ones:
        path, part = open_ones.pop()
        inside = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
        for name, inner in inside:
            step = f"[{name}]" if isinstance(part, list) else place({name: 0}, 1)[1:]
            leaves[path + step] = inner
            open_ones.append((path + step, inner))
    assert set(places) <= set(leaves)
    assert {path for path, part in leaves.items() if not isinstance(part, dict | list)} <= set(places)
