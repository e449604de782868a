"""Items as bytes of a store, their long texts of media kept apart from them.

In the place of such a text there is a reference to it: NUL, a digest, NUL. JSON escapes NUL in strings: no client can
write one, and what was stored before there were any is read as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import msgspec

from llamafast.api.cut_body import CutTexts
from llamafast.api.media_texts import encode_whole
from llamafast.api.responses.items import Item, in_item
from llamafast.engine.media import DetachedText

# Shorter texts stay in their items: rows of their own take as much.
_LEAST_BYTES = 4096
_MAX_HEAD = 1024
_MARK = b"\0"
_REFERENCE_BYTES = len(_MARK) * 2 + sha256().digest_size * 2
_ITEMS = msgspec.json.Decoder(list[Item])
# Between two items of a list. No item has a line break: JSON escapes those in strings. Lists of older servers have
# commas only and are decoded in one piece.
_BETWEEN = b",\n"


class Payload(bytearray):
    """A text that is stored, as in a JSON string, which has no escapes for it."""

    def __init__(self, digest: str) -> None:
        self.digest = digest


# By their digests.
Payloads = dict[str, Payload]


class StowedItems:
    """Encodes items; ``payloads`` are by their digests the texts that those encoded so far refer to."""

    def __init__(self) -> None:
        self.payloads: dict[str, bytes | memoryview] = {}

    def encoded(self, item: Item) -> bytes:
        return encode_whole(in_item(item, self._stowed))

    def _stowed(self, text: str) -> str | msgspec.Raw:
        """A reference to ``text`` where it is long: of a data URL to what follows its head, as the same file may be
        sent with another. Addresses stay, and so does base64 in lines: its line breaks have escapes."""
        n_head = text.find(",", 0, _MAX_HEAD) + 1 if text[:5].lower() == "data:" else 0
        if not n_head and ":" in text[:16]:
            return text
        tail = msgspec.json.encode(text[n_head:])[1:-1]
        if b"\\" in tail:
            return text
        payload: bytes | memoryview = tail
        if isinstance(text, DetachedText):
            payload = tail + text.base64 if tail else text.base64
        if len(payload) < _LEAST_BYTES:
            return text
        digest = _digest(payload)
        self.payloads[digest] = payload
        head = msgspec.json.encode(text[:n_head])[:-1]
        return msgspec.Raw(b"".join([head, _MARK, digest.encode(), _MARK, b'"']))


def _digest(payload: bytes | memoryview) -> str:
    stored = payload.obj if isinstance(payload, memoryview) else None
    return stored.digest if isinstance(stored, Payload) else sha256(payload).hexdigest()


def encoded_list(items: Sequence[bytes]) -> bytes:
    """Of items that were encoded one by one, so that no call keeps the GIL for a whole conversation."""
    return b"[%b]" % _BETWEEN.join(items)


def decoded_list(blob: bytes, payloads: Payloads) -> list[Item]:
    """What ``encoded_list`` made, one by one too."""
    items: list[Item] = []
    at, last = 1, len(blob) - 1
    while at < last:
        end = blob.find(_BETWEEN, at)
        end = last if end < 0 else end
        items += decoded_items(blob[at:end], payloads)
        at = end + len(_BETWEEN)
    return items


def decoded_items(blob: bytes, payloads: Payloads) -> list[Item]:
    """Items with commas between them; texts of ``payloads`` are DetachedText."""
    pieces = blob.split(_MARK)
    cut = CutTexts()
    pieces[1::2] = [cut.word(memoryview(payloads[digest.decode()])) for digest in pieces[1::2]]
    items = _ITEMS.decode(b"[%b]" % b"".join(pieces))
    return [in_item(item, cut.detached) for item in items] if len(pieces) > 1 else items


def references(blob: bytes) -> list[str]:
    """The digests that items in ``blob`` refer to."""
    return [digest.decode() for digest in blob.split(_MARK)[1::2]] if _MARK in blob else []


def whole_size(blob: bytes, payloads: Payloads) -> int:
    """The length of ``blob`` with its texts in it."""
    return len(blob) + sum(len(payloads[digest]) - _REFERENCE_BYTES for digest in references(blob))
