"""Constrained answers of real servers."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import langchain_openai
import openai
import pydantic
import pytest

from llamafast.chat.grammar.constraints import check


@pytest.fixture
def tiny(tiny_server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{tiny_server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def real(smollm2_server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{smollm2_server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


class Person(pydantic.BaseModel):
    name: str
    age: int


N_FORCED = 24
SCHEMA = {**Person.model_json_schema(), "additionalProperties": False}


def test_the_client_parses_a_model_of_pydantic(real):
    answer = real.chat.completions.parse(
        model="smollm2-135m",
        messages=[{"role": "user", "content": "Anna is 31 years old. Who is she?"}],
        response_format=Person, temperature=0, max_tokens=60,
    )  # fmt: skip
    assert isinstance(answer.choices[0].message.parsed, Person)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_langchain_gets_its_structured_output(smollm2_server, method):
    model = langchain_openai.ChatOpenAI(
        base_url=f"http://127.0.0.1:{smollm2_server.port}/v1", api_key="none", model="smollm2-135m", temperature=0,
        max_completion_tokens=100, max_retries=0,
    )  # fmt: skip
    question = 'Write JSON: {"name": "Anna", "age": 31}'
    if method == "json_mode":
        assert isinstance(model.with_structured_output(None, method=method).invoke(question), dict)
    else:
        assert isinstance(model.with_structured_output(Person, method=method).invoke(question), Person)


def test_what_a_client_predicts_is_drafted_under_its_schema(real):
    """Whether that is right or wrong, the answer is the same."""
    options = {
        "model": "smollm2-135m", "temperature": 0, "max_tokens": 60,
        "messages": [{"role": "user", "content": "Anna Featherstone of Ljubljana is 31. Who is she?"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
    }  # fmt: skip
    alone = real.chat.completions.create(**options)
    text = alone.choices[0].message.content
    for predicted, least, most in ((text, 5, 60), (text.replace(":", " :"), 0, 60), ("no JSON at all", 0, 0)):
        answer = real.chat.completions.create(**options, prediction={"type": "content", "content": predicted})
        assert answer.choices[0].message.content == text
        assert answer.usage.completion_tokens == alone.usage.completion_tokens
        assert least <= answer.usage.completion_tokens_details.accepted_prediction_tokens <= most


def test_a_stream_is_the_same_text(real):
    options = {
        "model": "smollm2-135m", "messages": [{"role": "user", "content": "Describe a cat as JSON."}],
        "temperature": 0, "max_tokens": 80,
        "response_format": {"type": "json_schema", "json_schema": {"name": "cat", "schema": SCHEMA}},
    }  # fmt: skip
    whole = real.chat.completions.create(**options).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in real.chat.completions.create(**options, stream=True)]
    assert "".join(pieces) == whole
    Person.model_validate_json(whole)


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"guided_choice": ["yes", "no"]}, ("yes", "no")),
        ({"guided_regex": "[ab]{3}c"}, [a + b + c + "c" for a in "ab" for b in "ab" for c in "ab"]),
        ({"grammar": 'root ::= "left" | "right"'}, ("left", "right")),
        ({"structured_outputs": {"choice": ["x", "xy"]}}, ("x", "xy")),
        ({"guided_json": {"enum": ["é", 1]}}, ('"é"', "1")),
        ({"json_schema": {"const": [1]}}, ("[1]",)),
    ],
)
def test_the_other_fields(tiny, fields, allowed):
    answer = tiny.completions.create(model="tiny/llama", prompt="a", max_tokens=200, n=4, extra_body=fields)
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert choice.text in allowed or json.loads(choice.text) in map(json.loads, allowed)


def random_schema(rng: random.Random, depth: int = 0) -> dict:
    kind = rng.choice(["integer", "string", "boolean", "enum", "object", "array"] if depth < 3 else ["boolean", "enum"])
    if kind == "enum":
        return {"enum": rng.sample(["red", "green", 1, None, "ü"], rng.randint(1, 4))}
    if kind == "string":
        return {"type": "string", "maxLength": rng.randint(1, 12)}
    if kind == "integer":
        return {"type": "integer", "minimum": -rng.randint(0, 50), "maximum": rng.randint(50, 5000)}
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth + 1), "maxItems": rng.randint(1, 3)}
    if kind == "boolean":
        return {"type": "boolean"}
    named = {name: random_schema(rng, depth + 1) for name in rng.sample("abcdefgh", rng.randint(1, 4))}
    required = rng.sample(sorted(named), rng.randint(1, len(named)))
    return {"type": "object", "properties": named, "required": required, "additionalProperties": False}


@pytest.mark.parametrize("n", [100, pytest.param(500, marks=pytest.mark.heavy)])
def test_hundreds_of_schemas_at_temperature_one(tiny, n):
    """Whatever the weights want to say: an answer that ended is valid, one that was cut is the beginning of one."""

    def one(seed: int) -> tuple[dict, str, str]:
        schema = random_schema(random.Random(seed))
        answer = tiny.chat.completions.create(
            model="tiny/llama", messages=[{"role": "user", "content": f"{seed}"}],
            temperature=1, seed=seed, max_tokens=60,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}},
        )  # fmt: skip
        return schema, answer.choices[0].message.content, answer.choices[0].finish_reason

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(n)))
    ended = 0
    for schema, text, reason in answers:
        if reason == "stop":
            ended += 1
            jsonschema.validate(json.loads(text), schema)
        else:
            # the last token may have completed it
            verdict = check(schema, text)
            assert verdict.reason is None or verdict.reason.startswith("not complete"), (schema, text)
    assert ended > 0.4 * n


def record(**named: dict) -> dict:
    return {"type": "object", "properties": named, "required": list(named), "additionalProperties": False}


NAME, NUMBER = {"type": "string", "maxLength": 16}, {"type": "number"}
BOUNDED = {
    "city": record(city=NAME, days={"type": "integer", "minimum": 1, "maximum": 14}, units={"enum": ["C", "F"]}),
    "numbers": record(count={"type": "integer"}, price=NUMBER, share={"type": "number", "minimum": 0, "maximum": 1}),
    "array": {"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 5},
    "nested": record(
        who=record(name=NAME, age={"type": "integer"}), tags={"type": "array", "items": NAME, "maxItems": 3}
    ),
    "either": {
        "anyOf": [record(kind={"const": "circle"}, r=NUMBER), record(kind={"const": "box"}, w=NUMBER, h=NUMBER)]
    },
}


def test_bounded_answers_end(real):
    """A small model at temperature 1 loses its way wherever it may: where all is bounded it may nowhere."""

    def one(name: str, seed: int) -> None:
        answer = real.chat.completions.create(
            model="smollm2-135m", messages=[{"role": "user", "content": "Describe what you like as JSON."}],
            temperature=1, seed=seed, max_tokens=200,
            response_format={"type": "json_schema", "json_schema": {"name": name, "schema": BOUNDED[name]}},
        )  # fmt: skip
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert reason == "stop", text
        jsonschema.validate(json.loads(text), BOUNDED[name])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, *zip(*((name, seed) for name in BOUNDED for seed in range(3)), strict=True)))


def test_bombs_cost_their_sender_only(tiny):
    bombs = [
        {"enum": [f"value {i}" for i in range(50_000)]},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(4_000)}},
        {"$ref": "#"},
    ]
    for bomb in bombs:
        with pytest.raises(openai.BadRequestError) as caught:
            tiny.completions.create(model="tiny/llama", prompt="a", max_tokens=9, extra_body={"guided_json": bomb})
        assert caught.value.param == "guided_json" or "too complex" in caught.value.message
    assert tiny.completions.create(model="tiny/llama", prompt="a", max_tokens=3).choices[0].finish_reason == "length"


@pytest.mark.heavy
def test_forced_calls_on_random_tools(real):
    """Whatever the tools: the model calls one of them with arguments that fit."""

    def one(seed: int) -> tuple[dict, object]:
        rng = random.Random(seed)
        schemas = {}
        for k in range(rng.randint(1, 3)):
            names = rng.sample(["city", "unit", "count", "flag"], rng.randint(1, 3))
            kinds = [{"enum": ["a", "b"]}, {"type": "integer", "minimum": 0, "maximum": 99}, {"type": "boolean"}]
            schemas[f"tool_{seed}_{k}"] = {
                "type": "object", "properties": {name: rng.choice(kinds) for name in names},
                "required": names, "additionalProperties": False,
            }  # fmt: skip
        tools = [{"type": "function", "function": {"name": n, "parameters": s}} for n, s in schemas.items()]
        name = rng.choice(sorted(schemas))
        named = {"type": "function", "function": {"name": name}}
        answer = real.chat.completions.create(
            model="smollm2-135m", messages=[{"role": "user", "content": "Use a tool."}], tools=tools, max_tokens=90,
            tool_choice=rng.choice(["required", named]), temperature=1, seed=seed,
        )  # fmt: skip
        return schemas, answer.choices[0]

    with ThreadPoolExecutor(8) as pool:
        for schemas, choice in pool.map(one, range(N_FORCED)):
            assert choice.finish_reason == "tool_calls"
            (call,) = choice.message.tool_calls
            jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])
