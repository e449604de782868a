"""Which of this process's TCP connections are closed, and when; with sockets and a clock of the test's own."""

from __future__ import annotations

import errno
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from llamafast.api import connections
from llamafast.api.connections import DESCRIPTORS, Client, Connections
from llamafast.config import ServerConfig

HEADER = 0.2
KEEP_ALIVE = 0.4
SEND = 0.6
CONFIG = ServerConfig(header_seconds=HEADER, keep_alive_seconds=KEEP_ALIVE)
PART = 0.05


class Server:
    """A listening socket, and both ends of what is connected to it. ``at`` is what time it is."""

    def __init__(
        self,
        stack: ExitStack,
        family: socket.AddressFamily = socket.AF_INET,
        *,
        now: Callable[[], float] | None = None,
    ) -> None:
        self.at = 1000.0
        self._stack = stack
        self._listener = stack.enter_context(socket.socket(family))
        self._listener.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        self._listener.listen()
        self.address = self._listener.getsockname()
        self.connections = Connections(self.address[1], CONFIG, now=now or (lambda: self.at))

    def connect(self) -> tuple[socket.socket, socket.socket, Client]:
        """The client's end, the server's, and who the client is."""
        theirs = self._stack.enter_context(socket.socket(self._listener.family))
        theirs.connect(self.address)
        ours = self._stack.enter_context(self._listener.accept()[0])
        host, port, *_ = theirs.getsockname()
        return theirs, ours, (host, str(port))

    def answer(self) -> tuple[socket.socket, socket.socket, Client, int]:
        """As ``connect``, after a request with an answer of so many bytes that was sent and is not read."""
        theirs, ours, client = self.connect()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        self.connections.begun(client)
        ours.setblocking(False)
        n_bytes = 0
        with suppress(BlockingIOError):
            while n_bytes < 2**20:
                n_bytes += ours.send(bytes(2**16))
        settle(ours)
        self.connections.ended(client, SEND)
        return theirs, ours, client, n_bytes

    def sweep(self) -> None:
        self.at += PART / 5
        self.connections.sweep()

    def sweep_for(self, seconds: float) -> None:
        until = self.at + seconds
        while self.at < until:
            self.sweep()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def server(stack: ExitStack) -> Server:
    return Server(stack)


def settle(connection: socket.socket) -> None:
    """Until the kernel has moved all that it will move of what was sent over it: it does so by a clock of its own."""
    seen, since = -1, 0.0
    while seen < 0 or time.monotonic() - since < 0.3:
        if (n_unsent := connections._n_unsent(connection.fileno())) != seen:
            seen, since = n_unsent, time.monotonic()
        time.sleep(0.01)


def drain(connection: socket.socket) -> None:
    """Read to the end of what comes."""
    while connection.recv(2**20):
        pass


def is_open(connection: socket.socket) -> bool:
    """Whether the other side has not closed it."""
    return not select.select([connection], [], [], 0)[0]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_one_without_a_request_has_time_for_its_head(stack: ExitStack, family: socket.AddressFamily) -> None:
    server = Server(stack, family)
    connection, *_ = server.connect()
    server.sweep_for(HEADER - PART)
    assert is_open(connection)
    server.sweep_for(3 * PART)
    assert connection.recv(1) == b""


def test_one_with_requests_is_left_alone_and_then_kept_alive(server: Server) -> None:
    connection, _, client = server.connect()
    server.connections.begun(client)
    server.connections.begun(client)
    server.sweep_for(HEADER + PART)
    server.connections.ended(client, SEND)
    server.sweep_for(KEEP_ALIVE + PART)
    assert is_open(connection)
    server.connections.ended(client, SEND)
    server.sweep_for(KEEP_ALIVE - PART)
    assert is_open(connection)
    server.sweep_for(3 * PART)
    assert connection.recv(1) == b""


def test_another_request_begins_the_time_again(server: Server) -> None:
    connection, _, client = server.connect()
    for _ in range(2):
        server.connections.begun(client)
        server.connections.ended(client, SEND)
        server.sweep_for(KEEP_ALIVE - PART)
    assert is_open(connection)


