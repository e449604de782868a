"""What a character of JSON counts for."""

from __future__ import annotations

import json

import pytest

from benchmarks.micro.constraints import useful

VALUE = {"a b": [1, ' x \\" : y', None], "c\n": {"d": True}}


@pytest.mark.parametrize("indent", [None, 0, 4])
def test_white_space_between_tokens_counts_for_nothing(indent):
    assert useful(json.dumps(VALUE, indent=indent)) == len(json.dumps(VALUE, separators=(",", ":")))


def test_the_text_may_break_off():
    assert useful('{ "a": " b') == len('{"a":" b')
    assert useful('{ "a": " \\') == len('{"a":" \\')
    assert useful("") == 0
