"""What responses are made to follow, over every transport of a real server: the weights want to say anything else."""

from __future__ import annotations

import json
from typing import Any, Literal

import jsonschema
import openai
import pydantic
import pytest

from llamafast.chat.grammar.compiler import acceptor

COUNT: Any = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["n"],
    "additionalProperties": False,
}
COLOUR: Any = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
SCHEMAS = {"count": COUNT, "paint": COLOUR}
TOOLS: Any = [{"type": "function", "name": name, "parameters": schema} for name, schema in SCHEMAS.items()]
ENDS = ("response.completed", "response.incomplete", "response.failed", "error")
LINES = 'start: "<" line{1,2} ">"\nline: ("+" | "-") /[ab"\\\\]{0,3}/ LF\n%import common.LF'


@pytest.fixture
def client(tiny_server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{tiny_server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(params=["whole", "stream", "socket"])
def answer(request, client):
    """The Response that a request ends with."""

    def whole(**fields: Any) -> Any:
        return client.responses.create(**fields)

    def stream(**fields: Any) -> Any:
        with client.responses.stream(**fields) as events:
            return events.get_final_response()

    def socket(**fields: Any) -> Any:
        with client.responses.connect() as connection:
            connection.response.create(**fields)
            ends = (event for event in connection if event.type in ENDS)
            return next(ends).response

    def ask(**fields: Any) -> Any:
        kind = {"whole": whole, "stream": stream, "socket": socket}[request.param]
        return kind(model="tiny/llama", input="Do something.", temperature=1, max_output_tokens=900, **fields)

    return ask


def only_call(response: Any) -> Any:
    (call,) = response.output
    assert (response.status, call.status) == ("completed", "completed")
    return call


@pytest.mark.parametrize(
    ("choice", "allowed"),
    [
        ("required", {"count", "paint"}),
        ({"type": "function", "name": "paint"}, {"paint"}),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "count"}]}, {"count"}),
    ],
)
def test_forced_functions(answer, choice: Any, allowed: set[str]) -> None:
    call = only_call(answer(tools=TOOLS, tool_choice=choice))
    assert call.type == "function_call"
    assert call.name in allowed
    jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


def test_a_forced_function_of_a_namespace(answer) -> None:
    space: Any = {"type": "namespace", "name": "home", "description": "At home.", "tools": TOOLS[:1]}
    choice: Any = {"type": "function", "name": "count", "namespace": "home"}
    call = only_call(answer(tools=[space], tool_choice=choice))
    assert (call.name, call.namespace) == ("count", "home")
    jsonschema.validate(json.loads(call.arguments), COUNT)


@pytest.mark.parametrize(
    ("syntax", "definition", "lark"),
    [("lark", LINES, LINES), ("regex", '[ab"\n]{2,4}', 'start: /[ab"\\n]{2,4}/')],
    ids=["lark", "regex"],
)
def test_a_forced_custom_tool(answer, syntax: str, definition: str, lark: str) -> None:
    form = {"type": "grammar", "syntax": syntax, "definition": definition}
    tool: Any = {"type": "custom", "name": "edit", "format": form}
    call = only_call(answer(tools=[tool, *TOOLS], tool_choice={"type": "custom", "name": "edit"}))
    assert (call.type, call.name) == ("custom_tool_call", "edit")
    assert acceptor({"lark_grammar": lark})(call.input)


def test_text_formats(answer) -> None:
    schema = {"type": "json_schema", "name": "paint", "schema": COLOUR, "strict": True}
    response = answer(text={"format": schema})
    jsonschema.validate(json.loads(response.output_text), COLOUR)
    assert response.text.format.name == "paint"


def test_a_json_object(client) -> None:
    """It may be any: one that ends within these tokens is not certain, one that does not is a beginning."""
    response = client.responses.create(
        model="tiny/llama", input="Do something.", temperature=0, max_output_tokens=20,
        text={"format": {"type": "json_object"}},
    )  # fmt: skip
    assert response.output_text.startswith("{")
    if response.status == "completed":
        assert isinstance(json.loads(response.output_text), dict)


class Paint(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    colour: Literal["red", "blue"]


def test_the_client_parses_a_model_of_pydantic(client) -> None:
    asked: Any = {"model": "tiny/llama", "input": "Do something.", "text_format": Paint, "max_output_tokens": 900}
    assert isinstance(client.responses.parse(**asked).output_parsed, Paint)
    with client.responses.stream(**asked) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Paint)


@pytest.mark.parametrize(
    "form",
    [
        {"type": "grammar", "syntax": "lark", "definition": "start: nowhere"},
        {"type": "grammar", "syntax": "lark", "definition": 'start: "\\n" ~A\nA: "a"'},
        {"type": "grammar", "syntax": "regex", "definition": "(?=a)"},
    ],
)
def test_a_grammar_that_cannot_be_followed_is_refused(client, form: Any) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(
            model="tiny/llama", input="x", tools=[{"type": "custom", "name": "edit", "format": form}]
        )
    assert (caught.value.param or "").startswith("tools")
