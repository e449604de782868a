"""A body as JSON."""

from __future__ import annotations

import pytest

from llamafast.api.decode import parse
from llamafast.errors import InvalidRequest


@pytest.mark.parametrize("escape", [r"\ud83d", r"\uD83D"])
def test_half_a_surrogate_pair_is_found_wherever_it_is(monkeypatch: pytest.MonkeyPatch, escape: str) -> None:
    monkeypatch.setattr("llamafast.api.decode.PIECE_BYTES", 8)
    for at in range(20):
        body = f'"{"u" * at}{escape}{"u" * (20 - at)}"'.encode()
        with pytest.raises(InvalidRequest, match="without its other half"):
            parse(body)
    assert parse(rf'"{escape}\ude00 \n"'.encode()) == "\U0001f600 \n"
