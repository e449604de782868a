"""A server for one batch, or one conversation: a process of its own on a Unix socket, which ends with it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from llamafast.batch.client import NOBODY, Client
from llamafast.config import Config
from llamafast.errors import ModelLoadError

# What of the server's section is about answers; the rest is about who connects.
_KEPT = ("max_body_bytes", "stall_seconds")
_POLL_SECONDS = 0.1
_END_SECONDS = 30.0
# No batch has more under way.
MAX_WIDTH = 4096


class Served:
    """The process, and the folder with its socket and its log. With ``apart`` the terminal's signals are not for it."""

    def __init__(self, config: Config, folder: Path, *, apart: bool = False) -> None:
        self.uds = str(folder / "socket")
        self._log = folder / "log"
        path = folder / "config.json"
        path.write_bytes(msgspec.json.encode(_own(config, self.uds)))
        # what the environment says is in the config already
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("LLAMAFAST_") or name == "LLAMAFAST_SIMD"
        }
        with self._log.open("wb") as log:
            command = [sys.executable, "-m", "llamafast.batch.child", str(path)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                process_group=0 if apart else None,
            )

    def check(self) -> None:
        """Raises ModelLoadError where it has ended."""
        if self._process.poll() is not None:
            self._ended()

    async def ready(self, client: Client) -> None:
        """Until it takes requests. Raises ModelLoadError where it ends before."""
        while self._process.poll() is None:
            try:
                if await client.get("/ready") is not None:
                    return
            except NOBODY:
                pass  # it does not listen yet
            await asyncio.sleep(_POLL_SECONDS)
        self._ended()

    async def watch(self) -> NoReturn:
        """Raises ModelLoadError once it has ended."""
        while self._process.poll() is None:  # noqa: ASYNC110 - a thread that waits for it would outlive the loop
            await asyncio.sleep(_POLL_SECONDS)
        self._ended()

    def _ended(self) -> NoReturn:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        raise ModelLoadError(f"the server has ended: {lines[-1] if lines else self._process.returncode}")

    def end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def served(config: Config, *, apart: bool = False) -> Iterator[Served]:
    with tempfile.TemporaryDirectory(prefix="llamafast-") as folder:
        server = Served(config, Path(folder), apart=apart)
        try:
            yield server
        finally:
            server.end()


def _own(config: Config, uds: str) -> dict[str, Any]:
    tree: dict[str, Any] = msgspec.to_builtins(config)
    kept = {name: tree["server"][name] for name in _KEPT}
    tree["server"] = {**kept, "uds": uds, "max_queue": MAX_WIDTH, "request_log": False}
    return tree
