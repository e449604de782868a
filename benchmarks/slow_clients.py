"""Clients that hold a connection and do as little as possible with it, of every kind that HTTP and WebSockets allow."""

from __future__ import annotations

import json
import select
import socket
import struct
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from time import monotonic
from typing import NamedTuple, Self

TRICKLE_SECONDS = 0.3
LOOK_SECONDS = 0.02
# So that what nobody reads stands still soon: with loopback's own segments the kernel takes 2.5 MB.
RECEIVE_BUFFER = 4096
SEGMENT_BYTES = 536
GONE = select.POLLRDHUP | select.POLLHUP | select.POLLERR

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, CONTINUATION = 0, 1, 4, 6, 9
END_STREAM, END_HEADERS = 1, 4
INITIAL_WINDOW_SIZE = 4


class Kind(NamedTuple):
    """``first`` is sent at once, ``trickle`` every TRICKLE_SECONDS from then on, and nothing is ever read. The limits
    named ``ends`` end the connection, one after the other."""

    ends: tuple[str, ...]
    first: bytes
    trickle: bytes = b""


def head(line: str, *fields: str) -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", "host: localhost", *fields, "", ""]).encode()


def post(path: str, body: Mapping[str, object]) -> bytes:
    data = json.dumps(body).encode()
    return head(f"POST {path}", f"content-length: {len(data)}") + data


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Of HTTP/2."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def fields(*pairs: tuple[bytes, bytes]) -> bytes:
    """A block of header fields as literals (HPACK without its tables); each has fewer than 127 bytes."""
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in pairs)


def ask(method: bytes, path: bytes) -> bytes:
    return fields((b":method", method), (b":path", path), (b":scheme", b"http"), (b":authority", b"localhost"))


def text_frame(text: bytes) -> bytes:
    """Of a WebSocket, from a client: masked, by zeros."""
    return b"\x81\xfe" + struct.pack(">H", len(text)) + bytes(4) + text


GET = head("GET /v1/models")
POST = "POST /v1/completions"
UPGRADE = head(
    "GET /v1/responses", "connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13",
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
)  # fmt: skip
HTTP2 = PREFACE + frame(SETTINGS, 0, 0)
HTTP2_GET = frame(HEADERS, END_HEADERS | END_STREAM, 1, ask(b"GET", b"/v1/models"))
CLOSED_WINDOW = PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0))
# An answer of 3 MB, more than the kernel and Granian hold, and one that they hold whole.
TOKENIZE = post("/tokenize", {"content": "zq" * 70_000, "with_pieces": True})
TOKENIZE_LESS = post("/tokenize", {"content": "zq" * 20_000, "with_pieces": True})
# What a body gains for it would be a minute.
LARGE_BYTES = 2**20

