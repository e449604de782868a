"""The answer a load client reads: HTTP/1.1, chunked, Server-Sent Events, or one body whose length is known.

As little work per byte as Python allows.
"""

from __future__ import annotations


class BadAnswer(Exception):
    """The server answered with something else than a 200 in the framing that was asked for."""


class EventStream:
    """Incremental parser of one answer; ``begun`` after its first byte, ``finished`` after its last chunk."""

    def __init__(self) -> None:
        self.finished = False
        self.begun = False
        self._in_body = False
        self._wire = bytearray()
        self._event = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that ``data`` completes, without the blank line that ends them.

        Raises BadAnswer for another status or framing, and for bytes after the last chunk.
        """
        self._wire += data
        self.begun = True
        if not self._in_body and not self._read_head():
            return []
        payload = self._read_chunks()
        if not payload:
            return []
        *events, self._event = (self._event + payload).split(b"\n\n")
        return events

    def _read_head(self) -> bool:
        end = self._wire.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._wire[:end]).lower()
        if not head.startswith(b"http/1.1 200 ") or b"\r\ntransfer-encoding: chunked" not in head:
            raise BadAnswer(bytes(self._wire[:1000]).decode(errors="replace"))
        del self._wire[: end + 4]
        self._in_body = True
        return True

    def _read_chunks(self) -> bytes:
        wire, start, payload = self._wire, 0, b""
        while not self.finished and (line_end := wire.find(b"\r\n", start)) >= 0:
            try:
                size = int(wire[start:line_end].partition(b";")[0], 16)
            except ValueError:
                raise BadAnswer(f"not a chunk size: {bytes(wire[start:line_end][:100])!r}") from None
            end = line_end + 2 + size
            if len(wire) < end + 2:
                break
            payload += wire[line_end + 2 : end]
            start = end + 2
            self.finished = size == 0
        del wire[:start]
        if self.finished and wire:
            raise BadAnswer(f"bytes after the last chunk: {bytes(wire[:100])!r}")
        return payload


class WholeBody:
    """Incremental parser of an answer with a Content-Length; its body is its only event."""

    def __init__(self) -> None:
        self.finished = False
        self.begun = False
        self._wire = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The body, once ``data`` completes it. Raises BadAnswer for another status or framing, and for more bytes."""
        self._wire += data
        self.begun = True
        head, _, body = self._wire.partition(b"\r\n\r\n")
        if len(head) == len(self._wire):
            return []
        head, _, length = head.lower().partition(b"\r\ncontent-length:")
        if not head.startswith(b"http/1.1 200 ") or not length:
            raise BadAnswer(self._wire[:1000].decode(errors="replace"))
        missing = int(length.partition(b"\r\n")[0]) - len(body)
        if missing < 0:
            raise BadAnswer(f"bytes after the body: {body[missing:][:100]!r}")
        self.finished = missing == 0
        return [body] if self.finished else []
