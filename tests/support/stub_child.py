"""A child of a pool that starts at once and has no model: ``python stub_child.py DESCRIPTOR``.

It says what its parent has to hear, and answers: a stream of a piece every few milliseconds until its client leaves or
``max_tokens`` are sent, else a JSON object. ``prompt`` "die" ends the process in the middle of the answer, "hang" stops
it as it stands before that, and "stay" is told in the log and never answered. One whose model is an empty file leaves
its process id there, and stops as it stands while it loads.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path

PIECE_SECONDS = 0.005


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            line, *fields = head.decode().split("\r\n")
            length = next((int(one.split(":")[1]) for one in fields if one.lower().startswith("content-length")), 0)
            body = json.loads(await reader.readexactly(length) or b"{}")
            if line.startswith("GET"):
                model = {"id": name, "object": "model", "created": 1, "owned_by": "stub"}
                await whole(writer, {"object": "list", "data": [model]})
            elif body.get("stream"):
                await stream(writer, body)
            else:
                if body.get("prompt") == "hang":
                    os.kill(os.getpid(), signal.SIGSTOP)
                if body.get("prompt") == "stay":
                    print("one stays", file=sys.stderr, flush=True)
                    await asyncio.Event().wait()
                await asyncio.sleep(body.get("max_tokens", 1) * PIECE_SECONDS)
                if body.get("prompt") == "die":
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
                    await writer.drain()
                    os.kill(os.getpid(), signal.SIGKILL)
                await whole(writer, {"model": name, "pid": os.getpid()})
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def whole(writer: asyncio.StreamWriter, value: object) -> None:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def stream(writer: asyncio.StreamWriter, body: dict[str, object]) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    for i in range(int(body.get("max_tokens", 10**9))):
        piece = b'data: {"choices":[{"index":0,"text":"%d "}]}\n\n' % i
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
        if body.get("prompt") == "die" and i == 3:
            writer.write(b"100\r\ndata: {")
            await writer.drain()
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(PIECE_SECONDS)
    writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
    await writer.drain()


async def serve(connection: socket.socket, config: dict[str, dict[str, str]]) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    asyncio.get_running_loop().add_reader(connection, lambda: connection.recv(1024) or os._exit(1))
    name = config["model"]["alias"]
    server = await asyncio.start_unix_server(
        lambda reader, writer: answer(reader, writer, name), config["server"]["uds"]
    )
    connection.sendall(b'{"type":"Ready"}\n')
    async with server:
        await ended.wait()
    os._exit(0)


def hang_once(path: Path) -> None:
    if path.is_file() and not path.stat().st_size:
        path.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    lines = connection.makefile("rb")
    begin = json.loads(lines.readline())
    connection.sendall(b'{"type":"Needs","n_bytes":1000000}\n')
    if lines.readline():
        hang_once(Path(begin["config"]["model"]["path"]))
        asyncio.run(serve(connection, begin["config"]))


if __name__ == "__main__":
    main()
