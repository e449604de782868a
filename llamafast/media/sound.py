"""Sound → samples at the rate that a projector takes, by libmtmd's own decoders."""

from __future__ import annotations

from array import array
from contextlib import suppress
from typing import TYPE_CHECKING

from llamafast.errors import InvalidMedia
from llamafast.media.ffmpeg import found, read_samples

if TYPE_CHECKING:
    from llamafast._core.mtmd import Projector

FORMATS = ("WAV", "MP3", "FLAC")
# What browsers and telephones record.
MORE_FORMATS = "WebM, M4A, Ogg"
# Shorter sound has no frame that an encoder could see; of one sample libmtmd ends the process.
LEAST_SECONDS = 0.05
FFMPEG_SECONDS = 60.0


def read_sound(data: memoryview, descriptor: int, projector: Projector, max_seconds: float) -> array[float]:
    """The sound in ``data``, which the open file ``descriptor`` holds: mono, float32. Raises InvalidMedia."""
    samples = array("f")
    _check_claim(bytes(data[:26]), max_seconds)
    if _is_known(bytes(data[:12])):
        with suppress(ValueError):
            samples = projector.decode_audio(data)
    elif found():
        samples = read_samples(descriptor, projector.sample_rate, max_seconds=max_seconds, deadline=FFMPEG_SECONDS)
    if not samples:
        more = "" if found() else f"; {MORE_FORMATS} and others need ffmpeg, which is not on this machine"
        raise InvalidMedia(f"the audio cannot be read; formats: {', '.join(FORMATS)}{more}")
    seconds = len(samples) / projector.sample_rate
    if seconds < LEAST_SECONDS:
        raise InvalidMedia(f"the audio is shorter than {LEAST_SECONDS} s")
    if seconds > max_seconds:
        raise InvalidMedia(f"the audio has {seconds:.0f} s; at most {max_seconds:g} are taken")
    return samples


def _check_claim(head: bytes, max_seconds: float) -> None:
    """A FLAC's first block says how many samples there are: 20 bits of rate, 8 of others, 36 of that. They are all made
    room for before any is decoded. Raises InvalidMedia."""
    if head[:4] == b"fLaC" and len(head) == 26:
        told = int.from_bytes(head[18:26], "big")
        rate, n_samples = told >> 44, told & ((1 << 36) - 1)
        if n_samples > max_seconds * max(rate, 1):
            raise InvalidMedia(f"the audio says that it has {n_samples} samples; at most {max_seconds:g} s are taken")


def _is_known(head: bytes) -> bool:
    """By what files begin with: whatever else there is libmtmd would hand to ffmpeg as a video."""
    wav = head[:4] == b"RIFF" and head[8:12] == b"WAVE"
    mp3 = head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)
    return wav or mp3 or head[:4] == b"fLaC"