KINDS = {
    "nothing": Kind(("header",), b""),
    "a letter": Kind(("header",), b"P"),
    "half a preface": Kind(("header",), PREFACE[:8]),
    "half a head": Kind(("header",), GET[:-4]),
    "a head by letters": Kind(("header",), GET[:-4], b"x"),
    "half a head after a request": Kind(("keep_alive",), GET + GET[:-4]),
    "idle after a request": Kind(("keep_alive",), GET),
    "HTTP/2, no request": Kind(("header",), HTTP2),
    "HTTP/2, half a frame": Kind(("header",), HTTP2 + HTTP2_GET[:-4]),
    "HTTP/2, a head by frames": Kind(
        ("header",),
        HTTP2 + frame(HEADERS, END_STREAM, 1, ask(b"GET", b"/")),
        frame(CONTINUATION, 0, 1, fields((b"x", b"y"))),
    ),
    "HTTP/2, idle after a request": Kind(("keep_alive",), HTTP2 + HTTP2_GET, frame(PING, 0, 0, bytes(8))),
    "HTTP/2, an unread answer": Kind(("keep_alive",), CLOSED_WINDOW + HTTP2_GET),
    "HTTP/2, half a body": Kind(
        ("body", "keep_alive"),
        HTTP2 + frame(HEADERS, END_HEADERS, 1, ask(b"POST", b"/v1/completions")),
        frame(DATA, 0, 1, b" "),
    ),
    "no body": Kind(("body",), head(POST, "content-length: 1000")),
    "half a body": Kind(("body",), head(POST, "content-length: 1000") + b"{"),
    "a body by bytes": Kind(("body",), head(POST, "content-length: 1000"), b" "),
    "a large body that stops": Kind(("body",), head(POST, f"content-length: {2 * LARGE_BYTES}") + b" " * LARGE_BYTES),
    "half a chunk": Kind(("body",), head(POST, "transfer-encoding: chunked") + b"50\r\n{"),
    "a body by chunks": Kind(("body",), head(POST, "transfer-encoding: chunked"), b"1\r\n \r\n"),
    "an unwanted body by bytes": Kind(("body",), head("POST /nowhere", "content-length: 1000"), b" "),
    "an unread answer": Kind(("send",), TOKENIZE),
    "an unread answer that is sent": Kind(("keep_alive", "send"), TOKENIZE_LESS),
    "WebSocket, no frame": Kind(("websocket_idle",), UPGRADE),
    "WebSocket, half a frame": Kind(("websocket_idle",), UPGRADE + text_frame(b"x" * 1000)[:-1]),
    "WebSocket, pings": Kind(("websocket_idle",), UPGRADE, b"\x89\x80" + bytes(4)),
}


def readers(max_tokens: int) -> dict[str, Kind]:
    """Those that have as many tokens generated, 100 of which are more than the kernel and Granian hold."""
    generating = {"ignore_eos": True, "temperature": 1}
    streaming = {**generating, "stream": True, "max_tokens": max_tokens}
    chat = {"messages": [{"role": "user", "content": "x"}], "logprobs": True, "top_logprobs": 20}
    response = {
        "type": "response.create", "input": "x", "store": False, "max_output_tokens": max_tokens,
        "include": ["message.output_text.logprobs"], "top_logprobs": 20,
    }  # fmt: skip
    request = json.dumps({**streaming, "prompt": "x"}).encode()
    return {
        "an unread stream": Kind(("send",), post("/v1/chat/completions", {**streaming, **chat})),
        "WebSocket, unread frames": Kind(
            ("send",), UPGRADE + text_frame(json.dumps({**generating, **response}).encode())
        ),
        "HTTP/2, an unread stream": Kind(
            ("send", "keep_alive"),
            CLOSED_WINDOW
            + frame(HEADERS, END_HEADERS, 1, ask(b"POST", b"/v1/completions"))
            + frame(DATA, END_STREAM, 1, request),
        ),
    }


class SlowClient:
    """``lasted`` is how many seconds its connection was open, once it no longer is."""

    def __init__(self, port: int, kind: Kind) -> None:
        self.kind = kind
        self.lasted: float | None = None
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(kind.first)
        self._opened = monotonic()

    def trickle(self) -> None:
        # the server may be closing
        with suppress(ConnectionError):
            self.socket.send(self.kind.trickle)

    def end(self) -> None:
        self.lasted = monotonic() - self._opened
        self.socket.close()


class Crowd:
    """Slow clients of the given kinds, open as soon as the context is; a thread of its own trickles for them."""

    def __init__(self, port: int, kinds: Iterable[Kind]) -> None:
        self.clients = [SlowClient(port, kind) for kind in kinds]
        self._open = {client.socket.fileno(): client for client in self.clients}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._live)

    @property
    def n_open(self) -> int:
        return len(self._open)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        for client in self._open.values():
            client.socket.close()

    def _live(self) -> None:
        poll = select.poll()
        for descriptor in self._open:
            poll.register(descriptor, select.POLLRDHUP)
        due = monotonic()
        while not self._closing.wait(LOOK_SECONDS):
            for descriptor, events in poll.poll(0):
                if events & GONE:
                    poll.unregister(descriptor)
                    self._open.pop(descriptor).end()
            if monotonic() >= due:
                due += TRICKLE_SECONDS
                for client in self._open.values():
                    if client.kind.trickle:
                        client.trickle()
