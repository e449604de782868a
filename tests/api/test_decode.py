"""A body as JSON."""

from __future__ import annotations

import msgspec
import pytest

from llamafast.api.chat.schema import ChatRequest
from llamafast.api.decode import MAX_TOLD_CHARS, convert, parse
from llamafast.errors import InvalidRequest


@pytest.mark.parametrize("escape", [r"\ud83d", r"\uD83D"])
def test_half_a_surrogate_pair_is_found_wherever_it_is(monkeypatch: pytest.MonkeyPatch, escape: str) -> None:
    monkeypatch.setattr("llamafast.api.decode.PIECE_BYTES", 8)
    for at in range(20):
        body = f'"{"u" * at}{escape}{"u" * (20 - at)}"'.encode()
        with pytest.raises(InvalidRequest, match="without its other half"):
            parse(body)
    assert parse(rf'"{escape}\ude00 \n"'.encode()) == "\U0001f600 \n"


def test_of_a_value_that_is_none_of_a_few_its_beginning_is_told() -> None:
    """It may have megabytes, and the reply is written where all others are."""
    decoder = msgspec.json.Decoder(ChatRequest)
    for value, told in (("odd", "invalid enum value 'odd'"), ("x" * 2_000_000, f"invalid enum value '{'x' * 99}")):
        with pytest.raises(InvalidRequest) as caught:
            convert({"messages": [{}], "reasoning_format": value}, decoder)
        assert caught.value.message.startswith(f"`reasoning_format`: {told}")
        assert len(caught.value.message) < MAX_TOLD_CHARS + 100
        assert caught.value.reason == "`reasoning_format`: invalid enum value ..."
