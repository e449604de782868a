"""Media that a request carries itself: data URLs (RFC 2397) and bare base64."""

from __future__ import annotations

import binascii
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from llamafast.engine.media import DetachedText
from llamafast.errors import InvalidMedia
from llamafast.media.limits import ByteLimit

_WHITE_SPACE = b" \t\r\n"
# The alphabet that is safe in URLs, RFC 4648 §5.
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
# What is decoded in one call.
_PIECE = 1 << 20
_MAX_HEAD = 1024


class DataUrl(NamedTuple):
    """``media_type`` in lower case without parameters, empty where the URL names none."""

    media_type: str
    data: bytes | bytearray


def read_data_url(url: str, limit: ByteLimit) -> DataUrl:
    """What a data URL holds: any parameters, base64 of either alphabet with or without padding and white space, or
    percent-encoded bytes. Raises InvalidMedia, before much more than ``limit`` is decoded."""
    comma = url.find(",", 0, _MAX_HEAD)
    if comma < 0 or url[:5].lower() != "data:":
        raise InvalidMedia("a data URL is `data:image/png;base64,` and base64")
    media_type, *parameters = url[5:comma].split(";")
    if parameters and parameters[-1].strip().lower() == "base64":
        data = read_base64(url, limit, comma + 1)
    else:
        rest = _detached(url)
        # at most three characters a byte
        limit.check((len(url) - comma - 1 + len(rest)) // 3)
        # an escape may begin before what is detached
        data = bytearray(unquote_to_bytes(url[comma + 1 :].encode() + rest))
        limit.check(len(data))
    return DataUrl(media_type.strip().lower(), data)


def read_base64(text: str, limit: ByteLimit, start: int = 0) -> bytearray:
    """The bytes that ``text`` from ``start`` on stands for. Raises InvalidMedia.

    Piece by piece, between which another thread may run.
    """
    rest = _detached(text)
    # a line break of at most two characters for every 64, and a few more
    limit.check((len(text) - start + len(rest) - 64) * 3 // 4 * 32 // 33)
    decoder = _DigitDecoder(limit)
    for at in range(start, len(text), _PIECE):
        piece = text[at : at + _PIECE]
        if not piece.isascii():
            raise InvalidMedia("the base64 is not valid")
        decoder.add(piece.encode())
    for at in range(0, len(rest), _PIECE):
        decoder.add(bytes(rest[at : at + _PIECE]))
    return decoder.end()


def _detached(text: str) -> memoryview:
    return text.base64 if isinstance(text, DetachedText) else memoryview(b"")


class _DigitDecoder:
    """Decodes base64 that comes in pieces."""

    def __init__(self, limit: ByteLimit) -> None:
        self._limit = limit
        self._data = bytearray()
        self._left = b""  # digits that do not make three bytes yet
        self._escape = b""  # a percent sign whose two digits are to come

    def add(self, piece: bytes) -> None:
        piece = self._escape + piece
        if b"%" in piece:
            cut = piece.rfind(b"%", len(piece) - 2)
            piece, self._escape = (piece[:cut], piece[cut:]) if cut >= 0 else (piece, b"")
            piece = unquote_to_bytes(piece)
        else:
            self._escape = b""
        digits = self._left + piece.translate(_URL_SAFE, _WHITE_SPACE)
        n = max(0, len(digits) - 4) // 4 * 4
        if b"=" in digits[:n]:
            if digits.rstrip(b"=").find(b"=") >= 0:
                # padding, and more behind it
                raise InvalidMedia("the base64 is not valid")
            n = 0  # nothing but more padding may come
        self._left = digits[n:]
        self._decode(digits[:n])

    def end(self) -> bytearray:
        if self._escape:
            raise InvalidMedia("the base64 is not valid")
        digits = self._left.rstrip(b"=")
        self._decode(digits + b"=" * (-len(digits) % 4))
        return self._data

    def _decode(self, digits: bytes) -> None:
        try:
            self._data += binascii.a2b_base64(digits, strict_mode=True) if digits else b""
        except (binascii.Error, ValueError):
            raise InvalidMedia("the base64 is not valid") from None
        self._limit.check(len(self._data))
