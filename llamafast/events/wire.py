"""Batches of events as vLLM writes them since 0.24: msgpack, an array of maps.

The names are those of its ``vllm.distributed.kv_events``. A field whose default nobody changes is left out there, and
so none of those is here.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

BLOCK = 16  # tokens of a block

_encoder = msgspec.msgpack.Encoder()


class BlockStored(Struct, frozen=True, tag=True, tag_field="type", gc=False):
    """Blocks that follow each other, the first one ``parent_block_hash`` (None: it begins a prompt); ``token_ids`` are
    those of all of them. Hashes are unsigned, of 64 bits: docs/decisions/01-digests.md."""

    block_hashes: Sequence[int]
    parent_block_hash: int | None
    token_ids: Sequence[int]
    block_size: int
    lora_id: int | None
    medium: str
    lora_name: str | None


class BlockRemoved(Struct, frozen=True, tag=True, tag_field="type", gc=False):
    block_hashes: Sequence[int]
    medium: str


class AllBlocksCleared(Struct, frozen=True, tag=True, tag_field="type", gc=False):
    """Nothing is there any more, in no medium."""


Event = BlockStored | BlockRemoved | AllBlocksCleared


class Batch(Struct, frozen=True, array_like=True, gc=False):
    """``ts`` in seconds since 1970."""

    ts: float
    events: Sequence[Event]
    data_parallel_rank: int | None = None


def encode(batch: Batch) -> bytes:
    return _encoder.encode(batch)


def n_blocks(event: Event) -> int:
    return 0 if isinstance(event, AllBlocksCleared) else len(event.block_hashes)
