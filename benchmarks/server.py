"""The server under test: started as its users start it, watched through /proc, always ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from time import monotonic, sleep

from benchmarks.pinning import bound_to

START_SECONDS = 120
STOP_SECONDS = 15
ROOT = Path(__file__).parents[1]


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
        return sum(ticks.get(pid, 0) for pid in tree) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def healthy(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = monotonic() + START_SECONDS
    while not healthy(port):
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
def serving(config: Callable[[int], dict[str, object]], cores: set[int] | None) -> Iterator[Server]:
    """A server with ``config(port)``, bound to ``cores``, for the length of the block. Raises ServerFailure."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="llamafast-benchmark-") as folder:
        config_file, log = Path(folder, "cfg.json"), Path(folder, "log")
        config_file.write_text(json.dumps(config(port)))
        with log.open("wb") as output, bound_to(cores):
            process = subprocess.Popen(
                [sys.executable, "-m", "llamafast", "serve", str(config_file)],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=ROOT, start_new_session=True,
            )  # fmt: skip
        try:
            wait_until_healthy(process, port, log)
            yield Server(port, process.pid)
        finally:
            stop(process)
