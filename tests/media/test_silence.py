"""Where sound is cut: every sample is in one piece, no piece is too long or too short, and pauses are found."""

from __future__ import annotations

import struct
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamafast.media.silence import LEAST_SECONDS, ends_of_pieces, to_pcm16
from llamafast.media.sound_pieces import CutSamples

RATE = 1000
MOST = 6.0
# a loudness, for how many tenths of a second
STRETCHES = st.lists(st.tuples(st.sampled_from([0.0, 0.001, 0.1, 0.9]), st.integers(1, 60)), min_size=1, max_size=14)


def sound(stretches: list[tuple[float, int]], rate: int = RATE) -> array[float]:
    parts = [level * np.sin(np.arange(tenths * rate // 10) * 0.7) for level, tenths in stretches]
    return array("f", np.concatenate(parts).astype(np.float32).tobytes())


@pytest.mark.law
@given(stretches=STRETCHES, rate=st.sampled_from([RATE, 8000, 777]))
def test_pieces_are_all_of_it_and_none_is_too_long_or_too_short(stretches: list[tuple[float, int]], rate: int) -> None:
    samples = sound(stretches, rate)
    ends = ends_of_pieces(samples, rate, MOST)
    lengths = np.diff([0, *ends])
    assert ends[-1] == len(samples)
    assert max(lengths) <= MOST * rate
    if len(samples) <= MOST * rate:
        assert ends == [len(samples)]
    else:
        assert min(lengths) >= LEAST_SECONDS * rate - 1


@pytest.mark.law
@given(before=st.integers(32, 50), pause=st.integers(3, 8), behind=st.integers(20, 60))
def test_a_pause_where_a_piece_may_end_is_where_it_ends(before: int, pause: int, behind: int) -> None:
    """Talk, a pause of some tenths, talk: longer than a piece together."""
    samples = sound([(0.5, before), (0.0, pause), (0.5, behind)])
    ends = ends_of_pieces(samples, RATE, MOST)
    if len(samples) > MOST * RATE and (before + pause) * 100 <= len(samples) - LEAST_SECONDS * RATE:
        assert before * 100 <= ends[0] <= (before + pause) * 100


def test_of_pauses_the_last_that_a_piece_has_room_for() -> None:
    samples = sound([(0.5, 35), (0.0, 5), (0.5, 10), (0.0, 5), (0.5, 100)])
    first, *_ = ends_of_pieces(samples, RATE, MOST)
    assert 5000 <= first <= 5500


def test_what_is_no_number_is_quiet() -> None:
    samples = array("f", [float("nan"), float("inf")] * 5000)
    ends = ends_of_pieces(samples, RATE, MOST)
    assert ends[-1] == len(samples)
    pcm = memoryview(bytearray(2 * len(samples)))
    to_pcm16(samples, pcm)
    assert set(np.frombuffer(pcm, np.int16).tolist()) == {0, 32767}


def test_samples_of_16_bits_come_back_as_they_were() -> None:
    given_samples = np.arange(-32768, 32768, dtype=np.int16)
    pcm = memoryview(bytearray(2 * len(given_samples)))
    to_pcm16(array("f", (given_samples / 32768).astype(np.float32).tobytes()), pcm)
    assert np.array_equal(np.frombuffer(pcm, np.int16), given_samples)


def test_a_piece_is_a_wav_file() -> None:
    samples = CutSamples(16000, (3, 5), memoryview(struct.pack("<5h", 1, 2, 3, 4, 5)))
    assert samples.is_whole
    first, second = samples.wav(0), samples.wav(1)
    assert (first[:4], first[8:16], len(first)) == (b"RIFF", b"WAVEfmt ", 44 + 6)
    assert struct.unpack("<I", second[4:8]) == (len(second) - 8,)
    assert struct.unpack("<HHIIHH", second[20:36]) == (1, 1, 16000, 32000, 2, 16)
    assert struct.unpack("<2h", second[44:]) == (4, 5)


@pytest.mark.parametrize("ends", [(3, 3), (5, 3), (3, 4), (3, 6), (0, 5)])
def test_pieces_that_miss_samples_are_not_taken(ends: tuple[int, ...]) -> None:
    assert not CutSamples(16000, ends, memoryview(bytes(10))).is_whole
