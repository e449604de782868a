"""The lines of a batch: requests that are read, results that are written, and which of them are there already."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple
from uuid import uuid4

import msgspec
from msgspec import Struct

from llamafast.errors import ConfigError

_POSTS = frozenset({"POST", "post"})
# So each line of an output begins.
_BEGIN = b'{"id":"batch_req_'


class Request(NamedTuple):
    """``line`` counts from 1; ``body`` is JSON."""

    line: int
    custom_id: str
    url: str
    body: bytes


class BadLine(NamedTuple):
    """A line that is no request, and why."""

    line: int
    custom_id: str | None
    reason: str


class Fault(Struct, kw_only=True, omit_defaults=True):
    """Why a line has no response. ``line`` is told where it is no request, whether or not it has an id."""

    code: str
    message: str
    line: int | None = None


class Response(Struct):
    status_code: int
    request_id: str
    body: Any


class Result(Struct, kw_only=True):
    """One line of the output: a response, whatever its status, or an error."""

    id: str = msgspec.field(default_factory=lambda: f"batch_req_{uuid4().hex}")
    custom_id: str | None
    response: Response | None = None
    error: Fault | None = None

    @property
    def failed(self) -> bool:
        return self.response is None or self.response.status_code >= 400


class _Written(Result, kw_only=True):
    """A result as a file has it: no other file's lines pass for one."""

    id: Annotated[str, msgspec.Meta(pattern="^batch_req_")]
    response: Response | None
    error: Fault | None


class Done(NamedTuple):
    """What an output has: ids of requests, and lines that are none; how many failed."""

    custom_ids: set[str]
    lines: set[int]
    n_failed: int


def check_readable(path: Path) -> None:
    """Raises ConfigError where it is no file that can be read."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise ConfigError(f"{path.absolute()}: {error.strerror or error}") from error


def read_requests(path: Path, done: Done) -> Iterator[Request | BadLine]:
    """What of the file is still to be done. Raises ConfigError where it cannot be read."""
    seen: set[str] = set()
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if not raw.strip():
                    continue
                read = _request(number, raw, seen)
                if isinstance(read, Request):
                    seen.add(read.custom_id)
                    if read.custom_id not in done.custom_ids:
                        yield read
                elif number not in done.lines:
                    yield read
    except OSError as error:
        raise ConfigError(f"{path.absolute()}: {error.strerror or error}") from error


def _request(number: int, raw: bytes, seen: set[str]) -> Request | BadLine:
    try:
        tree = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return BadLine(number, None, f"is not JSON: {error}")
    custom_id = tree.get("custom_id") if isinstance(tree, dict) else None
    if not isinstance(custom_id, str) or not custom_id:
        return BadLine(number, None, "has no `custom_id`, a string")
    if any("\ud800" <= letter <= "\udfff" for letter in custom_id):
        return BadLine(number, None, "has half a surrogate pair in its `custom_id`")
    if custom_id in seen:
        return BadLine(number, None, f"has the `custom_id` {custom_id[:64]!r} of an earlier one")
    url, body, method = tree.get("url"), tree.get("body"), tree.get("method", "POST")
    if method not in _POSTS:
        return BadLine(number, custom_id, "has a `method` other than POST")
    if not isinstance(url, str) or not url.startswith("/") or not url.isascii() or not url.isprintable() or " " in url:
        return BadLine(number, custom_id, "has no `url`, a path as /v1/chat/completions")
    if not isinstance(body, dict):
        return BadLine(number, custom_id, "has no `body`, an object")
    if body.get("stream"):
        return BadLine(number, custom_id, "asks for a stream, of which a batch has no use")
    return Request(number, custom_id, url, json.dumps(body).encode())


def open_output(path: Path, given: Path) -> tuple[BinaryIO, Done]:
    """The output to be added to, and what it has. A last line that was cut is taken away. Raises ConfigError for a file
    that is no batch's output, is another's that runs, or the one ``given``; nothing is changed then."""
    try:
        if path.exists() and path.samefile(given):
            raise ConfigError(f"{path}: is what the batch reads; its output has to be another file")
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: is no file")
        file = path.open("a+b")
    except OSError as error:
        raise ConfigError(f"{path.absolute()}: {error.strerror or error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file, _done(file, path)
    except BlockingIOError as error:
        file.close()
        raise ConfigError(f"{path}: another batch writes it") from error
    except OSError as error:
        file.close()
        raise ConfigError(f"{path.absolute()}: {error.strerror or error}") from error
    except BaseException:
        file.close()
        raise


def add_line(file: BinaryIO, line: bytes) -> None:
    """Write ``line`` behind the others, past the file's buffer: what could not be written is not tried again. Raises
    ConfigError where there is no room for it, or the disk is gone; the lines before it stay whole."""
    end = os.fstat(file.fileno()).st_size
    left = memoryview(line)
    try:
        while left:
            left = left[os.write(file.fileno(), left) :]
    except OSError as error:
        with suppress(OSError):
            os.ftruncate(file.fileno(), end)
        raise ConfigError(f"{file.name}: {error.strerror}; the batch goes on from here when it is run again") from error


def _done(file: BinaryIO, path: Path) -> Done:
    custom_ids: set[str] = set()
    lines: set[int] = set()
    n_failed = end = 0
    file.seek(0)
    for raw in file:
        if not raw.endswith(b"\n"):
            if not (raw.startswith(_BEGIN) or _BEGIN.startswith(raw)):
                raise ConfigError(f"{path}: is no output of a batch: its last line does not begin like one")
            break
        end += len(raw)
        result = _result(raw, path)
        n_failed += result.failed
        if result.error is not None and result.error.line is not None:
            lines.add(result.error.line)
        elif result.custom_id is not None:
            custom_ids.add(result.custom_id)
    file.truncate(end)
    file.seek(end)
    return Done(custom_ids, lines, n_failed)


def _result(raw: bytes, path: Path) -> Result:
    try:
        return msgspec.json.decode(raw, type=_Written)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError(f"{path}: is no output of a batch: {error}") from error


def failed(bad: BadLine) -> Result:
    fault = Fault(code="invalid_request", message=f"line {bad.line} {bad.reason}", line=bad.line)
    return Result(custom_id=bad.custom_id, error=fault)