def test_an_answer_that_is_read_slowly_arrives_whole_and_then_time_begins(server: Server) -> None:
    connection, ours, _, n_bytes = server.answer()
    server.sweep_for(KEEP_ALIVE + SEND / 2)
    part = n_bytes // 4
    while n_bytes:
        n_bytes -= len(connection.recv(min(part, n_bytes), socket.MSG_WAITALL))
        while connections._n_unsent(ours.fileno()) > n_bytes:
            pass  # what was read is not acknowledged yet
        server.sweep_for(SEND / 3)
    server.sweep_for(KEEP_ALIVE - SEND / 3 - PART)
    assert is_open(connection)
    server.sweep_for(3 * PART)
    assert connection.recv(1) == b""


def test_an_answer_of_which_nothing_is_read_is_dropped(server: Server) -> None:
    connection, ours, *_ = server.answer()
    server.sweep_for(KEEP_ALIVE + SEND - PART)
    assert is_open(ours)
    server.sweep_for(3 * PART)
    assert not is_open(ours)
    ours.close()
    with pytest.raises(ConnectionResetError):
        drain(connection)


def test_an_answer_that_only_grows_is_not_read(server: Server) -> None:
    _, ours, *_ = server.answer()
    until = server.at + KEEP_ALIVE + SEND + 3 * PART
    while is_open(ours) and server.at < until:
        ours.send(bytes(100))
        server.sweep_for(PART)
    assert not is_open(ours)


def test_another_request_gives_what_is_unread_its_time_again(server: Server) -> None:
    _, ours, client, _ = server.answer()
    server.sweep_for(KEEP_ALIVE + SEND - PART)
    server.connections.begun(client)
    server.sweep_for(3 * PART)
    server.connections.ended(client, SEND)
    server.sweep_for(KEEP_ALIVE + SEND - PART)
    assert is_open(ours)
    server.sweep_for(3 * PART)
    assert not is_open(ours)


def test_an_unread_one_is_cut_at_once_with_what_was_not_sent(server: Server) -> None:
    connection, ours, client = server.connect()
    server.connections.begun(client)
    ours.settimeout(PART)
    with pytest.raises(TimeoutError):
        ours.sendall(bytes(2**24))
    server.connections.close(client)
    server.sweep()
    with pytest.raises(BrokenPipeError):
        ours.send(b"x")
    ours.close()
    with pytest.raises(ConnectionResetError):
        drain(connection)


def test_a_descriptor_that_is_another_connection_by_now_has_time_of_its_own(server: Server) -> None:
    _, ours, _ = server.connect()
    server.sweep_for(HEADER - PART)
    connection, next_ours, _ = server.connect()
    os.dup2(next_ours.fileno(), ours.fileno())
    next_ours.close()
    server.sweep_for(HEADER - PART)
    assert is_open(connection)
    server.sweep_for(3 * PART)
    assert connection.recv(1) == b""


def test_nothing_else_is_touched(stack: ExitStack, server: Server) -> None:
    other = Server(stack)
    elsewhere, *_ = other.connect()
    pair = socket.socketpair()
    for end in pair:
        stack.enter_context(end)
    server.sweep_for(HEADER + PART)
    assert is_open(elsewhere)
    assert is_open(pair[0])
    connection, *_ = server.connect()
    assert is_open(connection)


def test_what_is_gone_is_forgotten(server: Server) -> None:
    connection, ours, client = server.connect()
    server.connections.begun(client)
    server.connections.ended(client, SEND)
    server.sweep()
    assert server.connections._ended
    connection.close()
    ours.close()
    server.sweep()
    assert not server.connections._ended
    assert not server.connections._running
    assert not server.connections._known


def test_a_sweep_leaves_no_descriptor_behind(server: Server) -> None:
    ends = [server.connect() for _ in range(20)]
    server.sweep_for(HEADER + PART)
    assert [n_descriptors(ours) for _, ours, _ in ends] == [1] * 20
    assert all(connection.recv(1) == b"" for connection, *_ in ends)


def n_descriptors(connection: socket.socket) -> int:
    """Of that connection. How many there are of others changes: other threads of this process have some."""
    status, n = os.fstat(connection.fileno()), 0
    for name in os.listdir(DESCRIPTORS):
        with suppress(OSError):
            n += os.path.samestat(os.fstat(int(name)), status)
    return n


