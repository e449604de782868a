"""The process that decodes and encodes media: ``python -m llamafast.media.child DESCRIPTOR``.

What clients send meets image decoders and libmtmd's assertions here. The process can be stopped between two steps,
bounded in memory and CPU time, killed and started again, and nobody else notices.
"""

from __future__ import annotations

import errno
import os
import queue
import socket
import sys
import threading
import time
import traceback
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import xxhash

from llamafast._core.model import Model
from llamafast._core.mtmd import Chunks, Projector, projector_kinds
from llamafast._core.vocab import Vocab
from llamafast.engine.media import MediaKind
from llamafast.errors import InvalidMedia, ModelLoadError
from llamafast.media.anonymous_file import AnonymousFile, mapped
from llamafast.media.confined import CpuLimit, bound_memory, confine
from llamafast.media.ffmpeg import frames, groups, probe_video
from llamafast.media.lane import Lane, MediumFile
from llamafast.media.picture import picture_size, read_picture
from llamafast.media.silence import ends_of_pieces, to_pcm16
from llamafast.media.sound import read_sound
from llamafast.media.wire import (
    Begin,
    Chunk,
    CutSound,
    Done,
    Drop,
    Encode,
    Failed,
    LaidOut,
    LayOut,
    Ready,
    Refused,
    Rows,
    SoundCut,
    ToChild,
    Wire,
)

# What laying a medium out may take of the CPU.
LAY_OUT_SECONDS = 30.0
# Projectors whose rows depend on their place in the prompt, or on how many pictures are before.
PLACED = frozenset({"deepseek4v", "hunyuanvl"})
# How long ffmpeg may run at one go, stopped or not.
FFMPEG_SECONDS, PROBE_SECONDS = 300.0, 30.0
# enum llama_load_mode of llama.h: weights are mapped, and never read
_LOAD_MODE_MMAP = 1
_SPLIT_MODE_NONE, _NO_GPU = 0, -1
# Pictures of any shape that a projector may make most rows of.
_SHAPES = ((64, 64), (512, 512), (1024, 1024), (4096, 4096), (4096, 512), (512, 4096))
_HASHED_AT_ONCE = 1 << 24


