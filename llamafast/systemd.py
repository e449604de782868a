"""What systemd is told of a service of Type=notify: that it serves, stops, and is alive (sd_notify(3))."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Service:
    """Nothing where nobody listens. What this process was told for that, none of its children is."""

    def __init__(self) -> None:
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        microseconds, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        ours = self._address and pid in ("", str(os.getpid())) and microseconds.isdigit()
        # twice as often as it has to be, as systemd wants it
        self._seconds = int(microseconds) / 2e6 if ours else 0.0

    @property
    def is_heard(self) -> bool:
        return bool(self._address)

    def tell(self, state: str) -> None:
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
                told.connect(address)
                told.sendall(state.encode())
        except OSError as error:
            logger.warning("systemd  was not told %s: %s", state.partition("\n")[0], error)

    async def watch(self, alive: Callable[[], bool]) -> None:
        """Tell again and again that it is ``alive``, as long as it is; for good."""
        while self._seconds:
            if alive():
                self.tell("WATCHDOG=1")
            await asyncio.sleep(self._seconds)
