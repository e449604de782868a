"""Closes the TCP connections that nobody needs any more.

The sockets are Granian's, and what it has timers for is a request's head over HTTP/1 and a TLS handshake. It waits
without end for the first byte, for the rest of HTTP/2's preface, on an idle HTTP/2 connection and for a client that has
stopped reading. But a process can list its descriptors, and a duplicate of one is enough to shut a connection down.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from llamafast.config import ServerConfig

log = logging.getLogger(__name__)

DESCRIPTORS = "/dev/fd"
# A connection is seen, and found too old, up to so many parts of a limit late each.
LOOKS_PER_LIMIT = 8
# close() drops what was not sent yet: the kernel would keep it for minutes
_DROP_UNSENT = struct.pack("ii", 1, 0)
_SO_NWRITE = 0x1024  # of macOS's sys/socket.h

Client = tuple[str, str]  # address and port, as in Granian's scopes


@dataclass(slots=True)
class Connection:
    """What a descriptor was, with that ``inode``, when it was ``seen`` first (by the clock).

    ``n_unsent`` bytes of its last answer were on their way at the last look, and became fewer at ``moved``.
    """

    client: Client
    inode: int
    seen: float
    n_unsent: int = 0
    moved: float = 0.0


class Ended(NamedTuple):
    """When a last request ended (by the clock), and for how long its answer may stand still."""

    at: float
    send_seconds: float


class Connections:
    """The connections to ``port`` of this process: those that never had a request, or had their last one, too long ago
    are closed. While one has a request or a WebSocket it is left alone: those have limits of their own. So is one whose
    client still takes in its last answer: Granian and the kernel hold some MB of it when the request ends.

    Where the system lists no descriptors nothing is watched. ``begun``, ``ended`` and ``close`` are called by the event
    loop, ``sweep`` by one other thread. ``now`` is its clock.
    """

    def __init__(self, port: int, config: ServerConfig, *, now: Callable[[], float] = time.monotonic) -> None:
        self._port = port
        self._now = now
        self._possible = os.path.isdir(DESCRIPTORS)
        self._header_seconds = config.header_seconds
        self._keep_alive_seconds = config.keep_alive_seconds
        self._running: dict[Client, int] = {}
        self._ended: dict[Client, Ended] = {}
        self._unread: deque[Client] = deque()
        self._wake = threading.Event()
        self._known: dict[int, Connection] = {}
        self._descriptors: dict[Client, int] = {}

    def begun(self, client: Client) -> None:
        """One more request or WebSocket is open."""
        if not self._possible:
            return
        self._running[client] = self._running.get(client, 0) + 1

    def ended(self, client: Client, send_seconds: float) -> None:
        """One is over; what is unsent of it is dropped when its client takes nothing for ``send_seconds``."""
        if not self._possible:
            return
        # before it stops running: the other thread reads the two in the other order
        self._ended[client] = Ended(self._now(), send_seconds)
        left = self._running[client] - 1
        if left:
            self._running[client] = left
        else:
            del self._running[client]

    def close(self, client: Client) -> None:
        """Cut its connection, at once where a sweep has seen it, and drop what it has not read. Raises nothing: what
        fails here is left to the next sweep."""
        if not self._possible:
            return
        descriptor = self._descriptors.get(client)
        try:
            is_cut = descriptor is not None and self._shut(descriptor, client, drop=True)
        except OSError:
            is_cut = False
        if not is_cut:
            self._unread.append(client)
            self._wake.set()

    def watch(self) -> None:
        """Close what is to be closed from now on, as long as the process lives."""
        if self._possible:
            threading.Thread(target=self._watch, name="connections", daemon=True).start()
        else:
            log.warning("idle and unread connections are not closed: there is no %s", DESCRIPTORS)

    def _watch(self) -> None:
        interval = min(self._header_seconds, self._keep_alive_seconds) / LOOKS_PER_LIMIT
        failing = False
        while True:
            self._wake.wait(min(interval, threading.TIMEOUT_MAX))
            self._wake.clear()
            try:
                self.sweep()
                failing = False
            except Exception:
                # once for as long as it lasts: a process without a descriptor to spare would tell of nothing else
                if not failing:
                    log.exception("some connections were not looked at or not closed")
                failing = True

    def sweep(self) -> None:
        """Look at every connection once. Raises OSError, after all others had their turn, for one that could not be
        looked at or closed, or when nothing could; what was to be cut still is then, by the next sweep."""
        began = self._now()
        names = os.listdir(DESCRIPTORS)
        unread = {self._unread.popleft() for _ in range(len(self._unread))}
        known: dict[int, Connection] = {}
        failure: OSError | None = None
        for name in names:
            try:
                self._attend(int(name), began, unread, known)
            except OSError as error:
                failure = error
        self._known = known
        self._descriptors = descriptors = {connection.client: fd for fd, connection in known.items()}
        for client, ended in list(self._ended.items()):
            if ended.at < began and client not in descriptors:
                self._ended.pop(client, None)
        if failure is not None:
            self._unread.extend(unread)
            raise failure

    def _attend(self, fd: int, now: float, unread: set[Client], known: dict[int, Connection]) -> None:
        """Add ``fd`` to those ``known`` if it is a connection, and close it if it is over, or one of ``unread``, which
        it leaves then. Raises OSError."""
        connection = self._look(fd, now)
        if connection is None:
            return
        known[fd] = connection
        if connection.client in unread:
            self._shut(fd, connection.client, drop=True)
            unread.remove(connection.client)
        elif self._is_over(fd, connection, now):
            self._shut(fd, connection.client, drop=connection.n_unsent > 0)

    def _look(self, fd: int, now: float) -> Connection | None:
        """What ``fd`` is now; None unless it is a connection to the port. Costs little for one that is known."""
        try:
            status = os.fstat(fd)
        except OSError:  # closed since it was listed
            return None
        known = self._known.get(fd)
        if known is not None and known.inode == status.st_ino:
            return known
        if not stat.S_ISSOCK(status.st_mode) or (shared := _duplicate(fd)) is None:
            return None
        with shared:
            client = self._client(shared)
        return None if client is None else Connection(client, status.st_ino, now)

    def _is_over(self, fd: int, connection: Connection, now: float) -> bool:
        """Whether it had no request for too long, or its client takes nothing more of an answer. Raises OSError."""
        if connection.client in self._running:
            return False
        ended = self._ended.get(connection.client)
        if ended is None:
            return now - connection.seen > self._header_seconds
        if connection.moved < ended.at:
            connection.n_unsent, connection.moved = 0, ended.at
        n_before = connection.n_unsent
        if not n_before and now - connection.moved <= self._keep_alive_seconds:
            return False
        # What Granian holds, 1.6 MB at most, follows into the queue, but only once the kernel has a third of it free:
        # that it becomes shorter from one look to the next shows a reader all the same.
        connection.n_unsent = _n_unsent(fd)
        if connection.n_unsent < n_before or (connection.n_unsent and not n_before):
            connection.moved = now
            return False
        return not n_before or now - connection.moved > ended.send_seconds

    def _shut(self, fd: int, client: Client, *, drop: bool) -> bool:
        """Whether ``fd`` still was the connection of ``client``. Raises OSError."""
        if (shared := _duplicate(fd)) is None:
            return False
        with shared:
            # the descriptor may be another's by now, the duplicate stays what it is
            if self._client(shared) != client:
                return False
            try:
                if drop:
                    shared.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP_UNSENT)
                shared.shutdown(socket.SHUT_RDWR)
            except OSError as error:
                if error.errno not in (errno.ENOTCONN, errno.EINVAL):  # it has ended by itself (EINVAL: on macOS)
                    raise
        return True

    def _client(self, connection: socket.socket) -> Client | None:
        """Whose ``connection`` to the port it is; None if it is something else."""
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        try:
            if connection.getsockname()[1] != self._port:
                return None
            host, port, *_ = connection.getpeername()
        except OSError:  # the listening socket, or a client that has gone
            return None
        return host.partition("%")[0], str(port)  # an IPv6 scope is not in Granian's address


def _duplicate(fd: int) -> socket.socket | None:
    """The socket behind ``fd``, held open by another descriptor; None if there is none. Raises OSError when the process
    has no descriptor left."""
    try:
        duplicate = os.dup(fd)
    except OSError as error:
        if error.errno == errno.EBADF:
            return None
        raise
    try:
        return socket.socket(fileno=duplicate)
    except OSError:
        os.close(duplicate)
        return None


def _n_unsent(fd: int) -> int:
    """How many bytes the kernel holds of what was sent over the connection ``fd``, as the other side has not
    acknowledged them; 0 if there is no such connection any more. Raises OSError."""
    if (shared := _duplicate(fd)) is None:
        return 0
    with shared:
        if sys.platform == "darwin":
            return shared.getsockopt(socket.SOL_SOCKET, _SO_NWRITE)
        import fcntl  # neither is on Windows, where there are no descriptors to look at
        import termios

        return int.from_bytes(fcntl.ioctl(shared, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
