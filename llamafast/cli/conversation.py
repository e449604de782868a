"""A conversation with a server over OpenAI's chat API: what was said, and answers as they come."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, NamedTuple

import httpcore2
import msgspec
from msgspec import Struct

from llamafast.server_url import check_key, read_url

CONNECT_SECONDS = 10.0
# A server that says nothing for so long has gone; ours is never silent for longer than its pings.
SILENCE_SECONDS = 600.0
NOBODY = (httpcore2.NetworkError, httpcore2.ProtocolError, httpcore2.TimeoutException, OSError)


_NO_ANSWER = "what comes is no answer of OpenAI's API"


class ServerRefused(Exception):
    """What the server said in place of an answer."""


class _Delta(Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(Struct):
    delta: _Delta | None = None


class _Usage(Struct):
    completion_tokens: int | None = None


class _Event(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


class _Model(Struct):
    id: str


class _Models(Struct):
    data: list[_Model]


class Piece(NamedTuple):
    text: str
    is_reasoning: bool


@dataclass
class Measured:
    """Of one answer: seconds to its first piece and from that to its last, tokens as the server counts them."""

    first_seconds: float | None = None
    seconds: float = 0.0
    n_tokens: int | None = None

    def in_words(self) -> str:
        parts = []
        if self.n_tokens is not None:
            parts.append(f"{self.n_tokens} tokens")
            if self.n_tokens > 1 and self.seconds > 0:
                parts.append(f"{(self.n_tokens - 1) / self.seconds:.1f} tok/s")
        if self.first_seconds is not None:
            parts.append(f"first after {self.first_seconds:.2f} s")
        return ", ".join(parts)


class Server:
    """``url`` is a server's address, with or without /v1; with ``uds`` it listens on that Unix socket. Raises
    ConfigError for an address or a key that is none."""

    def __init__(self, url: str, key: str = "", *, uds: str | None = None) -> None:
        self._root = read_url(url).root
        self._headers = [(b"content-type", b"application/json")]
        if key:
            self._headers.append((b"authorization", b"Bearer " + check_key(key).encode()))
        self._pool = httpcore2.ConnectionPool(uds=uds)

    def is_ready(self) -> bool:
        try:
            return self._get("/ready").status == 200
        except NOBODY:
            return False

    def model(self) -> str:
        """The first one that it has. Raises ServerRefused or NOBODY."""
        response = self._get("/v1/models")
        with suppress(msgspec.DecodeError):
            if response.status == 200 and (models := msgspec.json.decode(response.content, type=_Models).data):
                return models[0].id
        raise ServerRefused(_fault(response.status, response.content))

    @contextmanager
    def answering(self, body: dict[str, Any]) -> Iterator[Iterator[_Event]]:
        """The events of a stream; who leaves it early cancels it. Raises ServerRefused or NOBODY."""
        with self._pool.stream(
            "POST",
            f"{self._root}/v1/chat/completions",
            headers=self._headers,
            content=json.dumps(body).encode(),
            extensions=_patience(SILENCE_SECONDS),
        ) as response:
            if response.status != 200:
                raise ServerRefused(_fault(response.status, response.read()))
            yield _events(response.iter_stream())

    def close(self) -> None:
        self._pool.close()

    def _get(self, path: str) -> httpcore2.Response:
        return self._pool.request(
            "GET", self._root + path, headers=self._headers, extensions=_patience(CONNECT_SECONDS)
        )


@dataclass
class Conversation:
    """``system`` stands before all that was said, as long as it is not empty."""

    server: Server
    model: str
    system: str = ""
    max_tokens: int | None = None
    said: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str, measured: Measured) -> Generator[Piece, None, None]:
        """The answer to a question; what came of it is kept, however far it came, and a question without any is
        forgotten. Raises ServerRefused or NOBODY."""
        self.said.append({"role": "user", "content": question})
        system = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, *self.said],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.max_tokens is not None:
            body["max_tokens"] = self.max_tokens
        answer: list[str] = []
        began = monotonic()
        try:
            with self.server.answering(body) as events:
                for event in events:
                    for piece in _pieces(event, measured):
                        now = monotonic()
                        if measured.first_seconds is None:
                            measured.first_seconds = now - began
                        measured.seconds = now - began - measured.first_seconds
                        if not piece.is_reasoning:
                            answer.append(piece.text)
                        yield piece
        finally:
            if answer:
                self.said.append({"role": "assistant", "content": "".join(answer)})
            else:
                self.said.pop()


def _pieces(event: _Event, measured: Measured) -> Iterator[Piece]:
    if (error := event.error) is not None:
        raise ServerRefused(str(error.get("message", error)) if isinstance(error, dict) else str(error))
    if event.usage is not None and event.usage.completion_tokens is not None:
        measured.n_tokens = event.usage.completion_tokens
    for choice in event.choices or ():
        delta = choice.delta or _Delta()
        if reasoning := delta.reasoning_content or delta.reasoning:
            yield Piece(reasoning, is_reasoning=True)
        if delta.content:
            yield Piece(delta.content, is_reasoning=False)


def _events(chunks: Iterator[bytes]) -> Iterator[_Event]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                try:
                    yield msgspec.json.decode(line[5:], type=_Event)
                except msgspec.DecodeError as error:
                    raise ServerRefused(f"{_NO_ANSWER}: {error}") from error


def _decoded(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _fault(status: int, raw: bytes) -> str:
    body = _decoded(raw)
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return f"{status}: {message or raw[:200].decode(errors='replace')}"


def _patience(seconds: float) -> dict[str, Any]:
    return {"timeout": {"connect": CONNECT_SECONDS, "read": seconds, "write": 60.0, "pool": None}}
