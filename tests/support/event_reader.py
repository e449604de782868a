"""What a router makes of batches of events: which blocks a server has, by medium."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import pack
from typing import Any

import msgspec
import xxhash
import zmq

ROOT = xxhash.xxh3_64_intdigest(b"")


def digests(tokens: Sequence[int]) -> list[int]:
    """Of a prompt's whole blocks, as docs/decisions/01-digests.md has them."""
    parent, found = ROOT, []
    for i in range(0, len(tokens) - len(tokens) % 16, 16):
        parent = xxhash.xxh3_64_intdigest(pack("<Q16i", parent, *tokens[i : i + 16])) or 1
        found.append(parent)
    return found


class EventReader:
    """Its index by medium; it checks that every block's parent is known and that hashes are those of the tokens."""

    def __init__(self) -> None:
        self.media: dict[str, set[int]] = {}
        self.parents: dict[int, int | None] = {}
        self.next_seq = 0
        self.gaps: list[tuple[int, int]] = []

    def read(self, payload: bytes) -> None:
        ts, events, rank = msgspec.msgpack.decode(payload)
        assert isinstance(ts, float)
        assert rank is None
        for event in events:
            self._apply(event)

    def receive(self, frames: Sequence[bytes]) -> None:
        """A message of the subscription, or of a replay behind its empty frame."""
        _, seq, payload = frames
        number = int.from_bytes(seq, "big")
        if number != self.next_seq:
            self.gaps.append((self.next_seq, number))
        self.next_seq = number + 1
        self.read(payload)

    def blocks(self, medium: str) -> set[int]:
        return self.media.get(medium, set())

    def _apply(self, event: dict[str, Any]) -> None:
        match event.pop("type"):
            case "AllBlocksCleared":
                assert event == {}
                self.media.clear()
            case "BlockRemoved":
                gone = event["block_hashes"]
                there = self.media[event["medium"]]
                assert set(gone) <= there
                assert event.keys() == {"block_hashes", "medium"}
                there.difference_update(gone)
            case "BlockStored":
                self._store(**event)

    def _store(
        self,
        block_hashes: list[int],
        parent_block_hash: int | None,
        token_ids: list[int],
        block_size: int,
        lora_id: None,
        medium: str,
        lora_name: None,
    ) -> None:
        assert block_size == 16
        assert len(token_ids) == 16 * len(block_hashes) > 0
        there = self.media.setdefault(medium, set())
        assert parent_block_hash is None or any(parent_block_hash in blocks for blocks in self.media.values())
        assert not there & set(block_hashes)
        parent = ROOT if parent_block_hash is None else parent_block_hash
        for i, digest in enumerate(block_hashes):
            assert digest == (xxhash.xxh3_64_intdigest(pack("<Q16i", parent, *token_ids[16 * i : 16 * i + 16])) or 1)
            parent = digest
        there.update(block_hashes)


def subscribe(context: zmq.Context[zmq.Socket[bytes]], url: str, topic: bytes = b"") -> zmq.Socket[bytes]:
    socket = context.socket(zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, topic)
    socket.connect(url)
    return socket


def received(socket: zmq.Socket[bytes], seconds: float = 30.0) -> list[bytes]:
    assert socket.poll(int(1000 * seconds)), "nothing was told"
    return socket.recv_multipart()


def replayed(context: zmq.Context[zmq.Socket[bytes]], url: str, first: int) -> list[tuple[int, bytes]]:
    """The batches from ``first`` on."""
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(url)
        socket.send_multipart([b"", first.to_bytes(8, "big")])
        batches = []
        while True:
            empty, seq, payload = received(socket)
            assert empty == b""
            if seq == b"\xff" * 8:
                assert payload == b""
                return batches
            batches.append((int.from_bytes(seq, "big"), payload))


def read_all(reader: EventReader, payloads: Iterable[bytes]) -> EventReader:
    for payload in payloads:
        reader.read(payload)
    return reader
