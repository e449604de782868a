"""What Pillow and libmtmd do not read, by an ffmpeg on this machine: frames of a video, sound in other files.

It is given one open file, may open no other, and is ended where it takes too long; a playlist leads nowhere.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from array import array
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, NamedTuple, Self

from llamafast.errors import InvalidMedia

# Containers, by the names of ffmpeg's demuxers.
_FORMATS = "3gp,aac,aiff,asf,avi,caf,flac,flv,gif,m4a,matroska,mov,mp3,mp4,mpeg,mpegts,ogg,wav,webm"
# By libmtmd's helper: frames a second, the text in front, and how often one says when a frame is.
FRAMES_A_SECOND, BEGIN_TEXT, STAMP_SECONDS = 4.0, "Video:", 5.0
# More pixels a side no projector makes more rows of.
_MAX_SIDE = 1024
_SCALE = f"scale=w='if(gte(iw,ih),min(iw,{_MAX_SIDE}),-1)':h='if(gte(iw,ih),-1,min(ih,{_MAX_SIDE}))'"
_DURATION = re.compile(rb"Duration: (\d+):(\d+):(\d+(?:\.\d+)?)")
_CPU_SECONDS = 300
_LOG_BYTES = 1 << 20  # of complaints, of which a hostile file brings forth any number


class Video(NamedTuple):
    """``n_frames`` of one size, ``fps`` a second."""

    width: int
    height: int
    n_frames: int
    fps: float

    def seconds(self, frame: int) -> float:
        return frame / self.fps


def probe_video(descriptor: int, *, max_frames: int, max_seconds: float, deadline: float) -> Video:
    """How a video's frames will be, from its header and its first one. Raises InvalidMedia."""
    with _Ffmpeg(descriptor, ["-an", "-vf", _SCALE, "-frames:v", "1", *_PICTURES], deadline, "info") as probe:
        size = _picture_size(probe.output)
        probe.output.read()
    duration = _seconds(probe.told)
    if size is None:
        raise InvalidMedia("the video cannot be read")
    if duration is None:  # a stream that was never closed: count
        duration = _count(descriptor, size, max_frames, deadline) / FRAMES_A_SECOND
    if duration > max_seconds:
        raise InvalidMedia(f"the video has {duration:.0f} s; at most {max_seconds:g} are taken")
    fps = min(FRAMES_A_SECOND, max_frames / duration) if duration else FRAMES_A_SECOND
    return Video(*size, max(1, min(max_frames, int(duration * fps + 0.5))), fps)


def frames(descriptor: int, video: Video, deadline: float) -> Iterator[bytes]:
    """Each frame, (height, width, 3). The last one stands for those that the header has promised and that are missing.
    Raises InvalidMedia where there is none."""
    n_bytes, last, n = video.width * video.height * 3, b"", 0
    filters = f"fps={video.fps:.6f},{_SCALE}"
    options = ["-an", "-vf", filters, "-frames:v", str(video.n_frames), *_PIXELS]
    with _Ffmpeg(descriptor, options, deadline) as ffmpeg:
        while n < video.n_frames and len(frame := ffmpeg.output.read(n_bytes)) == n_bytes:
            last, n = frame, n + 1
            yield frame
    if not last:
        raise InvalidMedia("the video cannot be read")
    for _ in range(video.n_frames - n):
        yield last


def groups(video: Video) -> Iterator[str | int]:
    """What stands for a video in a prompt: texts, and how many frames come next, of which projectors that can make one
    picture of two."""
    yield BEGIN_TEXT
    stamp, run = 0.0, 0
    for i in range(video.n_frames):
        run += 1
        if run == 2:
            yield run
            run = 0
        if (seconds := video.seconds(i)) >= stamp:
            if run:
                yield run
                run = 0
            minutes = int(seconds // 60)
            yield f"[{minutes}m{seconds - 60 * minutes:.2f}s]"
            stamp += STAMP_SECONDS
    if run:
        yield run


def read_samples(descriptor: int, rate: int, *, max_seconds: float, deadline: float) -> array[float]:
    """Sound, mono, float32 at ``rate``: a second more than ``max_seconds`` at most. Raises InvalidMedia."""
    options = ["-vn", "-ac", "1", "-ar", str(rate), "-t", f"{max_seconds + 1:.3f}", "-f", "f32le", "pipe:1"]
    samples = array("f")
    with _Ffmpeg(descriptor, options, deadline) as ffmpeg:
        data = ffmpeg.output.read()
    samples.frombytes(data[: len(data) // 4 * 4])
    return samples


_PICTURES = ["-f", "image2pipe", "-c:v", "ppm", "pipe:1"]
_PIXELS = ["-f", "rawvideo", "-pix_fmt", "rgb24", "pipe:1"]


def found() -> str | None:
    """Where ffmpeg is."""
    return shutil.which("ffmpeg")


class _Ffmpeg:
    """ffmpeg on an open file, as a context: ``output`` is what it writes, and ``told``, behind the context, what it has
    said. Raises InvalidMedia where there is no ffmpeg."""

    def __init__(self, descriptor: int, options: list[str], deadline: float, level: str = "error") -> None:
        program = found()
        if program is None:
            raise InvalidMedia("reading this needs ffmpeg, which is not on this machine")
        self._command = [
            program, "-nostdin", "-hide_banner", "-loglevel", level, "-threads", "1",
            "-protocol_whitelist", "file,pipe", "-format_whitelist", _FORMATS,
            "-i", f"file:/dev/fd/{descriptor}", *options,
        ]  # fmt: skip
        self._descriptor = descriptor
        self._deadline = deadline
        self.told = b""

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile()
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log,
            pass_fds=[self._descriptor],
        )  # fmt: skip
        assert self._process.stdout is not None
        self.output = self._process.stdout
        self._timer = threading.Timer(self._deadline, self._process.kill)
        self._timer.daemon = True
        self._timer.start()
        if sys.platform == "linux":
            with suppress(OSError):  # it may have ended
                resource.prlimit(self._process.pid, resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS))
                resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (_LOG_BYTES, _LOG_BYTES))
        return self

    def __exit__(self, *_: object) -> None:
        """What is not read by then is not wanted."""
        ended = not self.output.read(1)
        self.output.close()
        killed = self._process.wait() < 0
        self._timer.cancel()
        with self._log:
            self._log.seek(0)
            self.told = self._log.read(1 << 16)
        if ended and killed:  # by the timer, for its CPU time, or for its complaints
            raise InvalidMedia("reading this takes too long")


def _seconds(told: bytes) -> float | None:
    if (duration := _DURATION.search(told)) is None:
        return None
    hours, minutes, seconds = duration.groups()
    return 3600 * int(hours) + 60 * int(minutes) + float(seconds)


def _picture_size(output: IO[bytes]) -> tuple[int, int] | None:
    """Of the PPM that begins there."""
    head = output.readline(64).split() + output.readline(64).split()
    try:
        return (int(head[1]), int(head[2])) if head[0] == b"P6" else None
    except (IndexError, ValueError):
        return None


def _count(descriptor: int, size: tuple[int, int], max_frames: int, deadline: float) -> int:
    n = 0
    filters = f"fps={FRAMES_A_SECOND},scale=16:16"
    options = ["-an", "-vf", filters, "-frames:v", str(max_frames), *_PIXELS]
    with _Ffmpeg(descriptor, options, deadline) as ffmpeg:
        while len(ffmpeg.output.read(16 * 16 * 3)) == 16 * 16 * 3:
            n += 1
    return n
