"""One part of a saved prefix as a file: a safetensors container with checksums, and the name of what it continues.

A head of 4096 bytes (the length, JSON, blanks), ``tokens`` (int32) and ``state`` (uint8). What is not provably as it
was written is no entry: llama.cpp takes a state for what it says it is, and aborts over some that lie.
"""

from __future__ import annotations

import re
from array import array
from struct import Struct as Packing

import msgspec
import xxhash
from msgspec import Struct

FORMAT = "llamafast-1"
HEAD_BYTES = 4096
NAME = re.compile(r"(?P<id>[0-9a-f]{32})\.safetensors")
_ROOT = re.compile(r"([0-9a-f]{2}){,64}")
UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.tmp")
_LENGTH = Packing("<Q")
_ITEM = array("i").itemsize


class Head(Struct, frozen=True, kw_only=True):
    """What an entry says of itself. ``id`` and ``base`` (empty: it begins at 0) are 32 digits of hex, ``root`` is whose
    it is, a digest in hex or empty, and ``base_root`` whose its base is where that is somebody else's; ``depth`` counts
    what it continues, all the way down. Its state is of tokens [start, stop) of a sequence, ``n_bytes`` long."""

    id: str
    base: str
    root: str
    start: int
    stop: int
    depth: int
    n_bytes: int
    state_xxh3_128: str
    base_root: str | None = None

    @property
    def at(self) -> int:
        """Where the state begins in the file."""
        return HEAD_BYTES + _ITEM * (self.stop - self.start)

    @property
    def file_bytes(self) -> int:
        return self.at + self.n_bytes


def file_name(id: str) -> str:
    return f"{id}.safetensors"


def unfinished_name(id: str) -> str:
    return f".{id}.tmp"


class Checksum:
    """Of a state, slice by slice, each while it is in the CPU's caches. Releases the GIL."""

    def __init__(self) -> None:
        self._digest = xxhash.xxh3_128()

    def add(self, data: memoryview) -> None:
        self._digest.update(data)

    @property
    def text(self) -> str:
        return self._digest.hexdigest()


def encode_head(head: Head, namespace: str, tokens: array[int]) -> bytes:
    """The first bytes of the file, its tokens included; the state follows."""
    assert len(tokens) == head.stop - head.start
    told = {
        "format": FORMAT,
        "namespace": namespace,
        "id": head.id,
        "base": head.base,
        "root": head.root,
        "start": str(head.start),
        "stop": str(head.stop),
        "depth": str(head.depth),
        "state_xxh3_128": head.state_xxh3_128,
    }
    if head.base_root is not None:
        told["base_root"] = head.base_root
    n_tokens, end = len(tokens), head.at - HEAD_BYTES
    content = {
        "__metadata__": told | {"head_xxh3_64": _head_checksum(told, tokens.tobytes())},
        "tokens": {"dtype": "I32", "shape": [n_tokens], "data_offsets": [0, end]},
        "state": {"dtype": "U8", "shape": [head.n_bytes], "data_offsets": [end, end + head.n_bytes]},
    }
    encoded = msgspec.json.encode(content).ljust(HEAD_BYTES - _LENGTH.size)
    assert len(encoded) == HEAD_BYTES - _LENGTH.size, "all of it has a bound far below"
    return _LENGTH.pack(len(encoded)) + encoded + tokens.tobytes()


class _Content(Struct, frozen=True):
    metadata: dict[str, str] = msgspec.field(name="__metadata__")


_DECODER = msgspec.json.Decoder(_Content)


def parse_head(data: bytes, id: str, n_bytes: int) -> Head | None:
    """What the first HEAD_BYTES of a file say, whose name has ``id`` and which is ``n_bytes`` long: not to be believed
    before ``tokens_of`` does. None where it cannot be true."""
    if len(data) < HEAD_BYTES:
        return None
    try:
        told = _DECODER.decode(data[_LENGTH.size : HEAD_BYTES]).metadata
        start, stop = int(told["start"]), int(told["stop"])
        head = Head(
            id=id,
            base=told["base"],
            root=told["root"],
            start=start,
            stop=stop,
            depth=int(told["depth"]),
            n_bytes=n_bytes - HEAD_BYTES - _ITEM * (stop - start),
            state_xxh3_128=told["state_xxh3_128"],
            base_root=told.get("base_root"),
        )
    except (msgspec.DecodeError, KeyError, ValueError, RecursionError):
        return None
    possible = 0 <= head.start < head.stop < 2**31 and 0 <= head.depth < 2**31 and head.n_bytes > 0
    named = (
        re.fullmatch(r"[0-9a-f]{32}" if head.depth else "", head.base)
        and _ROOT.fullmatch(head.root)
        and (head.base_root is None or (head.depth and _ROOT.fullmatch(head.base_root)))
        and re.fullmatch(r"[0-9a-f]{32}", head.state_xxh3_128)
    )
    return head if possible and named else None


def tokens_of(data: bytes, head: Head, namespace: str) -> array[int] | None:
    """The tokens, where ``data``, a file's bytes before the state, is to the last bit what was written."""
    if len(data) != head.at:
        return None
    tokens = array("i")
    tokens.frombytes(data[HEAD_BYTES:])
    return tokens if encode_head(head, namespace, tokens) == data else None


def _head_checksum(told: dict[str, str], tokens: bytes) -> str:
    digest = xxhash.xxh3_64(msgspec.json.encode(told))
    digest.update(tokens)
    return digest.hexdigest()
