"""Rows of media: encoded once for all who wait for them, and kept for those who come back."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from llamafast.engine.media import MediaKind, MediaRows, Medium
from llamafast.errors import EngineFailure, LlamafastError, ProjectorFailure
from llamafast.media.anonymous_file import AnonymousFile
from llamafast.media.encode_job import EncodeJob
from llamafast.media.limits import FetchedItem
from llamafast.media.process import MediaProcess
from llamafast.media.row_files import RowFiles

logger = logging.getLogger(__name__)

# A medium over which the process died so often is not tried again for a while.
_MAX_DEATHS, _REFUSED_SECONDS = 2, 600.0
# Media of which that is remembered.
_REMEMBERED = 1024

Key = tuple[bytes, bytes]


class Source:
    """A medium's bytes, how they are to be looked at, and what they count as."""

    def __init__(self, file: AnonymousFile, low_detail: bool, item: FetchedItem) -> None:
        self.file = file
        self.low_detail = low_detail
        self.item = item


class _Entry:
    """The rows of one medium for one salt: those there are, and who waits for the others."""

    def __init__(self) -> None:
        self.rows: dict[int, memoryview[float]] = {}
        self.n_bytes = 0
        self.error: LlamafastError | None = None
        self.whole = False
        self.shares: set[Share] = set()
        self.job: EncodeJob | None = None


class Share:
    """An ``Encoding``: somebody's interest in an entry."""

    def __init__(self, encoder: Encoder, key: Key, entry: _Entry, on_news: Callable[[], None]) -> None:
        self._encoder, self._key, self._entry = encoder, key, entry
        self.on_news = on_news

    @property
    def error(self) -> LlamafastError | None:
        return self._entry.error

    def rows(self, chunk: int) -> memoryview[float] | None:
        return self._entry.rows.get(chunk)

    def leave(self) -> None:
        self._encoder.leave(self._key, self._entry, self)


