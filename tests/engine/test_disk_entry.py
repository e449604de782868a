"""Entries of the disk tier as files: whole, or no entries at all."""

from __future__ import annotations

import json
import struct
from array import array

import pytest
import xxhash

from llamafast.engine.disk_entry import (
    FORMAT,
    HEAD_BYTES,
    NAME,
    UNFINISHED,
    Head,
    encode_head,
    file_name,
    parse_head,
    tokens_of,
    unfinished_name,
)

NAMESPACE = "0123456789abcdef"
ID, BASE = "1" * 32, "2" * 32
TOKENS = array("i", [0, 1, -5, 2**31 - 1, -(2**31), 7, 8, 9])
STATE = bytes(range(256)) * 3


def head_of(state=STATE, tokens=TOKENS, **changes):
    told = {"id": ID, "base": BASE, "root": "ab" * 32, "start": 40, "depth": 3} | changes
    return Head(
        stop=told["start"] + len(tokens), n_bytes=len(state), state_xxh3_128=xxhash.xxh3_128_hexdigest(state), **told
    )


def file_of(head, state=STATE, tokens=TOKENS, namespace=NAMESPACE):
    return encode_head(head, namespace, tokens) + state


def read(data, id=ID, namespace=NAMESPACE, n_bytes=None):
    """The head and tokens of a file, as whoever lists it does; None where it is refused."""
    head = parse_head(data[:HEAD_BYTES], id, len(data) if n_bytes is None else n_bytes)
    if head is None:
        return None
    tokens = tokens_of(data[: head.at], head, namespace)
    return None if tokens is None else (head, tokens)


WHOLE = file_of(head_of())


@pytest.mark.parametrize(
    "head",
    [head_of(), head_of(base="", depth=0), head_of(start=0, base="", depth=0, root=""), head_of(start=2**31 - 9)],
    ids=["a heir", "without base", "unsalted", "at the end of what has a number"],
)
def test_what_was_written_is_read_again(head):
    data = file_of(head)
    assert len(data) == head.file_bytes
    assert read(data) == (head, TOKENS)
    assert data[head.at :] == STATE


@pytest.mark.parametrize("n_tokens", [1, 512, 70_000])
def test_any_number_of_tokens_fits(n_tokens):
    tokens = array("i", range(n_tokens))
    head = head_of(tokens=tokens, state=b"x")
    assert read(file_of(head, b"x", tokens)) == (head, tokens)


def test_names_of_files_tell_what_they_are():
    assert NAME.fullmatch(file_name(ID))["id"] == ID
    assert UNFINISHED.fullmatch(unfinished_name(ID))
    for name in ("a.safetensors", file_name("A" * 32), file_name("1" * 33), f"x{file_name(ID)}", f"{file_name(ID)}\n"):
        assert NAME.fullmatch(name) is None
    assert UNFINISHED.fullmatch(f".{ID}.tmp.old") is None


def test_any_safetensors_reader_opens_it():
    """The format: the length of the header as 8 bytes, little-endian; JSON, which may end with blanks; the data."""
    (length,) = struct.unpack("<Q", WHOLE[:8])
    encoded, data = WHOLE[8 : 8 + length], WHOLE[8 + length :]
    assert encoded.startswith(b"{")
    assert encoded.rstrip(b" ").endswith(b"}")
    header = json.loads(encoded)
    about = header.pop("__metadata__")
    assert all(isinstance(value, str) for value in about.values())
    assert (about["format"], about["namespace"], about["id"], about["base"]) == (FORMAT, NAMESPACE, ID, BASE)
    sizes, end = {"I32": 4, "U8": 1}, 0
    tensors = {}
    for name, tensor in header.items():
        begin, stop = tensor["data_offsets"]
        (n,) = tensor["shape"]
        assert (begin, stop - begin) == (end, n * sizes[tensor["dtype"]])
        tensors[name], end = data[begin:stop], stop
    assert end == len(data)
    assert tensors == {"tokens": struct.pack(f"<{len(TOKENS)}i", *TOKENS), "state": STATE}


def test_a_head_with_any_bit_flipped_is_refused():
    end = head_of().at
    for at in range(end):
        wrong = bytearray(WHOLE)
        wrong[at] ^= 1 << at % 8
        assert read(bytes(wrong)) is None, at


def test_a_head_with_any_byte_blanked_is_refused():
    end = head_of().at
    refused = [at for at in range(end) if WHOLE[at] != 0 and read(WHOLE[:at] + b"\0" + WHOLE[at + 1 :]) is None]
    assert refused == [at for at in range(end) if WHOLE[at] != 0]


def test_a_file_that_was_cut_or_grew_is_refused():
    """The head says how long the state is; also the file's length alone must fit."""
    at = head_of().at
    for n in [0, 1, 8, 9, 100, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 1, at - 1, at, at + 1, len(WHOLE) - 1]:
        assert read(WHOLE[:n]) is None, n
    for more in (b"\0", b"x" * 4096):
        assert read(WHOLE + more) is None
    for n in (0, -1, len(WHOLE) - 1, len(WHOLE) + 1, 2**63):
        assert read(WHOLE, n_bytes=n) is None, n


