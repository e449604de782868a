"""multipart/form-data (RFC 7578) → the fields of a form and its one file."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple

from llamafast.errors import InvalidRequest, UnsupportedMediaType

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE = "file"
# Of one form: parts, headers of a part, bytes of one of them, of a name, of all texts.
MAX_PARTS, MAX_HEADERS, MAX_HEADER_BYTES, MAX_NAME_BYTES, MAX_TEXT_BYTES = 128, 8, 4096, 128, 256 * 1024
# Bytes of a boundary, by RFC 2046.
MAX_BOUNDARY = 70
# What is read in one call, between two of which another thread may run.
_PIECE = 1 << 20


class Form(NamedTuple):
    """``fields`` by name: texts, lists of texts by names that end in ``[]`` or come several times, and objects by such
    as ``name[key]``; empty texts are left out. ``file`` are the bytes of the file, a part of the body."""

    fields: dict[str, Any]
    file: memoryview | None


def read_form(body: bytes, content_type: bytes, lists: Collection[str] = ()) -> Form:
    """What ``body`` says; fields named in ``lists`` may come several times. Raises InvalidRequest for a form
    that is not well formed, cut off, or has more of anything than may be."""
    if find_spec("python_multipart") is None:
        raise UnsupportedMediaType("reading a form needs the package python-multipart: pip install 'llamafast[media]'")
    parts = _Parts(body)
    parts.read(_boundary(content_type))
    fields: dict[str, Any] = {}
    file: memoryview | None = None
    n_bytes = 0
    for part in parts.found:
        name, has_file_name = _name(part.disposition)
        if name == FILE:
            if file is not None:
                raise InvalidRequest("the field 'file' occurs twice", param=FILE)
            file = part.data
        elif has_file_name:
            raise InvalidRequest(f"{name[:64]!r} is a file, and the one that is taken is called `file`", param=name)
        else:
            n_bytes += len(part.data)
            if n_bytes > MAX_TEXT_BYTES:
                raise InvalidRequest(f"the fields of a form have at most {MAX_TEXT_BYTES} bytes", param=name)
            if text := _utf8(bytes(part.data), name):
                _add(fields, name, text, lists)
    return Form(fields, file)


class _Part(NamedTuple):
    disposition: bytes
    data: memoryview


class _Parts:
    """Reads ``body`` once; ``found`` are its parts in their order."""

    def __init__(self, body: bytes) -> None:
        self.found: list[_Part] = []
        self._body = body
        self._piece = b""
        self._at = 0  # where the piece begins
        self._start = self._end = -1  # of the part's data
        self._header = self._value = self._disposition = b""
        self._ended = False

    def read(self, boundary: bytes) -> None:
        """Raises InvalidRequest."""
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser

        # what a client writes is no news for the log
        logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
        _check_number(self._body, b"--" + boundary)
        parser = MultipartParser(
            boundary, self._callbacks(), max_header_count=MAX_HEADERS, max_header_size=MAX_HEADER_BYTES
        )
        try:
            for at in range(0, len(self._body), _PIECE):
                self._at, self._piece = at, self._body[at : at + _PIECE]
                parser.write(self._piece)
        except FormParserError as error:
            raise InvalidRequest("the form is not well formed, as multipart/form-data has it") from error
        if not self._ended:
            raise InvalidRequest("the form is cut off, or its boundary is another one than its header says")

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._data,
            "on_part_end": self._part_end,
            "on_end": self._form_end,
        }

    def _begin(self) -> None:
        self._start = self._end = -1
        self._header = self._value = self._disposition = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.strip().lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        # a part's data lie in a row; the parser hands the end of the former piece over from a place of its own
        if self._start < 0:
            self._start = self._end = self._at + start if data is self._piece else self._at - (end - start)
        self._end += end - start

    def _part_end(self) -> None:
        self.found.append(_Part(self._disposition, memoryview(self._body)[max(self._start, 0) : max(self._end, 0)]))

    def _form_end(self) -> None:
        self._ended = True


def _check_number(body: bytes, delimiter: bytes) -> None:
    """Raises InvalidRequest for more parts than may be, before any is read: what looks like the end of a part, and is
    none, costs the parser some time as well."""
    n = sum(_in_pieces(body, delimiter))
    if n > MAX_PARTS + 1:
        raise InvalidRequest(f"a form has at most {MAX_PARTS} fields")


def _in_pieces(body: bytes, delimiter: bytes) -> Iterator[int]:
    for at in range(0, len(body), _PIECE):
        yield body.count(delimiter, at, at + _PIECE + len(delimiter) - 1)


def _boundary(content_type: bytes) -> bytes:
    boundary = _options(content_type)[1].get(b"boundary", b"")
    if not boundary:
        raise InvalidRequest("the header `content-type` names no boundary between the fields of the form")
    if len(boundary) > MAX_BOUNDARY or b"\r" in boundary or b"\n" in boundary:
        raise InvalidRequest(f"the boundary of a form has 1 to {MAX_BOUNDARY} bytes")
    return boundary


def _options(header: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """The value of a header and its parameters."""
    kind, _, rest = header[:MAX_HEADER_BYTES].partition(b";")
    if not rest:
        return kind.strip().lower(), {}
    from python_multipart.multipart import parse_options_header

    return parse_options_header(header[:MAX_HEADER_BYTES].decode("latin-1"))


def _name(disposition: bytes) -> tuple[str, bool]:
    """Of a part, and whether it has the name of a file too."""
    kind, options = _options(disposition)
    name = options.get(b"name", b"")
    if kind != b"form-data" or not 0 < len(name) <= MAX_NAME_BYTES:
        raise InvalidRequest("a field of the form has no name, or a very long one")
    return _utf8(name, "name"), b"filename" in options


def _utf8(text: bytes, name: str) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"the field {name[:64]!r} is not valid UTF-8", param=name[:64]) from None


def _add(fields: dict[str, Any], name: str, text: str, lists: Collection[str]) -> None:
    base, bracket, key = name.partition("[")
    key = key.removesuffix("]")
    if not bracket and base not in lists:
        if base in fields:
            raise InvalidRequest(f"the field {base[:64]!r} occurs twice", param=base[:64])
        fields[base] = text
        return
    empty: list[str] | dict[str, str] = {} if key else []
    kept = fields.setdefault(base, empty)
    if isinstance(kept, list) and not key:
        kept.append(text)
    elif isinstance(kept, dict) and key and key not in kept:
        kept[key] = text
    else:
        raise InvalidRequest(f"the field {base[:64]!r} occurs twice, in two forms", param=base[:64])
