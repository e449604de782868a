"""Media that a request carries itself: data URLs (RFC 2397) and bare base64."""

from __future__ import annotations

import binascii
import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from llamafast.errors import InvalidMedia
from llamafast.media.limits import ByteLimit

_WHITE_SPACE = re.compile(r"[ \t\r\n]+")
# The alphabet that is safe in URLs, RFC 4648 §5.
_URL_SAFE = str.maketrans("-_", "+/")
_MAX_HEAD = 1024


class DataUrl(NamedTuple):
    """``media_type`` in lower case without parameters, empty where the URL names none."""

    media_type: str
    data: bytes


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
        # at most three characters a byte
        limit.check((len(url) - comma - 1) // 3)
        data = unquote_to_bytes(url[comma + 1 :])
        limit.check(len(data))
    return DataUrl(media_type.strip().lower(), data)


def read_base64(text: str, limit: ByteLimit, start: int = 0) -> bytes:
    """The bytes that ``text`` from ``start`` on stands for. Raises InvalidMedia."""
    # a line break of at most two characters for every 64, and a few more
    limit.check((len(text) - start - 64) * 3 // 4 * 32 // 33)
    digits = text[start:]
    if not digits.isascii():
        raise InvalidMedia("the base64 is not valid")
    if "%" in digits:
        digits = unquote_to_bytes(digits).decode("latin-1")
    digits = _WHITE_SPACE.sub("", digits).translate(_URL_SAFE).rstrip("=")
    limit.check(len(digits) * 3 // 4)
    try:
        return binascii.a2b_base64(digits + "=" * (-len(digits) % 4), strict_mode=True)
    except (binascii.Error, ValueError):
        raise InvalidMedia("the base64 is not valid") from None
