"""Tools and choices of tools in /v1/responses that cannot be used: an error that names the place in the request."""

from __future__ import annotations

from typing import Any

import pytest
from support.asgi_client import AsgiClient

from llamafast.api.responses.tools import ToolTable
from llamafast.errors import InvalidRequest

URL = "/v1/responses"
FUNCTION = {"type": "function", "name": "get_weather", "parameters": {"type": "object", "properties": {}}}
IMPOSSIBLE = {**FUNCTION, "strict": True, "parameters": {"not": {}}}
USER = {"role": "user", "content": "Hi"}


def namespace(*tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "namespace", "name": "n", "tools": list(tools)}


def additional(*tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "additional_tools", "role": "developer", "tools": list(tools)}


def allowed(*tools: dict[str, Any]) -> dict[str, Any]:
    return {"type": "allowed_tools", "mode": "auto", "tools": list(tools)}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": "x", "tools": [{}]}, "tools[0].type"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
        ({"input": "x", "tools": [{"type": "custom", "name": "c", "format": "grammar"}]}, "tools[0].format"),
        ({"input": "x", "tools": [FUNCTION, FUNCTION]}, "tools[1].name"),
        ({"input": "x", "tools": [{"type": "namespace", "name": "n"}]}, "tools[0].tools"),
        ({"input": "x", "tools": [namespace({})]}, "tools[0].tools[0].type"),
        ({"input": "x", "tools": [namespace(FUNCTION, {"type": "web_search"})]}, "tools[0].tools[1].type"),
        ({"input": "x", "tools": [namespace({"type": "local_shell"})]}, "tools[0].tools[0].type"),
        ({"input": "x", "tools": [namespace({"type": "namespace"})]}, "tools[0].tools[0].type"),
        ({"input": "x", "tools": [namespace({"type": "namespace", "tools": 5})]}, "tools[0].tools[0].type"),
        ({"input": "x", "tools": [namespace(namespace(FUNCTION))]}, "tools[0].tools[0].type"),
        ({"input": "x", "tool_choice": "banana"}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": ["function"]}}, "tool_choice"),
        ({"input": "x", "tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice.tools"),
        ({"input": "x", "tools": [FUNCTION], "tool_choice": allowed({"type": {"a": 1}})}, "tool_choice"),
        ({"input": [{"type": "additional_tools"}]}, "input[0].tools"),
        ({"input": [USER, additional({"type": "function"})]}, "input[1].tools[0].name"),
        ({"input": [USER, additional(FUNCTION, FUNCTION)]}, "input[1].tools[1].name"),
        ({"input": [USER, additional(namespace({}))]}, "input[1].tools[0].tools[0].type"),
    ],
)
async def test_unusable_tools(client: AsgiClient, fields: dict[str, Any], param: str) -> None:
    for path in (URL, f"{URL}/input_tokens"):
        response = await client.post(path, fields)
        assert (response.status, response.error["param"]) == (400, param)


async def test_a_schema_that_nothing_fits_is_named_by_its_item(client: AsgiClient) -> None:
    response = await client.post(URL, {"input": [USER, additional(IMPOSSIBLE)], "tools": [FUNCTION]})
    assert (response.status, response.error["param"]) == (400, "input[1].tools[0].parameters")


def test_items_of_earlier_responses_do_not_count() -> None:
    with pytest.raises(InvalidRequest) as caught:
        ToolTable((), [additional(FUNCTION), USER, USER, additional(FUNCTION, {"type": "custom"})], n_before=2)
    assert caught.value.param == "input[1].tools[1].name"
