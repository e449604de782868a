"""Tools whose schemas are JSON and no schemas: a prompt, or an error that is the client's."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from chat.prompt.test_nothing_lost import ALL, text_of

from llamafast.errors import InvalidRequest

ODD: tuple[Any, ...] = (["a"], "a", 1, 1.5, True, [], {"a": ["b"]}, {"a": {"properties": [{}]}}, {"a": {"function": 1}})


@pytest.mark.parametrize("source", ALL.values(), ids=ALL)
def test_properties_may_be_any_json(source: str) -> None:
    for properties in ODD:
        for parameters in ({"properties": properties}, {"properties": {"a": {"properties": properties}}}):
            function = {"name": "now", "parameters": {"type": "object", **parameters}}
            tools = [{"type": "function", "function": function}]
            with suppress(InvalidRequest):
                assert "now" in text_of(source, [{"role": "user", "content": "hi"}], tools=tools)
