"""Errors of responses name the fields of /v1/responses, in their text too."""

from __future__ import annotations

from typing import Any

import pytest
from support.asgi_client import AsgiClient

SCHEMA = {"type": "object"}


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"input": "x" * 3000}, "your input resulted in", "input"),
        ({"min_tokens": 9, "max_output_tokens": 4}, "larger than `max_output_tokens`", "min_tokens"),
        ({"text": {"format": {"type": "banana"}}}, "`text.format.type` must be", "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "`text.format.schema` is required", "text.format"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"$ref": "#/nowhere"}}}},
            "`text.format` cannot be followed",
            "text.format",
        ),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}, "guided_regex": "a"},
            "has several: text.format, guided_regex",
            "guided_regex",
        ),
    ],
)
@pytest.mark.parametrize("path", ["responses", "responses/input_tokens"])
async def test_errors_say_what_the_client_sent(
    client: AsgiClient, path: str, fields: dict[str, Any], message: str, param: str
) -> None:
    response = await client.post(f"/v1/{path}", {"input": "Hi", **fields})
    assert (response.status, response.error["param"]) == (400, param)
    assert message in response.error["message"]
    assert not {"messages", "response_format", "max_completion_tokens"} & set(response.error["message"].split("`"))