class Child:
    def __init__(self, wire: Wire, begin: Begin) -> None:
        """Raises ModelLoadError."""
        self._wire = wire
        self._begin = begin
        self._kinds = tuple(projector_kinds(begin.projector))
        for kind in self._kinds:
            if kind in PLACED:
                raise ModelLoadError(f"projectors of kind {kind}, whose rows depend on their place, are not served")
        # whole, and not its vocabulary alone: so libmtmd finds out whether the two fit each other
        model = Model(
            begin.model, n_gpu_layers=0, split_mode=_SPLIT_MODE_NONE, main_gpu=_NO_GPU, load_mode=_LOAD_MODE_MMAP,
            use_extra_bufts=False,
        )  # fmt: skip
        self._projector = Projector(
            model,
            begin.projector,
            n_threads=begin.n_threads,
            batch_max_tokens=begin.batch_max_tokens,
            image_max_tokens=begin.image_max_tokens,
            flash_attn=begin.flash_attn,
            device=begin.device,
        )
        self._vocab = Vocab(model)
        self._limit = CpuLimit()
        # pictures, of which a header is enough, do not wait for sound and video
        self._layouts = {of_image: Lane() for of_image in (True, False)}
        self._encodes: queue.SimpleQueue[tuple[Encode, MediumFile]] = queue.SimpleQueue()
        # of the last sound: it is laid out before it is encoded
        self._sound: tuple[tuple[int, int], array[float], memoryview] | None = None

    def ready(self) -> Ready:
        modalities: list[MediaKind] = []
        if self._projector.has_vision:
            modalities.append("image")
        if self._projector.has_audio:
            modalities.append("audio")
        if self._projector.has_vision:  # by ffmpeg, which may come later
            modalities.append("video")
        return Ready(
            modalities=tuple(modalities),
            projectors=self._kinds,
            width=self._projector.width,
            widest_span=self._widest_span(),
            fingerprint=self._fingerprint(),
        )

    def serve(self) -> None:
        """Until the server is gone."""
        for work in (self._encode_all, *(partial(self._lay_out_all, layouts) for layouts in self._layouts.values())):
            threading.Thread(target=_or_die, args=(work,), daemon=True).start()
        while (received := self._wire.receive()) is not None:
            message, descriptors = received
            if isinstance(message, Encode):
                self._encodes.put((message, MediumFile(*descriptors)))
            elif isinstance(message, LayOut):
                self._layouts[message.kind == "image"].put(message, MediumFile(*descriptors))
            elif isinstance(message, Drop) and any(lane.drop(message.job) for lane in self._layouts.values()):
                self._wire.send(LaidOut(message.job, []))

    def _widest_span(self) -> int:
        """Rows of the widest span that is not causal, of pictures of any shape and of a window of sound."""
        tried: list[Chunks] = []
        if self._projector.has_vision:
            tried += [self._projector.image(*shape) for shape in _SHAPES]
        if self._projector.has_audio:
            tried.append(self._projector.audio(30 * self._projector.sample_rate))
        spans = [chunk for chunks in tried for chunk in _told(chunks) if chunk.tokens is None and not chunk.causal]
        return max((span.n_rows for span in spans), default=0)

    def _fingerprint(self) -> str:
        digest = xxhash.xxh3_128(f"{version('llama-cpp-python')} {self._begin.image_max_tokens} ".encode())
        with Path(self._begin.projector).open("rb") as file:
            while part := file.read(_HASHED_AT_ONCE):
                digest.update(part)
        return digest.hexdigest()

    def _lay_out_all(self, layouts: Lane) -> None:
        # the clock is the process's: what is encoded meanwhile is not this one's fault
        seconds = LAY_OUT_SECONDS * (1 + self._begin.n_threads)
        while True:
            message, file = layouts.get()
            self._limit.begin(message.job, seconds)
            try:
                with file:
                    if isinstance(message, CutSound):
                        self._cut(message, file)
                        continue
                    told = [chunk for chunks in self._chunks(message, file, whole=False) for chunk in _told(chunks)]
                self._wire.send(LaidOut(message.job, told))
            except Exception as error:
                self._fail(message, error)
            finally:
                self._limit.end(message.job)

    def _cut(self, message: CutSound, file: MediumFile) -> None:
        samples, rate = self._samples(file), self._projector.sample_rate
        ends = ends_of_pieces(samples, rate, message.most_seconds)
        if len(ends) == 1:
            self._wire.send(SoundCut(message.job))
            return
        self._sound = None  # its pieces are what will be asked for
        pcm = AnonymousFile(2 * len(samples))
        to_pcm16(samples, mapped(pcm.descriptor, writable=True))
        self._wire.send(SoundCut(message.job, rate, ends), [pcm.descriptor])

    def _encode_all(self) -> None:
        while True:
            message, file = self._encodes.get()
            self._limit.begin(message.job, self._begin.encode_max_seconds)
            began = time.process_time()
            try:
                with file:
                    self._encode(message, file)
                self._wire.send(Done(message.job, time.process_time() - began))
            except Exception as error:
                self._fail(message, error)
            finally:
                self._limit.end(message.job)

    def _encode(self, message: Encode, file: MediumFile) -> None:
        first = 0
        for chunks in self._chunks(message, file, whole=True):
            for i in range(len(chunks)):
                if isinstance(chunks, Chunks) and chunks.tokens(i) is None and first + i not in message.there:
                    self._encode_chunk(message, chunks, i, first + i)
            first += len(chunks)

    def _encode_chunk(self, message: Encode, chunks: Chunks, i: int, number: int) -> None:
        n_rows = chunks.span(i)[0]
        file = AnonymousFile(4 * n_rows * self._projector.width)
        rows = mapped(file.descriptor, writable=True)
        chunks.encode(i, rows.cast("f", (n_rows, self._projector.width)))
        self._wire.send(Rows(message.job, number), [file.descriptor])

    def _chunks(self, message: LayOut, file: MediumFile, *, whole: bool) -> Iterator[Chunks | list[Chunk]]:
        """What a medium becomes, part by part; only the ``whole`` of it can be encoded."""
        match message.kind:
            case "image":
                yield self._picture(message, bytes(file.data), whole=whole)
            case "audio":
                samples = self._samples(file)
                yield self._projector.audio(len(samples), samples if whole else None)
            case "video":
                yield from self._video(file, whole=whole)

    def _picture(self, message: LayOut, data: bytes, *, whole: bool) -> Chunks:
        most, low = self._begin.image_max_pixels, message.low_detail
        if not whole:
            return self._image(*picture_size(data, most, low_detail=low))
        picture = read_picture(data, most, low_detail=low)
        return self._image(picture.width, picture.height, picture.rgb)

    def _video(self, file: MediumFile, *, whole: bool) -> Iterator[Chunks | list[Chunk]]:
        begin = self._begin
        video = probe_video(
            file.descriptor, max_frames=begin.video_max_frames, max_seconds=begin.video_max_seconds,
            deadline=PROBE_SECONDS,
        )  # fmt: skip
        shown = frames(file.descriptor, video, FFMPEG_SECONDS) if whole else None
        for group in groups(video):
            if isinstance(group, str):
                tokens = self._vocab.tokenize(group, add_special=False, parse_special=False)
                yield [Chunk(tokens.tobytes())]
            else:
                rgb = None if shown is None else b"".join(next(shown) for _ in range(group))
                yield self._image(video.width, video.height, rgb, group)

    def _image(self, width: int, height: int, rgb: bytes | None = None, n_frames: int = 1) -> Chunks:
        try:
            return self._projector.image(width, height, rgb, n_frames)
        except ValueError:
            raise InvalidMedia("the model takes no image of this shape") from None

    def _samples(self, file: MediumFile) -> array[float]:
        key, kept = file.name, self._sound
        if kept is None or kept[0] != key:
            self._sound = None  # before there are two of them
            samples = read_sound(file.data, file.descriptor, self._projector, self._begin.audio_max_seconds)
            kept = self._sound = key, samples, file.data
        return kept[1]

    def _fail(self, message: LayOut, error: Exception) -> None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            error = InvalidMedia(f"the {message.kind} takes more memory than there is for it")
        if isinstance(error, InvalidMedia):
            self._wire.send(Failed(message.job, error.message, True))
        else:
            self._wire.send(Failed(message.job, f"{type(error).__name__}: {error}", False))


def _or_die(work: Callable[[], None]) -> None:
    """Whoever waits for a thread that has ended would wait for ever; a process that has ended is started again."""
    try:
        work()
    finally:
        traceback.print_exc()
        os._exit(1)


def _told(chunks: Chunks | list[Chunk]) -> list[Chunk]:
    if isinstance(chunks, list):
        return chunks
    told = []
    for i in range(len(chunks)):
        tokens = chunks.tokens(i)
        told.append(Chunk(*((None, *chunks.span(i)) if tokens is None else (tokens,))))
    return told


def main(descriptor: int) -> None:
    confine()
    wire = Wire(socket.socket(fileno=descriptor), ToChild)
    received = wire.receive()
    if received is None or not isinstance(begin := received[0], Begin):
        return
    os.nice(begin.n_nice)
    try:
        child = Child(wire, begin)
        ready = child.ready()
    except (ModelLoadError, ValueError, RuntimeError, OSError) as error:
        wire.send(Refused(str(error)))
        return
    if begin.device is None:  # whose driver maps more than there is
        bound_memory()
    wire.send(ready)
    child.serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
