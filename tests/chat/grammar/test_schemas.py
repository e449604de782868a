"""Schemas drawn at random: what the grammar lets through is what the schema means, byte for byte.

Values come from the grammar itself, by a walk through it, from the schema (hypothesis-jsonschema), and from elsewhere.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from itertools import permutations, product
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema
from jsonschema import Draft202012Validator

from llamafast.chat.grammar.compiler import compiled, grammar_text, single_bytes
from llamafast.chat.grammar.constraints import check
from llamafast.chat.grammar.requested import json_schema_grammar
from llamafast.chat.grammar.schema import MAX_NUMBER

NAMES = st.sampled_from(["a", "b", "c"])
SMALL = st.integers(0, 4)


def record(**keywords: Any) -> st.SearchStrategy[dict[str, Any]]:
    """An object with some of the keywords."""
    return st.fixed_dictionaries({}, optional=keywords)


def typed(name: str, **keywords: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"type": st.just(name)}, optional=keywords)


def in_order(named: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(named.items()))


NUMBERS = st.integers(-99, 99)
PATTERNS = st.sampled_from(["^[ab]+$", "^a", "b$", "^(foo|bar)?$", "^\\d{1,3}-[x-z]$"])
FORMATS = st.sampled_from(["date", "uuid", "ipv4", "no-such-format"])
LEAVES = (
    typed("integer", minimum=NUMBERS, maximum=NUMBERS, multipleOf=st.sampled_from([1, 2, 5]))
    | typed("number", minimum=NUMBERS, exclusiveMaximum=NUMBERS, maximum=st.sampled_from([0.5, 7.25]))
    | typed("string", minLength=SMALL, maxLength=SMALL, pattern=PATTERNS)
    | typed("string", format=FORMATS)
    | st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}, {}, True, False])
    | st.lists(st.sampled_from(["a", "é\n", 1, 1.5, None, True, [1], {"a": 1}]), min_size=1).map(lambda v: {"enum": v})
    | st.sampled_from(["k", 0, None, [], {"a": []}]).map(lambda value: {"const": value})
)
PLAIN: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: (
        typed("array", items=inner, minItems=SMALL, maxItems=SMALL, uniqueItems=st.booleans())
        | typed("array", prefixItems=st.lists(inner, min_size=1, max_size=2), items=inner, maxItems=SMALL)
        | typed(
            "object", properties=st.dictionaries(NAMES, inner, max_size=3).map(in_order),
            required=st.lists(NAMES, unique=True), additionalProperties=inner | st.just(False), minProperties=SMALL,
            maxProperties=SMALL, patternProperties=st.dictionaries(st.sampled_from(["^x", "^y"]), inner, max_size=2),
        )
        | record(anyOf=st.lists(inner, min_size=1, max_size=3), allOf=st.lists(inner, min_size=1, max_size=2))
        | record(oneOf=st.lists(inner, min_size=1, max_size=3), type=st.sampled_from(["string", "integer"]))
        | record(**{"not": inner, "if": inner, "then": inner, "contains": inner, "propertyNames": inner})
    ),
    max_leaves=6,
)  # fmt: skip
SCHEMAS = (
    PLAIN
    | PLAIN.map(lambda schema: {"$defs": {"x": schema}, "type": "array", "items": {"$ref": "#/$defs/x"}})
    | PLAIN.map(lambda schema: {"type": "array", "items": {"anyOf": [{"$ref": "#"}, schema]}, "maxItems": 2})
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-120, 120) | st.text("ab-x0", max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


# As requests have them.
SENT: dict[str, Any] = {
    "city": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 1, "maxLength": 20},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "units": {"enum": ["C", "F"]},
        },
        "required": ["city", "units"],
        "additionalProperties": False,
    },
    "booking": {
        "type": "object",
        "properties": {
            "date": {"type": "string", "pattern": "^20[0-9]{2}-[01][0-9]-[0-3][0-9]$"},
            "guests": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 1, "maxItems": 4},
            "late": {"type": ["boolean", "null"]},
        },
        "required": ["date", "guests", "late"],
        "additionalProperties": False,
    },
    "tree": {
        "$defs": {
            "leaf": {
                "type": "object",
                "properties": {"id": {"type": "integer"}, "label": {"type": "string", "maxLength": 5}},
                "required": ["id"],
                "additionalProperties": False,
            }
        },
        "type": "array",
        "items": {"$ref": "#/$defs/leaf"},
        "maxItems": 3,
    },
    "either": {"anyOf": [{"const": "none"}, {"type": "integer", "multipleOf": 5}, {"type": "null"}]},
    "counts": {
        "type": "object",
        "patternProperties": {"^x[0-9]$": {"type": "integer"}},
        "additionalProperties": False,
        "maxProperties": 3,
    },
    "anything": {"type": "array", "items": {"type": ["string", "boolean", "null", "integer"]}, "maxItems": 5},
}


def spellings(value: Any) -> Iterator[str]:
    """``value`` as JSON, its objects' members in every order: grammars take one of them."""
    if isinstance(value, dict):
        for members in permutations(value.items()):
            names = [written(name) for name, _ in members]
            for texts in product(*(list(spellings(member)) for _, member in members)):
                yield "{" + ", ".join(f"{name}: {text}" for name, text in zip(names, texts, strict=True)) + "}"
    elif isinstance(value, list):
        yield from (f"[{', '.join(texts)}]" for texts in product(*(list(spellings(item)) for item in value)))
    else:
        yield written(value)


def numbers(value: Any) -> Iterator[float]:
    """Those in ``value``: what no schema bounds is written within int64."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    elif isinstance(value, int | float):
        yield value


def written(value: Any) -> str:
    # llguidance takes U+007F for a control character
    return json.dumps(value, ensure_ascii=False).replace("\x7f", r"\u007f")


def verdict(schema: Any, value: Any) -> str:
    found = {check(schema, text).result for text in spellings(value)}
    return next(result for result in ("uncompilable", "accepted", "refused") if result in found)


def validator(schema: Any) -> Draft202012Validator:
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


@settings(max_examples=400)
@given(SCHEMAS, VALUES)
def test_a_text_is_accepted_when_its_value_is_valid(schema, value):
    result = verdict(schema, value)
    assert result == "uncompilable" or (result == "accepted") == validator(schema).is_valid(value), result


@pytest.mark.parametrize("name", SENT)
@settings(max_examples=50)
@given(st.data())
def test_what_is_valid_is_accepted(name, data):
    value = data.draw(from_schema(deepcopy(SENT[name])))  # it resolves references in place
    assume(all(abs(number) <= MAX_NUMBER for number in numbers(value)))
    assert verdict(SENT[name], value) == "accepted", value


@settings(max_examples=300)
@given(SCHEMAS, st.integers(0, 99))
def test_what_is_written_is_valid(schema, seed):
    walk = compiled(single_bytes(), grammar_text([json_schema_grammar(schema, "x")]))
    if isinstance(walk, str):
        return
    rng, text = random.Random(seed), bytearray()
    while len(text) < 300 and not walk.is_stopped() and not (walk.is_accepting() and rng.random() < 0.3):
        mask = walk.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
        if not allowed:
            break
        ending = [byte for byte in allowed if byte in b'"]}']
        text.append(rng.choice(ending if ending and rng.random() < 0.4 else allowed))
        assert walk.consume_token(text[-1])
    if walk.is_accepting():
        validator(schema).validate(json.loads(text))