def no_descriptor(fd: int) -> socket.socket | None:
    raise OSError(errno.EMFILE, "too many open files")


def test_one_that_cannot_be_closed_harms_no_other(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [server.connect() for _ in range(3)]
    gone_client, gone, client = server.connect()
    server.connections.begun(client)
    server.connections.ended(client, SEND)
    server.sweep()
    gone.close()
    gone_client.close()
    duplicate = connections._duplicate
    stuck = ends[1][1].fileno()
    monkeypatch.setattr(connections, "_duplicate", lambda fd: (no_descriptor if fd == stuck else duplicate)(fd))
    server.at += HEADER + PART
    with pytest.raises(OSError, match="too many open files"):
        server.sweep()
    assert [ends[i][0].recv(1) for i in (0, 2)] == [b"", b""]
    assert is_open(ends[1][0])
    assert not server.connections._ended
    assert len(server.connections._known) == 3
    monkeypatch.undo()
    server.sweep()
    assert ends[1][0].recv(1) == b""


@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("failing", ["_duplicate", "os.listdir"])
def test_an_unread_one_is_cut_as_soon_as_that_is_possible(
    server: Server, monkeypatch: pytest.MonkeyPatch, failing: str, seen: bool
) -> None:
    _, ours, client = server.connect()
    server.connections.begun(client)
    if seen:
        server.sweep()
    with monkeypatch.context() as patch:
        patch.setattr(f"llamafast.api.connections.{failing}", no_descriptor)
        server.connections.close(client)
        with pytest.raises(OSError, match="too many open files"):
            server.sweep()
    server.sweep()
    assert not is_open(ours)
    assert not server.connections._unread


def watchers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "connections"}


@contextmanager
def watched(server: Server, sweep: Callable[[], None] | None = None) -> Iterator[threading.Thread]:
    """Whose thread ends with the block, though a server's never does. ``sweep`` is what it does in place of its own."""
    before = watchers()
    with pytest.MonkeyPatch.context() as patch:
        if sweep is not None:
            patch.setattr(server.connections, "sweep", sweep)
        server.connections.watch()
        (thread,) = watchers() - before
        try:
            yield thread
        finally:
            patch.setattr(server.connections, "sweep", sys.exit)
            patch.setattr(threading, "excepthook", threading.__excepthook__)  # to which that is no fault
            server.connections._wake.set()
            thread.join(30)
            assert not thread.is_alive()


def test_watching_takes_a_thread_that_hears_of_unread_ones_at_once(server: Server) -> None:
    server.connections._header_seconds = server.connections._keep_alive_seconds = 1e300
    _, ours, client = server.connect()
    server.connections.begun(client)
    with watched(server) as thread:
        assert thread.daemon
        assert is_open(ours)
        server.connections.close(client)
        ours.settimeout(30)
        assert ours.recv(1) == b""


def test_watching_goes_on_after_a_failure_that_is_told_once(stack: ExitStack, caplog: pytest.LogCaptureFixture) -> None:
    server = Server(stack, now=time.monotonic)
    sweeps, well, sweep = threading.Semaphore(0), threading.Event(), server.connections.sweep

    def fails() -> None:
        sweeps.release()
        if not well.is_set():
            raise RuntimeError("no such thing")
        sweep()

    with watched(server, fails):
        for _ in range(4):
            assert sweeps.acquire(timeout=30)
        assert [record.message for record in caplog.records] == ["some connections were not looked at or not closed"]
        connection, *_ = server.connect()
        well.set()
        connection.settimeout(30)
        assert connection.recv(1) == b""


def test_where_no_descriptors_are_listed_nothing_is_watched(
    stack: ExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connections, "DESCRIPTORS", "/nowhere")
    server = Server(stack)
    connection, _, client = server.connect()
    before = watchers()
    server.connections.watch()
    assert watchers() == before
    assert [record.getMessage() for record in caplog.records] == [
        "idle and unread connections are not closed: there is no /nowhere"
    ]
    server.connections.begun(client)
    server.connections.close(client)
    server.connections.ended(client, SEND)
    assert is_open(connection)
    assert not any((server.connections._running, server.connections._ended, server.connections._unread))
