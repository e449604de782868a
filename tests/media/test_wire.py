"""The socket to the process for media: nonsense, a server that closes, a process that cannot be started."""

from __future__ import annotations

import os
import socket
import subprocess
from contextlib import suppress

import pytest
from support.encoding import Job, begin

from llamafast.errors import EngineUnavailable
from llamafast.media.anonymous_file import AnonymousFile
from llamafast.media.process import MediaProcess
from llamafast.media.wire import Done, FromChild, Wire


def is_open(file: os.stat_result) -> bool:
    """Whether a descriptor of this process is of that file. How many there are in all other threads change."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if os.path.samestat(os.fstat(int(name)), file):
                return True
    return False


@pytest.mark.parametrize(
    "sent", [b"\x03\0\0\0\xc1\xc1\xc1", b"\x02\0\0\0\x81\x01", b"\x09\0\0\0\x81", b"\x01\0", b""], ids=repr
)
def test_what_is_no_message_is_the_end(sent: bytes) -> None:
    ours, its = socket.socketpair()
    wire = Wire(ours, FromChild)
    file = AnonymousFile.of(b"rows")
    identity = os.fstat(file.descriptor)
    assert is_open(identity)
    if sent:
        socket.send_fds(its, [sent], [file.descriptor])
    del file
    its.close()
    assert wire.receive() is None
    assert not is_open(identity)
    wire.close()


def test_a_message_comes_with_its_descriptor() -> None:
    ours, its = socket.socketpair()
    one, other = Wire(ours, FromChild), Wire(its, FromChild)
    file = AnonymousFile.of(b"rows")
    other.send(Done(1, 0.5), [file.descriptor])
    received = one.receive()
    assert received is not None
    message, (descriptor,) = received
    assert message == Done(1, 0.5)
    assert os.pread(descriptor, 10, 0) == b"rows"
    os.close(descriptor)
    one.close()
    other.close()


def test_who_comes_while_the_server_closes_is_told() -> None:
    process = MediaProcess(begin())
    process.close()
    job = Job(b"picture")
    process.encode(job)
    assert isinstance(job.error, EngineUnavailable)


def test_a_process_that_cannot_be_started_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no more processes")

    pairs = []
    socketpair = socket.socketpair

    def opened() -> tuple[socket.socket, socket.socket]:
        pairs.append(socketpair())
        return pairs[-1]

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(socket, "socketpair", opened)
    with pytest.raises(OSError, match="no more processes"):
        MediaProcess(begin()).start()
    assert [end.fileno() for pair in pairs for end in pair] == [-1, -1]
