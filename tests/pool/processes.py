"""A server of several models in a process of its own, with real children or stubs, and what it leaves behind."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
from support import stub_child
from support.server_process import Process

ASK = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "temperature": 0}

# Children that have no model and start at once.
STUBS = (
    "import sys; from llamafast.pool import children; from llamafast.cli import main; "
    f"children.COMMAND = (sys.executable, {stub_child.__file__!r}); sys.exit(main(['serve', sys.argv[1]]))"
)
# Children for which no read of a disk is too late, and whose disk gives way to nobody, however busy the machine is.
_CHILD = (
    "import sys; from llamafast.engine import disk_traffic, files; from llamafast.pool.child import main; "
    "disk_traffic.LEAST_PATIENCE, files.NICENESS = 60.0, 0; sys.exit(main(int(sys.argv[1])))"
)
PATIENT = STUBS.replace(f"{stub_child.__file__!r}", f"'-c', {_CHILD!r}")


class Server:
    """``client`` asks it; ``root`` is the headers of an administrator."""

    def __init__(self, process: Process, client: httpx.Client, root: dict[str, str]) -> None:
        self.process = process
        self.client = client
        self.root = root

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def base_url(self) -> str:
        return str(self.client.base_url)

    def children(self) -> list[int]:
        """Process ids of the children that there are."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/children")
        return [int(pid) for file in tasks for pid in file.read_text().split() if _state(int(pid)) not in ("", "Z")]

    def states(self) -> dict[str, str]:
        return {one["id"]: one["status"]["value"] for one in self.client.get("/v1/models").json()["data"]}

    def load(self, name: str) -> None:
        assert self.client.post("/models/load", json={"model": name}, headers=self.root).json() == {"success": True}

    def unload(self, name: str) -> None:
        assert self.client.post("/models/unload", json={"model": name}, headers=self.root).json() == {"success": True}

    def until(self, true: Callable[[], object], seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while not true():
            assert self.process.poll() is None, self.process.log
            assert time.monotonic() < until, self.process.log
            time.sleep(0.01)

    def until_dead(self, children: list[int]) -> None:
        """Once it has ended itself."""
        until = time.monotonic() + 30
        while any(map(alive, children)):
            assert time.monotonic() < until
            time.sleep(0.01)

    def until_state(self, name: str, value: str) -> None:
        self.until(lambda: self.states()[name] == value)

    def resident_kb(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * 4

    def n_descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def n_threads(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/task"))


@contextmanager
def started(
    folder: Path, config: dict[str, Any], *, stubs: bool = False, patient: bool = False, wait: bool = True
) -> Iterator[Server]:
    """Until it listens, and with ``wait`` until its startup models answer. Its own TMPDIR is below ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    keys = folder / "keys"
    keys.write_text("secret-a name=alice\nsecret-b name=bob\nsecret-root name=root admin\n")
    keys.chmod(0o600)
    config = {**config, "server": {"port": 0, "api_key_file": str(keys), **config.get("server", {})}}
    code = STUBS if stubs else PATIENT if patient else None
    program = "-m llamafast serve" if code is None else f"-c {shlex.quote(code)}"
    limits = f"export TMPDIR={shlex.quote(str(folder / 'tmp'))}"
    with Process(folder, config, program=program, limits=limits) as process:
        try:
            process.until_serving()
            base_url = f"http://127.0.0.1:{process.port}"
            with httpx.Client(base_url=base_url, headers={"x-api-key": "secret-a"}, timeout=60) as client:
                server = Server(process, client, {"x-api-key": "secret-root"})
                if wait:
                    server.until(lambda: client.get("/health").status_code == 200, 60)
                yield server
        finally:
            process.kill()


def alive(pid: int) -> bool:
    return _state(pid) not in ("", "Z")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def said(frames: str) -> list[Any]:
    """The JSON events of an SSE body."""
    return [json.loads(one.removeprefix("data: ")) for one in frames.split("\n\n") if one.startswith("data: {")]


def client_of(server: Server, key: str = "secret-a") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.base_url}/v1", api_key=key, max_retries=0)


def answered(socket: Any, **fields: Any) -> dict[str, Any]:
    """The response to a frame of /v1/responses, once it is complete."""
    socket.send(json.dumps({"type": "response.create", **fields}))
    while True:
        event = json.loads(socket.recv(timeout=30))
        assert event["type"] not in ("error", "response.failed"), event
        if event["type"] in ("response.completed", "response.incomplete"):
            return event["response"]
