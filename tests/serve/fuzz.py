"""The fuzzer over real sockets: ``python -m serve.fuzz [requests] [seed]`` from tests/."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from support.fuzzing import Fuzzer, Message, fault
from support.server_process import Process

from recipes import tiny_gguf
from serve.conftest import model_config

CONNECTIONS = 8
ANSWER_SECONDS = 60.0
RESET = -1


async def exchange(port: int, message: Message) -> tuple[int, bytes]:
    """The status, 0 for none, and the body of the first answer. A connection that is reset while the client sends is
    RESET: the HTTP library refuses heads so."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = b""
    try:
        for piece in message.writes:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if message.ends and not writer.is_closing():
            with suppress(OSError):
                writer.write_eof()
        raw = await asyncio.wait_for(reader.read(), ANSWER_SECONDS)
    except ConnectionError:
        return RESET, b""
    writer.transport.abort()
    head, _, body = raw.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100"):
        head, _, body = body.partition(b"\r\n\r\n")
    return (int(head.split()[1]), body) if head else (0, b"")


async def faults(port: int, n_requests: int, seed: int) -> tuple[list[str], dict[int, int]]:
    """What was wrong with the answers to ``n_requests``, and how many there were of each status."""
    found: list[str] = []
    statuses: dict[int, int] = {}
    seeds = iter(range(seed, seed + n_requests))

    async def client() -> None:
        for each in seeds:
            message = Fuzzer(each).message()
            try:
                status, body = await exchange(port, message)
            except TimeoutError:
                found.append(f"seed {each}: no answer to {message.writes!r:.3000}")
                continue
            statuses[status] = statuses.get(status, 0) + 1
            # what follows a request that is shorter than it says is a request of its own
            answer = body.partition(b"HTTP/1.1 ")[0]
            problem = None if message.writes[0].startswith(b"HEAD") else fault(status, answer)
            if status == 0 and not message.ends:
                problem = "no answer"
            if problem:
                found.append(f"seed {each}: {problem} to {message.writes!r:.3000}")

    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return found, statuses


def run(folder: Path, n_requests: int, seed: int, model: str = "tiny-scripted") -> tuple[list[str], dict[int, int]]:
    """Fuzz a server of its own; its log and its end count too."""
    config = model_config(tiny_gguf.build(model), 0, max_seq_len=1024)
    config["server"] = {"port": 0, "drain_seconds": 1}
    with Process(folder, config) as process:
        try:
            process.until_serving()
            found, statuses = asyncio.run(faults(process.port, n_requests, seed))
            process.terminate()
            process.wait(30)
        finally:
            process.kill()
    if process.returncode != 0:
        found.append(f"the server ended with {process.returncode}")
    if "Traceback" in process.log:
        found.append(process.log[process.log.index("Traceback") - 500 :][:5000])
    return found, statuses


def main() -> int:
    n_requests, seed = (int(text) for text in [*sys.argv[1:], "10000", "0"][:2])
    with tempfile.TemporaryDirectory() as folder:
        found, statuses = run(Path(folder), n_requests, seed)
    print(dict(sorted(statuses.items())))
    print("\n".join(found) or "no faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
