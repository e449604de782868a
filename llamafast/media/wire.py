"""What the server and its process for media tell each other: msgpack in frames on a Unix socket, with descriptors."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from struct import Struct as Packing

import msgspec
from msgspec import Struct

from llamafast.engine.media import MediaKind

_LENGTH = Packing("<I")
# One file with the bytes of a medium, or with rows.
_MAX_DESCRIPTORS = 1


class Begin(Struct, tag=True, kw_only=True):
    """The first message: what to load, on which device (None: CPUs), and what of media is taken, by the names of the
    config's ``model.mtmd``."""

    model: str
    projector: str
    n_threads: int
    device: str | None
    flash_attn: int | None
    batch_max_tokens: int
    image_max_tokens: int
    image_max_pixels: int
    audio_max_seconds: float
    video_max_seconds: float
    video_max_frames: int
    encode_max_seconds: float
    n_nice: int


class Ready(Struct, tag=True, kw_only=True):
    """The answer: ``projectors`` are libmtmd's names of what encodes, ``width`` floats are a row, ``fingerprint`` is of
    all that rows depend on beside the media."""

    modalities: tuple[MediaKind, ...]
    projectors: tuple[str, ...]
    width: int
    widest_span: int
    fingerprint: str


class Refused(Struct, tag=True):
    """The other answer: why nothing can be encoded."""

    reason: str


class LayOut(Struct, tag=True, kw_only=True):
    """How the medium in the file that comes along stands in a prompt."""

    job: int
    kind: MediaKind
    low_detail: bool


class Chunk(Struct):
    """Tokens (int32), or of rows how many, over how many positions, whether causal, and their offsets."""

    tokens: bytes | None = None
    n_rows: int = 0
    n_positions: int = 0
    causal: bool = True
    offsets: bytes = b""


class LaidOut(Struct, tag=True):
    job: int
    chunks: list[Chunk]


class Encode(LayOut, tag=True, kw_only=True):
    """Make the rows of the medium in the file that comes along, but for those of the chunks in ``there``."""

    there: tuple[int, ...] = ()


class CutSound(LayOut, tag=True, kw_only=True):
    """How the sound in the file that comes along is divided into pieces of ``most_seconds`` at most."""

    most_seconds: float


class SoundCut(Struct, tag=True):
    """Its samples, int16 at ``rate`` Hz, are in the file that comes along, and each piece ends before one of ``ends``.
    Without any it is one piece as it is, and no file comes along."""

    job: int
    rate: int = 0
    ends: list[int] = []


class Drop(Struct, tag=True):
    """Nobody waits any more for how this medium stands in a prompt, or is divided: where that has not begun its file is
    closed, and it is LaidOut without chunks."""

    job: int


class Rows(Struct, tag=True):
    """Those of a chunk are in the file that comes along."""

    job: int
    chunk: int


class Done(Struct, tag=True):
    """All rows have been told; ``seconds`` of CPU went into them."""

    job: int
    seconds: float


class Failed(Struct, tag=True):
    """``text`` is for the client where the medium is at fault, for the log where it is not ``invalid``."""

    job: int
    text: str
    invalid: bool


ToChild = Begin | LayOut | CutSound | Drop | Encode
FromChild = Ready | Refused | LaidOut | SoundCut | Rows | Done | Failed


class Wire:
    """One end. ``send`` may be called by any thread, ``receive`` by one."""

    def __init__(self, connection: socket.socket, expects: object) -> None:
        self._connection = connection
        self._decoder = msgspec.msgpack.Decoder(expects)
        self._sending = threading.Lock()

    def close(self) -> None:
        """Whoever is in ``receive`` there or here is told that there will be no more."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def send(self, message: ToChild | FromChild, descriptors: Sequence[int] = ()) -> None:
        """Raises OSError where the other end is gone."""
        payload = msgspec.msgpack.encode(message)
        told = _LENGTH.pack(len(payload)) + payload
        with self._sending:
            # in one piece where there is room: each takes some of that for itself
            sent = socket.send_fds(self._connection, [told], list(descriptors))
            self._connection.sendall(memoryview(told)[sent:])

    def receive(self) -> tuple[object, list[int]] | None:
        """A message and its descriptors, which are the caller's; None where the other end is gone or talks nonsense."""
        descriptors: list[int] = []
        try:
            head, descriptors, _, _ = socket.recv_fds(self._connection, _LENGTH.size, _MAX_DESCRIPTORS)
            head += self._read(_LENGTH.size - len(head)) if head else b""
            if len(head) == _LENGTH.size:
                return self._decoder.decode(self._read(*_LENGTH.unpack(head))), descriptors
        except (OSError, msgspec.DecodeError):
            pass
        for descriptor in descriptors:
            os.close(descriptor)
        return None

    def _read(self, n: int) -> bytes:
        data = bytearray()
        while len(data) < n and (part := self._connection.recv(n - len(data))):
            data += part
        return bytes(data)
