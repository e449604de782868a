"""The server under test: started as its users start it, watched through /proc, always ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from random import randrange
from time import monotonic, sleep
from types import MappingProxyType

from benchmarks.pinning import bound_to

START_SECONDS = 120
STOP_SECONDS = 15
ROOT = Path(__file__).parents[1]
EMPTY: Mapping[str, str] = MappingProxyType({})


class ServerFailure(Exception):
    """The server did not start."""


@dataclass(frozen=True)
class Server:
    """A server that answers on loopback."""

    port: int
    pid: int

    def cpu_seconds(self) -> float | None:
        """User and system time of the server and its children so far; None where there is no /proc."""
        if not Path("/proc/self/stat").exists():
            return None
        ticks = self._tree()
        return sum(ticks.values()) / os.sysconf("SC_CLK_TCK")

    def peak_bytes(self) -> int | None:
        """The most resident memory of the server and its children, each at its own peak; None without /proc."""
        if not Path("/proc/self/status").exists():
            return None
        kilobytes = 0
        for pid in self._tree():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            kilobytes += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
        return 1024 * kilobytes

    def _tree(self) -> dict[int, int]:
        """The process ids of the server and its children, and their CPU time in clock ticks."""
        ticks: dict[int, int] = {}
        parents: dict[int, int] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                # the name in parentheses may hold spaces; fields are counted from after it
                fields = stat.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            pid = int(stat.parent.name)
            parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
        tree = {self.pid}
        while children := {pid for pid, parent in parents.items() if parent in tree} - tree:
            tree |= children
        return {pid: ticks[pid] for pid in tree if pid in ticks}


_given: set[int] = set()


def free_port() -> int:
    """One that nobody has. It is none of those that the system gives to whoever connects or asks for any: until the
    server has started somebody would."""
    while True:
        port = randrange(20_000, 32_000)
        if port in _given:  # whoever has it may not have started yet
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


def healthy(port: int, path: str) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, health: str, log: Path) -> None:
    deadline = monotonic() + START_SECONDS
    while not healthy(port, health):
        if process.poll() is not None or monotonic() > deadline:
            state = f"exited with {process.returncode}" if process.returncode is not None else "is not ready"
            raise ServerFailure(f"the server {state}; it wrote:\n{log.read_text(errors='replace')[-3000:]}")
        sleep(0.05)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, then make it, whatever it started included."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_SECONDS)


@contextmanager
def started(
    command: Sequence[str], port: int, health: str, folder: Path, cores: set[int] | None, environment: Mapping[str, str]
) -> Iterator[Server]:
    """A server that ``command`` starts and that answers GET ``health``, for the length of the block.

    ``folder`` takes its log. Raises ServerFailure.
    """
    log = folder / "log"
    with log.open("wb") as output, bound_to(cores):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, start_new_session=True,
            env={**os.environ, **environment},
        )  # fmt: skip
    try:
        wait_until_healthy(process, port, health, log)
        yield Server(port, process.pid)
    finally:
        stop(process)


@contextmanager
def serving(
    config: Callable[[int], dict[str, object]], cores: set[int] | None, environment: Mapping[str, str] = EMPTY
) -> Iterator[Server]:
    """llamafast with ``config(port)``, bound to ``cores``, for the length of the block. Raises ServerFailure."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llamafast-benchmark-")))
        port, config_file = free_port(), folder / "cfg.json"
        config_file.write_text(json.dumps(config(port)))
        command = [sys.executable, "-m", "llamafast", "serve", str(config_file)]
        yield stack.enter_context(started(command, port, "/healthz", folder, cores, environment))
