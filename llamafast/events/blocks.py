"""From notes of who has which tokens to events of which blocks there are.

Parts of prompts overlap: a block is there as long as anybody has it, tier by tier. A block that lies across the end of
a part belongs to the part that completes it.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter
from collections.abc import Iterator
from struct import Struct as Packing
from typing import NamedTuple

import xxhash

from llamafast.engine.kv_log import DISK, RAM, RUNNING, Dropped, Held, Note
from llamafast.events.wire import BLOCK, AllBlocksCleared, BlockRemoved, BlockStored, Event

_PARENT = Packing("<Q")
_BYTES = BLOCK * array("i").itemsize
# The parent of everybody's first blocks: they have no salt.
ROOT = xxhash.xxh3_64_intdigest(b"")
# Blocks that are hashed, or told of, at one go: other threads of Python's wait for no more than that, 0.1 ms.
AT_ONCE = 256


class Blocks(NamedTuple):
    """What an owner has: whole blocks one after another, behind ``parent`` (None: from the start), and their tokens as
    the bytes of int32."""

    parent: int | None
    digests: array[int]
    tokens: bytes


class BlockIndex:
    """The events of each note, in order, and of all there is. One thread."""

    def __init__(self) -> None:
        self._blocks: dict[object, Blocks] = {}
        self._tiers: dict[str, dict[object, None]] = {}  # owners in order: what continues others comes behind them
        self._counts: dict[str, Counter[int]] = {}

    @property
    def n_blocks(self) -> int:
        """How many there are, each counted in every tier that has it."""
        return sum(map(len, self._counts.values()))

    def events(self, note: Note) -> Iterator[Event]:
        """What a note changes, which is done once all of them are taken."""
        match note:
            case Held(tier, owner, tokens, start):
                yield from self._drop(tier, owner)
                blocks = self._blocks.get(owner) or blocks_of(tokens, start)
                if blocks is not None:
                    self._blocks[owner] = blocks
                    self._tiers.setdefault(tier, {})[owner] = None
                    yield from self._hold(tier, blocks)
            case Dropped(tier, None):
                for owner in list(self._tiers.get(tier, ())):
                    yield from self._drop(tier, owner)
            case Dropped(tier, owner):
                yield from self._drop(tier, owner)

    def snapshot(self) -> Iterator[Event]:
        """What somebody has to be told who knows nothing, or something else."""
        yield AllBlocksCleared()
        # what is in RAM may continue what is on the disk alone, and never the other way round
        for tier in (DISK, RAM, RUNNING):
            told: set[int] = set()
            for owner in self._tiers.get(tier, ()):
                blocks = self._blocks[owner]
                fresh = [digest not in told for digest in blocks.digests]
                told.update(blocks.digests)
                yield from _stored(tier, blocks, fresh)

    def _hold(self, tier: str, blocks: Blocks) -> Iterator[Event]:
        counts = self._counts.setdefault(tier, Counter())
        fresh = [not counts[digest] for digest in blocks.digests]
        counts.update(blocks.digests)
        yield from _stored(tier, blocks, fresh)

    def _drop(self, tier: str, owner: object) -> Iterator[Event]:
        owners = self._tiers.get(tier, {})
        if owner not in owners:
            return
        del owners[owner]
        blocks, counts = self._blocks[owner], self._counts[tier]
        if not any(owner in others for others in self._tiers.values()):
            del self._blocks[owner]
        gone = []
        for digest in blocks.digests:
            counts[digest] -= 1
            if not counts[digest]:
                del counts[digest]
                gone.append(digest)
        for i in range(0, len(gone), AT_ONCE):
            yield BlockRemoved(gone[i : i + AT_ONCE], tier)


def blocks_of(tokens: array[int], start: int) -> Blocks | None:
    """The blocks that end behind ``start``, none where there are media among the ``tokens`` (their rows have negative
    ids, and no router can compute those)."""
    n, first = len(tokens) // BLOCK, start // BLOCK
    if first == n or min(tokens, default=0) < 0:
        return None
    data = tokens[: n * BLOCK].tobytes()
    parent, digests = ROOT, array("Q")
    for i in range(n):
        parent = xxhash.xxh3_64_intdigest(_PARENT.pack(parent) + data[i * _BYTES : (i + 1) * _BYTES]) or 1
        digests.append(parent)
        if i % AT_ONCE == AT_ONCE - 1:
            time.sleep(0)
    return Blocks(digests[first - 1] if first else None, digests[first:], data[first * _BYTES :])


def _stored(tier: str, blocks: Blocks, fresh: list[bool]) -> Iterator[BlockStored]:
    """An event for each run of ``fresh`` ones."""
    start = 0
    while start < len(fresh):
        if not fresh[start]:
            start += 1
            continue
        stop = start
        while stop < min(len(fresh), start + AT_ONCE) and fresh[stop]:
            stop += 1
        tokens = array("i", blocks.tokens[start * _BYTES : stop * _BYTES])
        yield BlockStored(
            block_hashes=blocks.digests[start:stop].tolist(),
            parent_block_hash=blocks.digests[start - 1] if start else blocks.parent,
            token_ids=tokens.tolist(),
            block_size=BLOCK,
            lora_id=None,
            medium=tier,
            lora_name=None,
        )
        start = stop
