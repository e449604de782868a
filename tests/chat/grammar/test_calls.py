"""Grammars of calls: what they let through is what the dialect's parser reads as calls that fit the schema."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import jsonschema
import pytest
from support.fake_engine import BOS, EOS, ByteTokenizer

from llamafast.api.responses.custom_input import INPUT, CustomInput
from llamafast.chat.grammar.calls import CallGrammar
from llamafast.chat.grammar.compiler import compiled, grammar_text, grammar_tokenizer
from llamafast.chat.grammar.requested import json_schema_grammar
from llamafast.chat.reply.deltas import assemble
from llamafast.chat.reply.dialects.forms import CallForm, Dialect
from llamafast.chat.reply.dialects.parser import DialectParser
from llamafast.chat.reply.dialects.tables import DIALECTS, GENERIC
from llamafast.chat.tools import Tool
from llamafast.errors import UnsupportedParameter

TOKENIZER = grammar_tokenizer(ByteTokenizer())
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": {"enum": ["c", "f"]},
        "days": {"$ref": "#/$defs/days"},
        "deep": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer", "minimum": 0, "maximum": 9}},
}
TOOLS = (
    Tool("get_weather", WEATHER, True, {}),
    Tool("noop", {"type": "object", "properties": {}, "additionalProperties": False}, True, {}),
)
FORCIBLE = [*DIALECTS, GENERIC]


def matcher(dialect: Dialect, tools: tuple[Tool, ...] = TOOLS, answer: Any = None, **options: Any) -> Any:
    grammar = CallGrammar(dialect, lambda text: None, ())
    grammars = grammar.reply(tools, answer, **{"forced": False, "parallel": False, "begun": ""} | options)
    return start_of(grammars)


def start_of(grammars: Any) -> Any:
    found = compiled(TOKENIZER, grammar_text(grammars))
    assert not isinstance(found, str), found
    return found


def allowed_bytes(walk: Any) -> list[int]:
    mask = walk.compute_bitmask()
    return [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]


def written(walk: Any, rng: random.Random, end: bytes) -> str:
    """A text that the grammar allows, drawn at random: mostly letters and what ends things, free text ``end``."""
    out = bytearray()
    while not walk.is_stopped() and len(out) < 4000:
        if end and rng.random() < 0.1 and walk.validate_tokens(list(end)) == len(end):
            walk.consume_tokens(list(end))
            out += end
            continue
        allowed = allowed_bytes(walk)
        if not allowed or (walk.is_accepting() and rng.random() < 0.5):
            break
        closing = [byte for byte in allowed if byte in b'}"]<,)']
        plain = [byte for byte in allowed if 97 <= byte < 123 or 48 <= byte < 58] or allowed
        byte = rng.choice(closing if closing and rng.random() < 0.5 else plain)
        assert walk.consume_token(byte)
        out.append(byte)
    return out.decode()


@pytest.mark.parametrize("dialect", FORCIBLE, ids=lambda dialect: dialect.name)
def test_a_forced_reply_is_read_as_calls_that_fit(dialect):
    dialect = Dialect(name=dialect.name, forms=dialect.forms, channels=dialect.channels, reasoning=())
    start = matcher(dialect, forced=True, parallel=True)
    schemas = {tool.name: tool.parameters for tool in TOOLS}
    called = set()
    for seed in range(12):
        walk = start.deep_copy()
        text = written(
            walk, random.Random(seed), (dialect.forms[0].value_end or dialect.forms[0].string_quote).encode()
        )
        if not walk.is_accepting():
            continue
        parser = DialectParser(dialect, TOOLS)
        message = assemble(parser.feed(text) + parser.finish())
        assert message.tool_calls, text
        assert not message.content.strip(), text
        for call in message.tool_calls:
            jsonschema.validate(json.loads(call.arguments), schemas[call.name])
            called.add(call.name)
    assert called == set(schemas)


BOUNDED = {
    "type": "object",
    "properties": {
        "code": {"type": "string", "pattern": "^[A-Z]{2}/[0-9]+$", "maxLength": 6, "description": "a code"},
        "found": {"type": "string", "pattern": "x[yz]", "maxLength": 12},
        "day": {"type": "string", "format": "date"},
        "short": {"type": "string", "minLength": 2, "maxLength": 4},
        "maybe": {"anyOf": [{"$ref": "#/$defs/brief"}, {"type": "null"}]},
        "mixed": {"enum": ["a", "bc", 1, None]},
        "either": {"type": ["string", "integer"], "maxLength": 2},
    },
    "required": ["code", "found", "day", "short", "maybe", "mixed", "either"],
    "additionalProperties": False,
    "$defs": {"brief": {"type": "string", "maxLength": 3}},
}
TAGGED = [dialect for dialect in FORCIBLE if dialect.forms[0].shape == "tagged"]


def tool(strict: bool = True, **properties: Any) -> Tool:
    return Tool("f", {"type": "object", "properties": properties, "required": [*properties]}, strict, {})


@pytest.mark.parametrize("dialect", TAGGED, ids=lambda dialect: dialect.name)
def test_strings_without_quotes_keep_their_bounds(dialect):
    tools = (Tool("put", BOUNDED, True, {}),)
    valid = jsonschema.Draft202012Validator(BOUNDED, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    start = matcher(Dialect(name=dialect.name, forms=dialect.forms, reasoning=()), tools, forced=True)
    seen = set()
    for seed in range(30):
        walk = start.deep_copy()
        text = written(
            walk, random.Random(seed), (dialect.forms[0].value_end or dialect.forms[0].string_quote).encode()
        )
        if not walk.is_accepting():
            continue
        parser = DialectParser(dialect, tools)
        (call,) = assemble(parser.feed(text) + parser.finish()).tool_calls
        arguments = json.loads(call.arguments)
        valid.validate(arguments)
        seen |= {type(arguments["maybe"]), type(arguments["mixed"]), type(arguments["either"])}
    assert seen == {str, int, type(None)}


@pytest.mark.parametrize("dialect", TAGGED, ids=lambda dialect: dialect.name)
def test_a_string_that_may_be_absent_needs_no_quotes(dialect):
    tools = (tool(text={"anyOf": [{"type": "string"}, {"type": "null"}]}),)
    form = dialect.forms[0]
    start = matcher(Dialect(name=dialect.name, forms=dialect.forms, reasoning=()), tools, forced=True)
    head = f"{form.begin}{form.before}f{form.name_end}{form.parameter_begin}text{form.key_end}"
    for value in ("a <b> c", 'say "hi"', ""):
        text = f"{head}{value}{form.value_end}{form.after}{form.end}"
        assert takes(start, text) == (len(text.encode()), True)
        parser = DialectParser(dialect, tools)
        (call,) = assemble(parser.feed(text) + parser.finish()).tool_calls
        assert json.loads(call.arguments) == {"text": value}


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "string", "format": "no-such"}, "the format 'no-such' is not known"),
        ({"type": "string", "pattern": "a(?=b)$|c"}, "has an anchor within"),
        ({"type": "string", "pattern": "("}, "cannot be read"),
        ({"type": "string", "maxLength": "3"}, "'3' is no length"),
        ({"type": "string", "contentEncoding": "base64"}, "`contentEncoding` cannot be followed"),
        ({"anyOf": [{"type": "string", "maxLength": 3}, {"type": "object"}]}, "cannot stand beside"),
        ({"anyOf": [{"type": "string"}], "minLength": 3}, "`anyOf` stands beside other keywords"),
        ({"anyOf": [{"$ref": "https://x"}, {"type": "string"}]}, "leads elsewhere"),
    ],
)
def test_strings_that_cannot_be_bounded_without_quotes(schema, reason):
    qwen = next(dialect for dialect in TAGGED if dialect.name == "qwen-xml")
    with pytest.raises(UnsupportedParameter, match=re.escape(reason)) as caught:
        matcher(qwen, (tool(text=schema),), forced=True)
    assert caught.value.param == "tools.parameters"
    assert takes(matcher(qwen, (tool(False, text=schema),), forced=True), "<tool_call>")[0] == 11


GEMMA = next(dialect for dialect in DIALECTS if dialect.forms[0].string_quote)
DEEP = {
    "type": "object",
    "properties": {
        **BOUNDED["properties"],
        "tree": {"$ref": "#/$defs/tree"},
        "list": {"type": "array", "items": {"type": "integer", "minimum": 3, "maximum": 40}, "maxItems": 3},
        "pair": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
        "any": {},
        "record": {"type": "object"},
        "size": {"type": "number", "minimum": 0},
    },
    "required": ["tree", "list", "pair", "any", "record"],
    "$defs": {
        **BOUNDED["$defs"],
        "tree": {
            "type": "object",
            "properties": {"left": {"$ref": "#/$defs/tree"}, "kind": {"enum": ["leaf", 1]}},
            "additionalProperties": False,
        },
    },
}


def test_gemmas_notation_follows_schemas():
    tools = (Tool("put", DEEP, True, {}),)
    start = matcher(Dialect(name=GEMMA.name, forms=GEMMA.forms, reasoning=()), tools, forced=True)
    valid = jsonschema.Draft202012Validator(DEEP, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    called = 0
    for seed in range(20):
        walk = start.deep_copy()
        text = written(walk, random.Random(seed), b'<|"|>')
        if walk.is_accepting():
            parser = DialectParser(GEMMA, tools)
            (call,) = assemble(parser.feed(text) + parser.finish()).tool_calls
            valid.validate(json.loads(call.arguments))
            called += 1
    assert called > 5
    call = '<|tool_call>call:put{tree:{left:{}},list:[],pair:[true,false],any:<|"|>"x"<|"|>,record:{a:[1]}}<tool_call|>'
    assert takes(start, call) == (len(call), True)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "uniqueItems": True}, "`uniqueItems` cannot be followed"),
        ({"type": "array", "minItems": 3, "maxItems": 1}, "no possible length"),
        ({"type": "object", "properties": {"a b": {}}}, "a key cannot be 'a b'"),
        ({"type": "object", "properties": {"a": {}}, "required": ["b"]}, "'b' is required"),
        ({"enum": [[1]]}, "`enum` has a value"),
        ({"type": "boolean", "minimum": 3}, "`minimum` cannot be followed"),
        ({"type": "bogus"}, "no type 'bogus'"),
        ({"minLength": 3}, "keywords and no type"),
    ],
)
def test_what_gemmas_notation_cannot_follow(schema, reason):
    with pytest.raises(UnsupportedParameter, match=re.escape(reason)):
        matcher(GEMMA, (tool(it=schema),), forced=True)
    loose = matcher(GEMMA, (tool(False, it=schema),), forced=True)
    call = '<|tool_call>call:f{it:{a:[null,<|"|>x<|"|>]}}<tool_call|>'
    assert takes(loose, call) == (len(call), True)


def patch_tool(grammar: str) -> Tool:
    schema = {"type": "object", "properties": {INPUT: {"type": "string"}}, "required": [INPUT]}
    return Tool("patch", schema, False, {}, grammar)


LINES = 'start: "<<" line+ ">>"\nline: ("+" | "-") /[^<>\\n]*/ LF\n%import common.LF'


def alone(walk: Any) -> str:
    """What has to come next, up to a choice; Harmony may think first, Kimi numbers its calls."""
    out = bytearray()
    while not walk.is_stopped() and not walk.is_accepting():
        allowed = allowed_bytes(walk)
        (byte,) = allowed if len(allowed) == 1 else set(b"c0") & set(allowed) or [-1]
        if byte < 0:
            break
        assert walk.consume_token(byte)
        out.append(byte)
    return out.decode()


@pytest.mark.parametrize("dialect", FORCIBLE, ids=lambda dialect: dialect.name)
def test_the_input_of_a_custom_tool_follows_its_grammar(dialect):
    """Whatever the dialect puts around it: in a JSON string or as it is, forced or not."""
    dialect = Dialect(name=dialect.name, forms=dialect.forms, channels=dialect.channels, reasoning=())
    tools = (patch_tool(LINES),)
    forced, free = matcher(dialect, tools, forced=True), matcher(dialect, tools)
    for given in ('<<+say("é\\\t")\n>>', "<<-\n+ \n>>"):
        walk = forced.deep_copy()
        bare = dialect.forms[0].shape == "tagged" or dialect.forms[0].string_quote
        spelled = given if bare else json.dumps(given, ensure_ascii=False)[1:-1]
        before = alone(walk)
        assert before.endswith("<<"), before
        rest = spelled.removeprefix("<<").encode()
        assert walk.try_consume_tokens(list(rest)) == len(rest), before
        text = before + rest.decode() + alone(walk)
        assert walk.is_accepting()
        parser = DialectParser(dialect, tools)
        (call,) = assemble(parser.feed(text) + parser.finish()).tool_calls
        custom = CustomInput()
        assert custom.feed(call.arguments) + custom.finish() == given
        assert takes(free, text) == (len(text.encode()), True)
        wrong = text.replace("<<", "<!").encode()
        assert takes(free, wrong.decode())[0] < len(wrong)


def takes(walk: Any, text: str) -> tuple[int, bool]:
    walk = walk.deep_copy()
    return walk.try_consume_tokens(list(text.encode())), walk.is_accepting()


CALL = '<tool_call>\n{"name": "noop", "arguments": {}}\n</tool_call>'
HERMES = Dialect(name="hermes", forms=GENERIC.forms[:1])


def test_strict_tools_constrain_calls_and_nothing_else():
    walk = matcher(HERMES)
    for text in ("Any text, {} < <tool", CALL, f"First {CALL} then more.", f"{CALL}\n{CALL}"):
        assert takes(walk, text) == (len(text), True), text
    assert takes(walk, 'x <tool_call>\n{"name": "other"')[0] == 24
    assert takes(walk, '<tool_call>\n{"name": "noop", "arguments": {"a"')[0] < 46
    loose = (Tool("noop", TOOLS[1].parameters, False, {}),)
    assert CallGrammar(HERMES, lambda text: None, ()).reply(loose, None, forced=False, parallel=True, begun="") is None


def test_an_answer_in_a_format_or_a_call():
    walk = matcher(HERMES, answer=json_schema_grammar({"type": "integer"}, "x"))
    assert takes(walk, "17") == (2, True)
    assert takes(walk, CALL) == (len(CALL), True)
    assert takes(walk, "seventeen")[0] == 0


def test_reasoning_comes_before_what_is_constrained():
    thinker = Dialect(name="x", forms=HERMES.forms, reasoning=(("<think>", "</think>"),))
    answer = json_schema_grammar({"type": "integer"}, "x")
    free = matcher(thinker, (), answer)
    assert takes(free, "17") == (2, True)
    text = "<think>so {}</think>\n\n17"
    assert takes(free, text) == (len(text), True)
    begun = matcher(thinker, (), answer, begun="<think>")
    assert takes(begun, "17")[1] is False
    assert takes(begun, "hm</think>\n17") == (13, True)
    assert takes(begun, "</think>no")[0] == 8


def test_harmony_answers_in_its_final_channel():
    harmony = next(dialect for dialect in DIALECTS if dialect.channels)
    walk = matcher(harmony, TOOLS, json_schema_grammar({"type": "integer"}, "x"))
    thought = "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant"
    for text in (thought + "<|channel|>final<|message|>17", "<|channel|>final<|message|>17"):
        assert takes(walk, text) == (len(text), True)
        parser = DialectParser(harmony, TOOLS, begun="<|start|>assistant")
        assert assemble(parser.feed(text) + parser.finish()).content == "17"
    assert takes(walk, "17")[0] == 0


def test_control_tokens_are_tokens():
    form = CallForm(shape="named", before="<s>", name_end=":", after="</s>")
    controls = {"<s>": BOS, "</s>": EOS}
    grammar = CallGrammar(Dialect(name="x", forms=(form,), reasoning=()), controls.get, [EOS])
    grammars = grammar.reply(TOOLS[1:], None, forced=True, parallel=False, begun="")
    walk = start_of(grammars)
    assert walk.try_consume_tokens(list(b"<s>")) == 0
    walk = start_of(grammars)
    # the mark that ends the reply is left to the model
    assert walk.try_consume_tokens([BOS, *b"noop:{}"]) == 8
    assert walk.is_accepting()
