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
import threading
import time
from collections import deque
from typing import NamedTuple

log = logging.getLogger(__name__)

DESCRIPTORS = "/dev/fd"
# A connection is seen, and found too old, up to so many parts of a limit late each.
LOOKS_PER_LIMIT = 8
# close() drops what was not sent yet: the kernel would keep it for minutes
_DROP_UNSENT = struct.pack("ii", 1, 0)

Client = tuple[str, str]  # address and port, as in Granian's scopes


class Connection(NamedTuple):
    """What a descriptor was, with that ``inode``, when it was ``seen`` first (seconds of the monotonic clock)."""

    client: Client
    inode: int
    seen: float


class Connections:
    """The connections to ``port`` of this process: those that never had a request, or had their last one, too long ago
    are closed. While one has a request or a WebSocket it is left alone: those have limits of their own.

    ``begun``, ``ended`` and ``close`` are called by the event loop, ``sweep`` by one other thread.
    """

    def __init__(self, port: int, *, header_seconds: float, keep_alive_seconds: float) -> None:
        self._port = port
        self._header_seconds = header_seconds
        self._keep_alive_seconds = keep_alive_seconds
        self._running: dict[Client, int] = {}
        self._ended: dict[Client, float] = {}
        self._unread: deque[Client] = deque()
        self._wake = threading.Event()
        self._known: dict[int, Connection] = {}
        self._descriptors: dict[Client, int] = {}

    def begun(self, client: Client) -> None:
        """One more request or WebSocket is open."""
        self._running[client] = self._running.get(client, 0) + 1

    def ended(self, client: Client) -> None:
        # before it stops running: the other thread reads the two in the other order
        self._ended[client] = time.monotonic()
        left = self._running[client] - 1
        if left:
            self._running[client] = left
        else:
            del self._running[client]

    def close(self, client: Client) -> None:
        """Cut its connection, at once where a sweep has seen it, and drop what it has not read."""
        descriptor = self._descriptors.get(client)
        if descriptor is None or not self._shut(descriptor, client, drop=True):
            self._unread.append(client)
            self._wake.set()

    def watch(self) -> None:
        """Close what is to be closed from now on, as long as the process lives."""
        threading.Thread(target=self._watch, name="connections", daemon=True).start()

    def _watch(self) -> None:
        interval = min(self._header_seconds, self._keep_alive_seconds) / LOOKS_PER_LIMIT
        while True:
            self._wake.wait(min(interval, threading.TIMEOUT_MAX))
            self._wake.clear()
            try:
                self.sweep()
            except OSError as error:
                log.warning("connections were not looked at: %s", error)

    def sweep(self) -> None:
        """Look at every connection once. Raises OSError when the process has no descriptor left to look with."""
        began = time.monotonic()
        unread = {self._unread.popleft() for _ in range(len(self._unread))}
        known: dict[int, Connection] = {}
        for name in os.listdir(DESCRIPTORS):
            fd = int(name)
            connection = self._look(fd, began)
            if connection is not None:
                known[fd] = connection
                if connection.client in unread:
                    self._shut(fd, connection.client, drop=True)
                elif self._is_over(connection, began):
                    self._shut(fd, connection.client, drop=False)
        self._known = known
        self._descriptors = descriptors = {connection.client: fd for fd, connection in known.items()}
        for client, ended in list(self._ended.items()):
            if ended < began and client not in descriptors:
                self._ended.pop(client, None)

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

    def _is_over(self, connection: Connection, now: float) -> bool:
        if connection.client in self._running:
            return False
        ended = self._ended.get(connection.client)
        if ended is None:
            return now - connection.seen > self._header_seconds
        return now - ended > self._keep_alive_seconds

    def _shut(self, fd: int, client: Client, *, drop: bool) -> bool:
        """Whether ``fd`` still was the connection of ``client``."""
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
        if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.getsockname()[1] != self._port:
            return None
        try:
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
