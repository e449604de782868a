"""Where what finished requests have computed is kept: in RAM, and where the config says so on a disk too."""

from __future__ import annotations

from collections.abc import Callable

from llamafast._core.runner import Runner
from llamafast.config import DiskCacheConfig
from llamafast.engine.cache import PrefixCache
from llamafast.engine.disk import DiskStore
from llamafast.engine.disk_folder import DiskFolder
from llamafast.engine.disk_tier import TieredCache


def cache_over(store: DiskStore | None, runner: Runner, n_bytes: int, config: DiskCacheConfig | None) -> PrefixCache:
    """A cache of ``n_bytes`` of RAM for the memory that ``runner`` saves."""
    if store is None or config is None:
        return PrefixCache(n_bytes, n_cuttable=runner.n_cuttable, in_parts=runner.in_parts)
    return TieredCache(
        n_bytes,
        store,
        config.min_tokens,
        row_seconds=lambda: runner.row_seconds,
        n_cuttable=runner.n_cuttable,
        in_parts=runner.in_parts,
    )


def store_in(
    folder: DiskFolder | None, config: DiskCacheConfig | None, on_news: Callable[[], None]
) -> DiskStore | None:
    """None where nothing is kept on a disk; ``on_news`` is as DiskStore calls it."""
    return None if folder is None or config is None else DiskStore(folder, config.max_bytes, on_news)
