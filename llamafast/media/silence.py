"""Where long sound is cut into pieces that a model takes: in its quietest moments.

In each piece's last part that moment is looked for around which a short window has the least energy, as detectors of
voice by energy look for it. Where several are as quiet the last of them is taken, so that pieces are long.
"""

from __future__ import annotations

from array import array

import numpy as np
from numpy.typing import NDArray

# What energy is summed over, and how many of these have to be quiet together: a fifth of a second, longer than the
# closure of a stop consonant, shorter than the pause between two words that are spoken apart.
FRAME_SECONDS, QUIET_FRAMES = 0.02, 10
# No piece is shorter, the last one included: of less no model makes anything but a guess.
LEAST_SECONDS = 1.0
# Of a piece the first part that is never cut.
KEPT_SHARE = 0.5
# Samples that are converted in one go.
_BLOCK = 1 << 20
# What samples of 16 bits are divided by where they are decoded: so these come back as they were.
_SCALE = 32768.0


def ends_of_pieces(samples: array[float], rate: int, most_seconds: float) -> list[int]:
    """The end of each piece, the last one ``len(samples)``: a piece has at most ``most_seconds`` (twice LEAST_SECONDS
    or more), and none is cut that is no longer. ``samples`` are float32 at ``rate`` Hz."""
    most, least = int(most_seconds * rate), int(LEAST_SECONDS * rate)
    if len(samples) <= most:
        return [len(samples)]
    frame = max(1, int(FRAME_SECONDS * rate))
    quiet = _energies(samples, frame)
    ends: list[int] = []
    start = 0
    while len(samples) - start > most:
        first = start + int(KEPT_SHARE * most)
        last = min(start + most, len(samples) - least)
        start = _quietest(quiet, frame, first, last)
        ends.append(start)
    return [*ends, len(samples)]


def to_pcm16(samples: array[float], into: memoryview) -> None:
    """``samples`` as int16, little-endian, ``into`` two bytes for each. What is louder than 1 is cut off."""
    given = np.frombuffer(samples, np.float32)
    made = np.frombuffer(into, "<i2")
    for at in range(0, len(given), _BLOCK):
        block = np.clip(np.nan_to_num(given[at : at + _BLOCK]), -1.0, 1.0) * _SCALE
        made[at : at + _BLOCK] = np.minimum(block.round(), _SCALE - 1)


def _energies(samples: array[float], frame: int) -> NDArray[np.float64]:
    """For each frame: the energy of what a cut at its beginning is in, QUIET_FRAMES on both sides of it together."""
    whole = np.frombuffer(samples, np.float32)[: len(samples) // frame * frame].reshape(-1, frame)
    energies = np.nan_to_num(np.einsum("ij,ij->i", whole, whole, dtype=np.float64))
    return np.convolve(energies, np.ones(QUIET_FRAMES), "same")


def _quietest(quiet: NDArray[np.float64], frame: int, first: int, last: int) -> int:
    """The sample from ``first`` to ``last`` where a cut hurts least."""
    low = -(-first // frame)
    high = max(low + 1, last // frame)
    among = quiet[low:high]
    at = low + len(among) - 1 - int(among[::-1].argmin())
    return min(max(at * frame, first), last)
