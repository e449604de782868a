"""A server of a test's own, under the test's own conditions."""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

# A server for which no read of a disk is too late, and whose disk gives way to nobody, however busy the machine is.
PATIENT = "-c " + shlex.quote(
    "import sys; from llamafast.cli import main; from llamafast.engine import disk_traffic, files; "
    "disk_traffic.LEAST_PATIENCE, files.NICENESS = 60.0, 0; sys.exit(main(['serve', sys.argv[1]]))"
)
_SERVING = re.compile(r"serving  https?://(\S+):(\d+)/v1")


class Process(subprocess.Popen[bytes]):
    """``log`` is what it has written, where that goes to a file; ``redirect`` is put behind the command in a shell,
    ``limits`` before it. ``program`` is what Python runs on the config file."""

    def __init__(
        self,
        folder: Path,
        config: dict[str, object],
        *,
        port: int = 0,
        output: int | IO[bytes] | None = None,
        redirect: str = "",
        limits: str = "true",
        program: str = "-m llamafast serve",
    ) -> None:
        self.port = port
        self._folder = folder
        (folder / "cfg.json").write_text(json.dumps(config))
        command = f"{limits}; exec {sys.executable} {program} {shlex.quote(str(folder / 'cfg.json'))} {redirect}"
        with (folder / "log").open("wb") as log:
            output = log if output is None else output
            super().__init__(["bash", "-c", command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)

    @property
    def log(self) -> str:
        return (self._folder / "log").read_text()

    def until_serving(self) -> str:
        """Wait for it and learn its port; the host it says that it listens on."""
        said = self.until_told(_SERVING)
        self.port = int(said[2])
        return said[1]

    def until_told(self, what: re.Pattern[str]) -> re.Match[str]:
        """Wait for a line of the log."""
        until = time.monotonic() + 120
        while not (said := what.search(self.log)):
            assert self.poll() is None, self.log
            assert time.monotonic() < until
            time.sleep(0.02)
        return said

    def ended(self, seconds: float) -> float:
        """How long it took to end; fails after ``seconds``."""
        began = time.monotonic()
        self.wait(seconds)
        return time.monotonic() - began

    def connect(self, message: bytes = b"", host: str = "127.0.0.1") -> socket.socket:
        connection = socket.create_connection((host, self.port), timeout=20)
        connection.sendall(message)
        return connection
