"""How long requests and WebSockets wait for their clients: a deadline each, and one timer for all of them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any, Self

from llamafast.api.connections import Client, Connections
from llamafast.config import ServerConfig

log = logging.getLogger(__name__)

# A deadline is found out to have passed up to so many parts of a limit late.
LOOKS_PER_LIMIT = 4


class ClientWaits:
    """Every request and WebSocket that is open, and their limits in ``config``: ``body_seconds`` for a body to come,
    ``send_seconds`` for a reader to take something. ``connections``, where they are watched, hear who is at work."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.connections: Connections | None = None
        self._open: set[ClientWait] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def any_open(self) -> bool:
        return bool(self._open)

    def of(self, scope: MutableMapping[str, Any]) -> ClientWait:
        """For one request or WebSocket, by its ASGI scope."""
        return ClientWait(self, scope.get("client"), scope.get("http_version") == "2")

    def add(self, wait: ClientWait) -> None:
        self._open.add(wait)
        if self._timer is None:
            self._look_later()

    def remove(self, wait: ClientWait) -> None:
        self._open.discard(wait)

    def _look_later(self) -> None:
        seconds = min(self.config.body_seconds, self.config.send_seconds) / LOOKS_PER_LIMIT
        self._timer = asyncio.get_running_loop().call_later(seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        # first: whatever happens to one of them, the others are looked at again
        if self._open:
            self._look_later()
        now = time.monotonic()
        for wait in self._open:
            if 0 < wait.deadline < now:
                wait.expire()


class ClientWait:
    """One request or WebSocket of ``client`` (None: without an address), as a context around all of its work, in the
    task that does it. ``multiplexed``: others share its connection.

    ``deadline`` is set while something waits for the client, to seconds of the monotonic clock, and 0.0 otherwise;
    ``reading``: that is for it to send. Once the deadline has passed the task is cancelled, and the connection closed
    unless there is somebody to answer. The cancellation ends with the context if ``forgive`` does not come first.
    ``body_due`` is when more of the request's body has to be here.
    """

    __slots__ = (
        "_client",
        "_connections",
        "_multiplexed",
        "_task",
        "_waits",
        "body_due",
        "config",
        "deadline",
        "expired",
        "reading",
    )

    def __init__(self, waits: ClientWaits, client: Client | None, multiplexed: bool) -> None:
        self.config = waits.config
        self.body_due = time.monotonic() + waits.config.body_seconds
        self.deadline = 0.0
        self.expired = False
        self.reading = False
        self._waits = waits
        self._connections = waits.connections
        self._client = client
        self._multiplexed = multiplexed

    def __enter__(self) -> Self:
        self._task: asyncio.Task[Any] | None = asyncio.current_task()
        if self._connections is not None and self._client is not None:
            self._connections.begun(self._client)
        self._waits.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._waits.remove(self)
        if self._connections is not None and self._client is not None:
            self._connections.ended(self._client, self.config.send_seconds)
        return self.expired and self.forgive() and kind is asyncio.CancelledError

    def expire(self) -> None:
        assert self._task is not None
        self.deadline = 0.0
        self.expired = True
        # First: once the work has ended, Granian lets go of the socket, and what is unread stays in the kernel.
        if not self._multiplexed and not self.reading:
            self._close()
        self._task.cancel()

    def _close(self) -> None:
        if self._connections is not None and self._client is not None:
            try:
                self._connections.close(self._client)
            except Exception:
                log.exception("the connection of a client that does not read was not closed")

    def forgive(self) -> bool:
        """The cancellation has arrived and is answered in another way; False if somebody else has cancelled the task
        too, so that it ends all the same."""
        assert self._task is not None
        self.expired = False
        return not self._task.uncancel()
