"""Stands for `llamafast serve CONFIG --uds PATH ...` where only its wire matters: replies go by the path asked for.

What it is told and asked is a line of JSON each in CONFIG.log. While CONFIG.red exists it is not healthy; where
CONFIG.refuse does it ends with 3.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

FIRST, SECOND = b"data: one\n\n", b"data: tw"


def reply(status: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, f"content-length: {len(body) if length is None else length}", "", ""]
    return "\r\n".join(lines).encode() + body


def chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


class StubServer:
    def __init__(self, config: str) -> None:
        self._red = Path(f"{config}.red")
        self._refuse = Path(f"{config}.refuse")
        self._log = Path(f"{config}.log")

    def note(self, **what: object) -> None:
        with self._log.open("a") as log:
            print(json.dumps(what), file=log, flush=True)

    def begin(self, words: list[str]) -> None:
        self.note(words=words)
        if self._refuse.exists():
            sys.exit(3)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await self._head(reader):
            (method, target, _), *headers = ([*line.split(" ", 2)] for line in head)
            fields = [(name.removesuffix(":"), " ".join(rest)) for name, *rest in headers]
            body = await reader.readexactly(int(dict(fields).get("content-length", "0")))
            if target != "/health":
                self.note(method=method, target=target, headers=fields, body=body.decode())
            await self._answer(target.partition("?")[0], reader, writer)
        writer.close()

    async def _head(self, reader: asyncio.StreamReader) -> list[str]:
        try:
            return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        except asyncio.IncompleteReadError:
            return []

    async def _answer(self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        if path == "/health":
            writer.write(reply("503 Service Unavailable" if self._red.exists() else "200 OK", b"{}"))
        elif path == "/stream":
            writer.write(stream + chunk(FIRST))
            await self._until_gone(reader)
        elif path == "/whole-stream":
            writer.write(stream + chunk(FIRST) + chunk(FIRST) + chunk(b""))
        elif path == "/cut-stream":
            writer.write(stream + chunk(FIRST) + chunk(SECOND))
            writer.close()
        elif path == "/cut":
            writer.write(reply("200 OK", b"half of it", "content-type: application/json", length=1000))
            writer.close()
        elif path == "/slow":
            await self._until_gone(reader)
        else:
            told = ["content-type: application/json", "x-request-id: ours", "vary: a", "vary: b", "keep-alive: 5"]
            writer.write(reply("429 Too Many Requests", b'{"error": {}}', *told))

    async def _until_gone(self, reader: asyncio.StreamReader) -> None:
        self.note(waits=True)
        await reader.read()
        self.note(gone=True)


async def main(words: list[str]) -> None:
    server = StubServer(words[1])
    server.begin(words)
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    uds = words[words.index("--uds") + 1]
    async with await asyncio.start_unix_server(server.serve, uds):
        await stopped.wait()
    server.note(ended=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
