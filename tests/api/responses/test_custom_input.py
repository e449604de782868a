"""The input of custom tools, however the arguments were cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llamafast.api.responses.custom_input import CustomInput

# the first draw of text builds hypothesis's tables
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(pieces: list[str]) -> tuple[str, str]:
    """What came while it was written, and what came at the end."""
    reader = CustomInput()
    live = "".join([reader.feed(piece) for piece in pieces])
    return live, reader.finish()


@UNHURRIED
@given(st.text(), st.booleans(), st.sampled_from([None, 2]), st.integers(1, 7))
def test_any_text_in_any_pieces(text: str, ascii: bool, indent: int | None, size: int) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=ascii, indent=indent)
    pieces = [arguments[i : i + size] for i in range(0, len(arguments), size)]
    assert read(pieces) == (text, "")


@UNHURRIED
@given(st.text(max_size=200), st.integers(1, 7))
def test_cuts_do_not_matter_for_anything_else(arguments: str, size: int) -> None:
    pieces = [arguments[i : i + size] for i in range(0, len(arguments), size)]
    assert "".join(read(pieces)) == "".join(read([arguments]))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"patch": "a\\nb"}', "a\nb"),
        ('{"input": {"a": 1}}', '{"input": {"a": 1}}'),
        ('{"a": "b", "input": "c"}', "c"),
        ('{"a": 1, "b": 2}', '{"a": 1, "b": 2}'),
        ('"just text"', "just text"),
        ("{}", "{}"),
        ("not JSON", "not JSON"),
        ("[" * 100_000, "[" * 100_000),
        ('{"input": "cut o', "cut o"),
        ('{"input": "half \\ud83d', "half "),
        ('{"input": "lone \\ud83d "}', "lone \ufffd "),
        ('{"input": "bad \\x escape"}', "bad "),
        ("{" + " " * 100 + '"input": "far"}', "far"),
    ],
)
def test_other_forms(arguments: str, text: str) -> None:
    assert "".join(read([arguments])) == text
    assert "".join(read(list(arguments))) == text
