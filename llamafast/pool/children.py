"""The parent's end of a child: starts the process, talks to it, ends it."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Protocol

import httpcore2
from msgspec import DecodeError, Raw

from llamafast.config import KEY_VARIABLE
from llamafast.cpus import on_cpus
from llamafast.errors import ModelLoadError
from llamafast.front import CLOSE_SECONDS, in_thread
from llamafast.loop_sockets import LoopBackend
from llamafast.pool.resident import peak_bytes
from llamafast.pool.wire import Begin, End, Go, Needs, Progress, Ready, Refused, from_child, line

COMMAND = (sys.executable, "-m", "llamafast.pool.child")
# For a child that is to end at once: its answers' last events, and what it keeps on disk. Below CLOSE_SECONDS, by which
# the parent's own end is bounded.
AT_ONCE_SECONDS = 3.0
# A child closes a connection after `server.keep_alive_seconds` and never sooner than its parent.
IDLE_SECONDS = 15.0
# Of the bound of a load, each waited for by itself: while this process stands still too (a container that is paused)
# one of them passes, and no more.
_PARTS = 20


class Died(Exception):
    """The child has ended, with ``code``, by a ``fault`` that is known where the code says nothing of it."""

    def __init__(self, code: int, fault: str = "") -> None:
        super().__init__(fault or (f"it was ended by signal {-code}" if code < 0 else f"it ended with {code}"))
        self.code = code


class Door(NamedTuple):
    """Where a child answers, and what it wants to see."""

    path: Path
    secret: str
    http: httpcore2.AsyncConnectionPool


def client(path: Path) -> httpcore2.AsyncConnectionPool:
    """Of the server on a socket: as many connections as there are requests."""
    return httpcore2.AsyncConnectionPool(
        uds=str(path),
        max_connections=None,
        max_keepalive_connections=64,
        keepalive_expiry=IDLE_SECONDS,
        network_backend=LoopBackend(),
    )


async def close_idle(door: Door) -> None:
    """The process has ended. What it has said before is still read, and such a connection closed when that is done."""
    for connection in door.http.connections:
        if connection.is_idle():
            await connection.aclose()


class ChildPort(Protocol):
    """A child as the fleet sees it; tests have another one."""

    @property
    def door(self) -> Door: ...

    @property
    def gone(self) -> asyncio.Future[int]:
        """The exit code, once the process has ended and its memory is the system's again."""

    async def begin(self) -> int:
        """Start it; how many bytes it will take. Raises ModelLoadError where it refuses, or Died."""

    async def load(self) -> None:
        """Let it load its model, and return when it answers. Raises as ``begin``."""

    def peak_bytes(self) -> int | None:
        """Host memory that it has had at most, as far as that is known."""

    async def end(self, seconds: float) -> None:
        """Let it finish what runs, for so long; return when it has ended. A later call may leave it less."""

    def kill(self) -> None: ...


class Child:
    """One process, once. ``config`` is a cfg.json whose ``server.uds`` is ``path``; ``shared`` are the bytes of how
    many models, of which it has a part; it may run on ``cpus``. One that says nothing for ``load_seconds`` before it
    answers is ended. On an event loop of the main thread: the kernel ends a child with the thread that has started it.
    """

    def __init__(
        self,
        config: bytes,
        path: Path,
        shared: tuple[int, int],
        *,
        load_seconds: float | None = None,
        verbose: bool = False,
        cpus: set[int] | None = None,
    ) -> None:
        self._cpus = cpus
        self._load_seconds = load_seconds
        self._secret = secrets.token_hex(32)
        self._begin = Begin(Raw(config), self._secret, verbose, *shared)
        self._path = path
        self._process: subprocess.Popen[bytes] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._peak: int | None = None
        self._ending = False
        self.gone: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.door = Door(path, self._secret, client(path))

    async def begin(self) -> int:
        ours, its = socket.socketpair()
        with its, on_cpus(self._cpus):
            try:
                # some milliseconds; a thread would take the child along when it ends
                self._process = subprocess.Popen(  # noqa: ASYNC220
                    [*COMMAND, str(its.fileno())],
                    pass_fds=[its.fileno()],
                    stdin=subprocess.DEVNULL,
                    env={name: value for name, value in os.environ.items() if name != KEY_VARIABLE},
                    # a signal of the terminal's is for the parent, which still drains
                    process_group=0,
                )
            except BaseException:
                ours.close()
                raise
        ended = in_thread(self._process.wait, "llamafast-child")
        ended.add_done_callback(self._note_end)
        self._reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        needs = await self._ask(self._begin)
        assert isinstance(needs, Needs)
        return needs.n_bytes

    async def load(self) -> None:
        ready = await self._ask(Go())
        assert isinstance(ready, Ready)

    def peak_bytes(self) -> int | None:
        if self._process is not None and not self.gone.done():
            self._peak = peak_bytes(self._process.pid) or self._peak
        return self._peak

    async def end(self, seconds: float) -> None:
        if self._process is None:
            return
        if self._writer is not None:
            self._writer.write(line(End(seconds)))
        if not self._ending:
            # another one would end it as it stands
            self._ending = True
            self._signal(signal.SIGTERM)
        # it ends by itself that long after what runs had its time
        await asyncio.wait((self.gone,), timeout=seconds + 2 * CLOSE_SECONDS if seconds else AT_ONCE_SECONDS)
        self.kill()
        await asyncio.shield(self.gone)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    async def _ask(self, message: Begin | Go) -> Needs | Ready:
        """What the child answers. Raises ModelLoadError or Died."""
        assert self._writer is not None
        answer: Needs | Ready | Refused | None = None
        try:
            self._writer.write(line(message))
            answer = await self._answer()
        except TimeoutError:
            self.kill()
            fault = f"it has come no further for {self._load_seconds:g} seconds while it loaded"
            raise Died(await asyncio.shield(self.gone), fault) from None
        except (OSError, DecodeError):
            pass  # as nothing would be
        if not isinstance(answer, Needs | Ready):
            # it ends, or what is left of it is of no use
            await asyncio.wait((self.gone,), timeout=CLOSE_SECONDS)
            self.kill()
            code = await asyncio.shield(self.gone)
            raise Died(code) if answer is None else ModelLoadError(answer.reason)
        return answer

    async def _answer(self) -> Needs | Ready | Refused:
        """What ends a wait for the child. Raises TimeoutError where it says nothing for too long, OSError or
        DecodeError."""
        bound = self._load_seconds
        while True:
            said = from_child.decode(await self._line(bound))
            if not isinstance(said, Progress):
                return said
            bound = None if said.fetched else self._load_seconds

    async def _line(self, seconds: float | None) -> bytes:
        """What it says next. Raises TimeoutError or OSError."""
        reading = asyncio.ensure_future(self._reader.readline())
        try:
            for _ in range(_PARTS):
                await asyncio.wait((reading,), timeout=None if seconds is None else seconds / _PARTS)
                if reading.done():
                    return reading.result()
            raise TimeoutError
        finally:
            reading.cancel()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and not self.gone.done():
            self._process.send_signal(number)

    def _note_end(self, ended: asyncio.Future[int]) -> None:
        if self._writer is not None:
            self._writer.close()
        self._path.unlink(missing_ok=True)
        if not self.gone.done():
            self.gone.set_result(ended.result())
