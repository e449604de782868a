"""What GET /engine/events tells in a second: the engine's counts and who runs, as one JSON object without any text."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from llamafast.engine.activity import SeenSequence, SeenStep
from llamafast.engine.types import EnginePort, Histogram

# Gaps between tokens are those of so many seconds, as far as anybody watches.
GAP_SECONDS = 10.0
_GAPS = "inter_token_seconds"


class Cells(Struct):
    """Of the KV cache: what /metrics has as ``llamafast:kv_cells``, ``_used``, ``_reserved`` and ``_free``."""

    total: float
    used: float
    reserved: float
    free: float


class Tier(Struct):
    """Where prefixes lie: ``max_bytes`` there may be, ``hit_tokens`` of prompts have been taken from there."""

    bytes: float
    max_bytes: float
    hit_tokens: float


class Tiers(Struct):
    running: Tier
    ram: Tier
    disk: Tier | None


class Rates(Struct):
    """A second since the snapshot before, by the clock: ``prompt`` and ``generated`` are tokens that were computed."""

    prompt: float
    generated: float
    embedded: float
    steps: float


class Gaps(Struct):
    """Seconds between two tokens of a stream."""

    p50: float
    p99: float


class Snapshot(Struct, kw_only=True):
    """``steps`` are the last of ``n_steps`` since the start, oldest first: each is its milliseconds, then for each
    sequence that had rows [slot, id, kind (0 decode, 1 prompt, 2 media), rows, drafted rows]. ``totals`` are counters
    of /metrics by the engine's names for them."""

    model: str
    time: float
    running: float
    waiting: float
    slots: int
    cells: Cells
    tiers: Tiers
    rates: Rates
    gap_seconds: Gaps | None
    totals: dict[str, float]
    n_steps: int
    steps: list[list[Any]]
    sequences: list[SeenSequence]
    queue: list[SeenSequence]


# Counters that are told as they are, 0 where a server has none of the kind.
TOTALS = (
    "prompt_tokens", "generated_tokens", "steps", "rows", "media_rows", "prefix_queries", "prefix_hits", "submitted",
    "completed", "cancelled", "failed", "preempted", "draft_tokens_verified", "draft_tokens_accepted",
    "embedding_tokens",
)  # fmt: skip


class _Then(NamedTuple):
    when: float
    counters: Mapping[str, float]
    gaps: Histogram


class EngineView:
    """Snapshots of one engine, each told with what has changed since the one before."""

    def __init__(self, engine: EnginePort) -> None:
        self._engine = engine
        self._before: deque[_Then] = deque()

    def forget(self) -> None:
        """Nobody has looked for a while: what was before the next snapshot does not count."""
        self._before.clear()

    def snapshot(self) -> Snapshot:
        engine, info = self._engine, self._engine.info
        counters, activity = engine.counters(), engine.activity()
        now = _Then(time.monotonic(), counters, engine.histograms()[_GAPS])
        last = self._before[-1] if self._before else now
        while len(self._before) > 1 and now.when - self._before[0].when > GAP_SECONDS:
            self._before.popleft()
        oldest = self._before[0] if self._before else now
        self._before.append(now)
        used, total = counters["used_cells"], counters["total_cells"]
        return Snapshot(
            model=info.id,
            time=time.time(),
            running=counters["running"],
            waiting=counters["waiting"],
            slots=info.n_seq_max,
            cells=Cells(total, used, counters["reserved_cells"], max(0.0, total - used)),
            tiers=_tiers(counters, info.cell_bytes),
            rates=_rates(last, now),
            gap_seconds=_gaps(oldest.gaps, now.gaps),
            totals={name: counters.get(name, 0) for name in TOTALS},
            n_steps=activity.n_steps,
            steps=[_step(step) for step in activity.steps],
            sequences=activity.running,
            queue=activity.waiting,
        )


def _tiers(counters: Mapping[str, float], cell_bytes: float) -> Tiers:
    of_disk = counters.get("prefix_hits_disk", 0)
    return Tiers(
        running=Tier(
            counters["used_cells"] * cell_bytes, counters["total_cells"] * cell_bytes, counters["prefix_hits_running"]
        ),
        ram=Tier(
            counters["cache_bytes"], counters["cache_max_bytes"], max(0, counters["prefix_hits_ram"] - of_disk)
        ),
        disk=Tier(counters["disk_bytes"], counters["disk_max_bytes"], of_disk) if "disk_bytes" in counters else None,
    )  # fmt: skip


def _rates(last: _Then, now: _Then) -> Rates:
    seconds = now.when - last.when

    def rate(name: str) -> float:
        return (now.counters.get(name, 0) - last.counters.get(name, 0)) / seconds if seconds > 0 else 0.0

    return Rates(rate("prompt_tokens"), rate("generated_tokens"), rate("embedding_tokens"), rate("steps"))


def _gaps(before: Histogram, now: Histogram) -> Gaps | None:
    bounds = now[0]
    counts = [n - m for n, m in zip(now[1], before[1], strict=True)]
    return Gaps(quantile(bounds, counts, 0.5), quantile(bounds, counts, 0.99)) if sum(counts) else None


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float:
    """The value below which that ``share`` of some counted ones lie, spread evenly within each bucket as Prometheus's
    ``histogram_quantile`` has it; of those beyond the last bound no more is known than that."""
    rank, before = share * sum(counts), 0
    for i, bound in enumerate(bounds):
        if counts[i] and before + counts[i] >= rank:
            least = bounds[i - 1] if i else 0.0
            return least + (bound - least) * (rank - before) / counts[i]
        before += counts[i]
    return bounds[-1]


def _step(step: SeenStep) -> list[Any]:
    return [round(1000 * step.seconds, 3), *step.parts]
