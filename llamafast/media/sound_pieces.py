"""Sound that was cut: its samples, and each piece as a WAV file that is decoded as any other."""

from __future__ import annotations

from struct import Struct as Packing
from typing import NamedTuple

# RIFF, the size of what follows, WAVE; the chunk of the format: PCM, one channel, the rate, bytes a second, bytes a
# sample, bits a sample; the chunk of the samples and its size.
_HEAD = Packing("<4sI4s4sIHHIIHH4sI")
_PCM, _N_BYTES = 1, 2


class CutSamples(NamedTuple):
    """int16 samples of one channel at ``rate`` Hz, and before which sample each of the pieces ends."""

    rate: int
    ends: tuple[int, ...]
    pcm16: memoryview

    @property
    def is_whole(self) -> bool:
        """Whether every sample is in one piece, and no piece is empty."""
        starts = (0, *self.ends[:-1])
        in_order = all(start < end for start, end in zip(starts, self.ends, strict=True))
        return in_order and _N_BYTES * self.ends[-1] == len(self.pcm16)

    def wav(self, i: int) -> bytes:
        """The file of piece ``i``."""
        start, end = (0, *self.ends)[i : i + 2]
        samples = self.pcm16[_N_BYTES * start : _N_BYTES * end]
        form = (b"fmt ", 16, _PCM, 1, self.rate, _N_BYTES * self.rate, _N_BYTES, 8 * _N_BYTES)
        head = _HEAD.pack(b"RIFF", _HEAD.size - 8 + len(samples), b"WAVE", *form, b"data", len(samples))
        return b"".join([head, samples])
