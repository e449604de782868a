"""A process for media that makes nothing of them: each says in its own bytes what becomes of it, a letter for each try.

``a``: it is answered, as one row of one float; ``d``: the process dies; ``h``: it is held, and never answered; ``i``:
it cannot be read; ``e``: it is encoded without rows; ``s``: it is answered behind answers for a job that nobody has
given. Behind its last letter a medium is answered. A letter that was followed is struck out in the file that all tries
share.
"""

from __future__ import annotations

import os
import socket
import struct
import sys

from llamafast.media.anonymous_file import AnonymousFile
from llamafast.media.wire import Chunk, Done, Drop, Encode, Failed, LaidOut, LayOut, Ready, Rows, ToChild, Wire

STRUCK, STRAY = b".", 1 << 30


def n_tries(file: AnonymousFile) -> int:
    """How often a process was asked for a medium."""
    return os.pread(file.descriptor, file.n_bytes, 0).count(STRUCK)


def next_letter(descriptor: int) -> bytes:
    letters = os.pread(descriptor, 100, 0)
    n = letters.count(STRUCK)
    if n == len(letters):
        return b"a"
    os.pwrite(descriptor, STRUCK, n)
    return letters[n : n + 1]


def answer(wire: Wire, message: LayOut, letter: bytes) -> None:
    row = AnonymousFile.of(struct.pack("f", 1.0))
    if letter == b"d":
        os._exit(3)
    elif letter == b"i":
        wire.send(Failed(message.job, "it cannot be read", True))
    elif letter == b"s":
        wire.send(Rows(STRAY, 0), [row.descriptor])
        wire.send(Done(STRAY, 0.0), [row.descriptor])
        wire.send(LaidOut(STRAY, []), [row.descriptor])
    if letter in b"as" and isinstance(message, Encode):
        wire.send(Rows(message.job, 0), [row.descriptor])
    if letter in b"ase":
        done = Done(message.job, 0.0) if isinstance(message, Encode) else LaidOut(message.job, [Chunk(n_rows=1)])
        wire.send(done)


def main(descriptor: int) -> None:
    wire = Wire(socket.socket(fileno=descriptor), ToChild)
    wire.receive()
    wire.send(Ready(modalities=("image", "audio"), projectors=(), width=1, widest_span=0, fingerprint="scripted"))
    while (received := wire.receive()) is not None:
        message, descriptors = received
        if isinstance(message, Drop):  # all has begun here
            continue
        (descriptor,) = descriptors
        assert isinstance(message, LayOut)
        answer(wire, message, next_letter(descriptor))
        os.close(descriptor)


if __name__ == "__main__":
    main(int(sys.argv[1]))
