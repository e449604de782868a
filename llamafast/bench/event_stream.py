"""The answer a load client reads: HTTP/1.1, Server-Sent Events in chunks, or one body.

As little work per byte as Python allows.
"""

from __future__ import annotations


class BadAnswer(Exception):
    """The server answered with something else than a 200 in the framing that was asked for."""


class _Answer:
    """What both kinds have in common: the head, the framing, and what is told of another status than 200.

    ``begun`` after the first byte, ``finished`` after the last.
    """

    def __init__(self) -> None:
        self.finished = False
        self.begun = False
        self._wire = bytearray()
        self._in_body = False
        self._status = b""
        # of a body whose length is told what of it is missing; None: it comes in chunks
        self._missing: int | None = None

    def _read_head(self) -> bool:
        """Whether the head is there. Raises BadAnswer for a body that is framed in no way that is known."""
        end = self._wire.find(b"\r\n\r\n")
        if end < 0:
            return False
        first, _, rest = bytes(self._wire[:end]).partition(b"\r\n")
        headers = b"\r\n" + rest.lower()
        self._status = first.removeprefix(b"HTTP/1.1 ").strip()
        length = headers.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0].strip()
        chunked = b"\r\ntransfer-encoding: chunked" in headers
        if not first.startswith(b"HTTP/1.1 ") or not (chunked or length.isdigit()):
            raise BadAnswer(bytes(self._wire[:1000]).decode(errors="replace"))
        self._missing = None if chunked else int(length)
        del self._wire[: end + 4]
        self._in_body = True
        return True

    @property
    def _good(self) -> bool:
        return self._status.startswith(b"200")

    def _read_body(self) -> bytes:
        """What has come of it since. Raises BadAnswer for bytes behind its end, and for what is no chunk."""
        if self._missing is None:
            return self._read_chunks()
        payload = bytes(self._wire[: self._missing])
        del self._wire[: self._missing]
        self._missing -= len(payload)
        self.finished = self._missing == 0
        if self.finished and self._wire:
            raise BadAnswer(f"bytes after the body: {bytes(self._wire[:100])!r}")
        return payload

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

    def _refuse(self, body: bytes) -> None:
        """Raises BadAnswer with the status and the body of a refusal that is all there."""
        if self.finished:
            status, text = self._status.decode(errors="replace"), body[:1000].decode(errors="replace")
            raise BadAnswer(f"{status}: {text}" if text else status)


class EventStream(_Answer):
    """Incremental parser of an answer in events."""

    def __init__(self) -> None:
        super().__init__()
        self._event = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The events that ``data`` completes, without the blank line that ends them.

        Raises BadAnswer for another status, once its body is there, or framing, and for bytes after the last chunk.
        """
        self._wire += data
        self.begun = True
        if not self._in_body:
            if not self._read_head():
                return []
            if self._good and self._missing is not None:
                raise BadAnswer(f"an answer in one piece: {bytes(self._wire[:1000]).decode(errors='replace')}")
        payload = self._read_body()
        if not self._good:
            self._event += payload
            self._refuse(self._event)
            return []
        if not payload:
            return []
        payload = self._event + payload
        if b"\r" in payload:
            payload = payload.replace(b"\r\n", b"\n")
        *events, self._event = payload.split(b"\n\n")
        return events


class WholeBody(_Answer):
    """Incremental parser of an answer that is one body, which is its only event."""

    def __init__(self) -> None:
        super().__init__()
        self._body = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The body, once ``data`` completes it. Raises BadAnswer for another status, once its body is there, for
        another framing, and for more bytes."""
        self._wire += data
        self.begun = True
        if not self._in_body and not self._read_head():
            return []
        self._body += self._read_body()
        if not self._good:
            self._refuse(self._body)
        return [self._body] if self.finished else []