class Encoder:
    """A ``MediaEncoder`` over a MediaProcess. Whole media are kept up to ``cache_bytes``, the least recently wanted go
    first, and in ``files``, which a thread reads and writes. Those of one salt are never told of to another: not even
    that they are there, by being faster. A row is ``width`` floats. Thread-safe.
    """

    def __init__(
        self,
        process: MediaProcess,
        modalities: tuple[MediaKind, ...],
        *,
        widest_span: int,
        width: int,
        shares_cpus: bool = False,
        cache_bytes: int,
        files: RowFiles | None = None,
    ) -> None:
        self.modalities = modalities
        self.widest_span = widest_span
        self.shares_cpus = shares_cpus
        self._process = process
        self._width = width
        self._files = files
        self._disk = None if files is None else ThreadPoolExecutor(1, "llamafast-rows")
        self._cache_bytes = cache_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._used_bytes = 0
        self._deaths: OrderedDict[Key, tuple[int, float]] = OrderedDict()
        self._counts: Counter[str] = Counter()

    def encode(self, medium: Medium, salt: bytes, on_news: Callable[[], None]) -> Share:
        key = salt, medium.digest
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._counts["media_hits_ram" if entry.whole else "media_joined"] += 1
                self._entries.move_to_end(key)
            else:
                entry = self._entries[key] = _Entry()
                self._start(key, entry, medium)
            share = Share(self, key, entry, on_news)
            if not entry.whole:
                entry.shares.add(share)
        return share

    def leave(self, key: Key, entry: _Entry, share: Share) -> None:
        """Nothing is encoded for nobody, unless that has begun."""
        with self._lock:
            entry.shares.discard(share)
            if entry.shares or entry.whole or entry.job is None or not self._process.take_back(entry.job):
                return
            self._forget(key, entry)

    @property
    def on_busy(self) -> Callable[[], None]:
        return self._process.on_busy

    @on_busy.setter
    def on_busy(self, told: Callable[[], None]) -> None:
        self._process.on_busy = told

    @property
    def busy(self) -> bool:
        """Whether the process has a medium to lay out or to encode."""
        return self._process.busy

    def pause(self) -> None:
        self._process.pause()

    def resume(self) -> None:
        self._process.resume()

    def close(self) -> None:
        """End the process, having written what is to be kept; who waits for it is told."""
        self._process.close()
        if self._disk is not None:
            self._disk.shutdown()

    def counts(self) -> dict[str, float]:
        """Any thread."""
        kinds = {name: float(self._counts[name]) for name in ("media_hits_ram", "media_joined")}
        counts = kinds | self._process.counts | {"media_cache_bytes": float(self._used_bytes)}
        on_disk: dict[str, float] = dict.fromkeys(("media_hits_disk", "media_disk_writes", "media_disk_failures"), 0.0)
        if self._files is not None:
            on_disk |= self._files.counts
        return counts | on_disk | {"media_disk_bytes": 0.0 if self._files is None else float(self._files.used_bytes)}

    def _start(self, key: Key, entry: _Entry, medium: Medium) -> None:
        """With the lock."""
        n_deaths, since = self._deaths.get(key, (0, 0.0))
        if n_deaths >= _MAX_DEATHS and time.monotonic() - since < _REFUSED_SECONDS:
            entry.error = ProjectorFailure(medium.kind)
            self._forget(key, entry)
            return
        sizes = {i: rows.n_rows for i, rows in enumerate(medium.chunks) if isinstance(rows, MediaRows)}
        source: Source = medium.source
        job = EncodeJob(
            source.file,
            medium.kind,
            source.low_detail,
            lambda chunk, rows: self._encoded(key, entry, chunk, rows, sizes),
            lambda error: self._ended(key, entry, sizes, error),
        )
        if self._disk is None:
            entry.job = job
            self._process.encode(job)
        else:
            self._disk.submit(self._read, key, entry, job, sizes)

    def _read(self, key: Key, entry: _Entry, job: EncodeJob, sizes: dict[int, int]) -> None:
        """The disk's thread: take what is there, and have the others encoded."""
        assert self._files is not None
        found = []
        for chunk, n_rows in sizes.items():
            try:
                rows = self._files.read(*key, chunk, 4 * n_rows * self._width)
            except Exception:
                logger.exception("rows of media could not be read")
                break
            if rows is not None:
                found.append(chunk)
                self._came(key, entry, chunk, rows.cast("f"))
        if len(found) == len(sizes):
            job.on_end(None)
            return
        job.there = tuple(found)
        with self._lock:
            if not entry.shares:  # all have left
                self._forget(key, entry)
                return
            entry.job = job
            self._process.encode(job)

    def _encoded(self, key: Key, entry: _Entry, chunk: int, data: memoryview, sizes: dict[int, int]) -> None:
        if len(data) != 4 * sizes.get(chunk, 0) * self._width:
            raise AssertionError(f"{len(data)} bytes of rows for chunk {chunk}, laid out as {sizes}")
        rows = data.cast("f")
        self._came(key, entry, chunk, rows)
        if self._disk is not None and self._files is not None:
            self._disk.submit(self._files.write, *key, chunk, rows)

    def _came(self, key: Key, entry: _Entry, chunk: int, rows: memoryview[float]) -> None:
        with self._lock:
            entry.rows[chunk] = rows
            entry.n_bytes += rows.nbytes
            self._used_bytes += rows.nbytes if self._entries.get(key) is entry else 0
            shares = list(entry.shares)
            self._evict()
        for share in shares:
            share.on_news()

    def _ended(self, key: Key, entry: _Entry, sizes: dict[int, int], error: LlamafastError | None) -> None:
        if error is None and not sizes.keys() <= entry.rows.keys():
            error = EngineFailure("rows of this medium are missing")
        with self._lock:
            shares, entry.shares = list(entry.shares), set()
            entry.error, entry.job = error, None
            entry.whole = error is None
            if error is not None:
                self._forget(key, entry)
                self._note_death(key, error)
            self._evict()
        for share in shares:
            share.on_news()

    def _note_death(self, key: Key, error: LlamafastError) -> None:
        if isinstance(error, ProjectorFailure):
            self._deaths[key] = self._deaths.get(key, (0, 0.0))[0] + 1, time.monotonic()
            if len(self._deaths) > _REMEMBERED:
                self._deaths.popitem(last=False)

    def _forget(self, key: Key, entry: _Entry) -> None:
        if self._entries.get(key) is entry:
            del self._entries[key]
            self._used_bytes -= entry.n_bytes

    def _evict(self) -> None:
        """Whoever reads what goes still holds it."""
        for key, entry in list(self._entries.items()):
            if self._used_bytes <= self._cache_bytes:
                return
            if entry.whole:
                self._forget(key, entry)