def test_what_is_another_files_is_refused():
    assert read(WHOLE, id="3" * 32) is None
    assert read(WHOLE, namespace="f" * 16) is None
    assert read(file_of(head_of(id="3" * 32))) is None


def crafted(told, **rest):
    """A head with these metadata, whole in its form."""
    encoded = json.dumps({"__metadata__": told} | rest).encode().ljust(HEAD_BYTES - 8)
    assert len(encoded) == HEAD_BYTES - 8, "too much for a head"
    return struct.pack("<Q", len(encoded)) + encoded + TOKENS.tobytes() + STATE


def told(**changes):
    header = json.loads(WHOLE[8:HEAD_BYTES])
    return {name: value for name, value in (header["__metadata__"] | changes).items() if value is not None}


NAMELESS = dict.fromkeys(("format", "namespace", "id", "head_xxh3_64"))
LIES = {
    "nothing": dict.fromkeys(told()),
    "no start": {"start": None},
    "negative start": {"start": "-1"},
    "negative both": {"start": "-48", "stop": "-40"},
    "an empty part": {"start": "48"},
    "backwards": {"start": "49"},
    "blanks": {"start": " 40"},
    "underscores": {"start": "4_0"},
    "digits of another script": {"start": "٤٠"},
    "a sign": {"start": "+40"},
    "a float": {"start": "40.0"},
    "not a number": {"stop": "many"},
    "a huge stop": {"stop": "9" * 60},
    "huge numbers": {"start": "9" * 60, "stop": "9" * 59 + "8"},
    "behind int32": {"start": str(2**31 - 8), "stop": str(2**31)},
    "2^63": {"start": str(2**63), "stop": str(2**63 + 8)},
    "a negative depth": {"depth": "-1"},
    "a huge depth": {"depth": "9" * 60},
    "a depth that makes the head too long": NAMELESS | {"depth": "9" * 3650},
    "a number as it is": {"start": 40},
    "a list": {"base": [BASE]},
    "null": {"root": None},
    "a path as base": {"base": "../../../../../../etc/passwd"},
    "a path of the right length": {"base": "../" * 10 + "ab"},
    "no base": {"base": ""},
    "a base in capitals": {"base": "AB" * 16},
    "a long base": {"base": "2" * 33},
    "a base with a line's end": {"base": "2" * 32 + "\n"},
    "a base, but no depth": {"depth": "0"},
    "another base": {"base": "3" * 32},
    "half a digit of root": {"root": "abc"},
    "a long root": {"root": "ab" * 65},
    "another root": {"root": "cd" * 32},
    "no root": {"root": ""},
    "a surrogate": {"root": "\ud800"},
    "another format": {"format": "llamafast-2"},
    "another namespace": {"namespace": "f" * 16},
    "another id": {"id": "3" * 32},
    "a short checksum": {"state_xxh3_128": "ab"},
    "another checksum": {"state_xxh3_128": "0" * 32},
    "no checksum of the head": {"head_xxh3_64": None},
    "another checksum of the head": {"head_xxh3_64": "0" * 16},
    "more than there is": {"codec": "none"},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_head_that_lies_is_refused(lie):
    assert read(crafted(told(**LIES[lie]))) is None


def test_a_head_may_not_be_written_in_another_way():
    """Even where all it says is true."""
    assert read(crafted(told())) is None


NO_HEADS = {
    "zeros": bytes(HEAD_BYTES),
    "blanks": b" " * HEAD_BYTES,
    "ones": b"\xff" * HEAD_BYTES,
    "an unfinished object": b"\0" * 8 + b'{"__metadata__": {"start"',
    "a list": b"\0" * 8 + b"[]",
    "a text": b"\0" * 8 + b'"x"',
    "no metadata": b"\0" * 8 + b'{"a": 1}',
    "metadata of another type": b"\0" * 8 + b'{"__metadata__": 5}',
    "many lists": b"\0" * 8 + b'{"__metadata__": {}, "x": ' + b"[" * 4000,
    "many objects": b"\0" * 8 + b'{"__metadata__": {}, "x": ' + b'{"a":' * 800,
    "many lists first": b"\0" * 8 + b'{"x": ' + b"[" * 4000,
    "nothing but lists": b"\0" * 8 + b"[" * 4088,
    "no UTF-8": b"\0" * 8 + b'{"__metadata__": {"start": "\xff\xfe"}}',
}


@pytest.mark.parametrize("what", NO_HEADS)
def test_what_is_no_head_is_refused(what):
    data = NO_HEADS[what].ljust(HEAD_BYTES)[:HEAD_BYTES] + TOKENS.tobytes() + STATE
    assert read(data) is None


def test_tokens_that_are_not_all_there_are_refused():
    head = head_of()
    assert tokens_of(WHOLE[: head.at], head, NAMESPACE) == TOKENS
    for n in (0, HEAD_BYTES, head.at - 4, head.at - 1, head.at + 1):
        assert tokens_of(WHOLE[:n], head, NAMESPACE) is None, n
