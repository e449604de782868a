"""GET /slots: how busy the server is, by the sequences that may run at once."""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import UNSET, Struct, UnsetType

from llamafast.engine.slot_info import SlotInfo
from llamafast.engine.types import EnginePort


class NextToken(Struct):
    """What of an answer there is, and how much more there may be."""

    has_next_token: bool
    n_remain: int
    n_decoded: int


class Slot(Struct, kw_only=True):
    """llama-server's, without what belongs to somebody: no prompt, no answer, and no parameters, some of which are
    text. ``n_prompt_tokens`` of ``n_ctx`` are in memory, those of the answer too; ``speculative``: whether tokens are
    drafted here."""

    id: int
    n_ctx: int
    speculative: bool
    is_processing: bool
    id_task: int | UnsetType = UNSET
    n_prompt_tokens: int = 0
    n_prompt_tokens_processed: int = 0
    n_prompt_tokens_cache: int = 0
    next_token: list[NextToken]


def slots(engine: EnginePort) -> list[Slot]:
    """Those that run and those that are idle, by id."""
    running = {info.slot: info for info in engine.slots()}
    drafts = "draft_calls" in engine.counters()
    ids: Iterable[int] = sorted({*running, *range(engine.info.n_seq_max)})
    return [_slot(id, running.get(id), engine.info.max_seq_len, drafts=drafts) for id in ids]


def _slot(id: int, info: SlotInfo | None, n_ctx: int, *, drafts: bool) -> Slot:
    if info is None:
        idle = NextToken(has_next_token=False, n_remain=0, n_decoded=0)
        return Slot(id=id, n_ctx=n_ctx, speculative=drafts, is_processing=False, next_token=[idle])
    return Slot(
        id=id,
        n_ctx=n_ctx,
        speculative=drafts,
        is_processing=True,
        id_task=info.task,
        n_prompt_tokens=info.n_memory,
        n_prompt_tokens_processed=info.n_computed,
        n_prompt_tokens_cache=info.n_cached,
        next_token=[NextToken(has_next_token=True, n_remain=info.n_left, n_decoded=info.n_generated)],
    )
