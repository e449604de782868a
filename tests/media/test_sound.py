"""What sound claims of itself is looked at before room is made for it."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from llamafast.errors import InvalidMedia
from llamafast.media.sound import read_sound


def flac(rate: int, n_samples: int) -> bytes:
    """The beginning of a FLAC that claims so many samples, one channel of 16 bits."""
    told = rate << 44 | 15 << 36 | n_samples
    return b"fLaC\x00\x00\x00\x22" + bytes(10) + told.to_bytes(8, "big") + bytes(16)


class Decoder(SimpleNamespace):
    """Stands for a projector, and counts what it is asked to decode."""

    sample_rate = 16000
    asked = 0

    def decode_audio(self, data: memoryview) -> list[float]:
        self.asked += 1
        raise ValueError


@pytest.mark.parametrize("n_samples", [10 * 16000 + 1, 2**36 - 1])
def test_a_flac_that_claims_too_much_is_not_decoded(n_samples: int) -> None:
    decoder = Decoder()
    with pytest.raises(InvalidMedia, match=f"says that it has {n_samples} samples; at most 10 s are taken"):
        read_sound(memoryview(flac(16000, n_samples)), -1, decoder, 10)  # type: ignore[arg-type]
    assert not decoder.asked


def test_a_flac_that_claims_what_is_taken_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    decoder = Decoder()
    with pytest.raises(InvalidMedia, match="the audio cannot be read"):
        read_sound(memoryview(flac(16000, 10 * 16000)), -1, decoder, 10)  # type: ignore[arg-type]
    assert decoder.asked == 1
