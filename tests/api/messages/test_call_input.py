"""Arguments as models write them, and the inputs that clients get of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.anthropic_api import TOOLS, TURNS, Messages, answered
from support.fake_engine import say

from llamafast.api.messages.call_input import CallInput, whole_input

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters() | st.sampled_from('\ud83d\ude00"\\')),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def told(text: str, cuts: list[int], *, complete: bool = True) -> str:
    pieces, at = [], 0
    reader = CallInput()
    for cut in sorted(cut % (len(text) + 1) for cut in cuts):
        pieces.append(reader.read(text[at:cut]))
        at = cut
    pieces += [reader.read(text[at:]), reader.rest(complete=complete)]
    return "".join(pieces)


def strict(text: str) -> Any:
    def refused(word: str) -> None:
        raise ValueError(word)

    return json.loads(text, parse_constant=refused)


@given(VALUES, st.booleans(), st.lists(st.integers(0, 200), max_size=4))
@example({"a": "\ud83d\ude00\ud83d"}, True, [8, 11, 16])
def test_any_value_is_an_object_of_json_however_it_is_cut(value: Any, ascii_only: bool, cuts: list[int]) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "replace").decode()
    whole = told(text, cuts)
    assert whole == told(text, [])
    read = strict(whole)
    assert isinstance(read, dict)
    json.dumps(read, ensure_ascii=False).encode()
    assert bytes(whole_input(whole)) == whole.encode()
    if isinstance(value, dict) and "NaN" not in text and "Infinity" not in text and "\\ud" not in text:
        assert whole == text


@pytest.mark.parametrize(
    ("wrote", "given"),
    [
        ("[1]", '{"arguments": [1]}'),
        ('"x"', '{"arguments": "x"}'),
        ("5", '{"arguments": 5}'),
        ("null", "{}"),
        ('{"a": NaN, "b": 1e999, "c": [-Infinity]}', '{"a": "NaN", "b": "1e999", "c": ["-Infinity"]}'),
        ('{"a": "\\ud83d x \\ud83d\\ude00 \\ude00"}', '{"a": "\\ufffd x \\ud83d\\ude00 \\ufffd"}'),
        ('{"a": ' + "9" * 2000 + "}", '{"a": "' + "9" * 2000 + '"}'),
        ('{"a": ' + "9" * 30 + "}", '{"a": ' + "9" * 30 + "}"),
        ('{"a": ' + "[" * 400 + "]" * 400 + "}", '{"a": ' + "[" * 400 + "]" * 400 + "}"),
    ],
)
async def test_a_call_may_be_said_again_streamed_or_not(wrote: str, given: str) -> None:
    api = Messages()
    calls = f'<tool_call>\n{{"name": "now", "arguments": {wrote}}}\n</tool_call>'
    api.engine.script = say(*calls)
    message = await api.message(tools=TOOLS)
    assert message["stop_reason"] == "tool_use"
    assert message["content"][0]["input"] == strict(given)
    api.engine.script = say(*calls)
    events = await api.events(tools=TOOLS)
    assert "".join(event.get("delta", {}).get("partial_json", "") for event in events) == given
    said = {"role": "assistant", "content": message["content"]}
    turns = [*TURNS, said, {"role": "user", "content": [answered("4", message["content"][0]["id"])]}]
    api.engine.script = say("ok")
    await api.message(turns, tools=TOOLS)


def test_what_breaks_off_is_nothing_where_it_is_told_as_a_whole() -> None:
    assert told('[1, "', [], complete=False) == '{"arguments": [1, "'
    assert bytes(whole_input('{"arguments": [1, "')) == b"{}"
