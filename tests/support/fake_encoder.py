"""An encoder of media without a projector: rows are noise, the same for the same digest, after a while."""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Callable
from hashlib import sha256

import numpy as np

from llamafast.engine.media import MediaRows, Medium
from llamafast.errors import LlamafastError

WIDTH = 64


class FakeEncoding:
    def __init__(self, encoder: FakeEncoder, medium: Medium) -> None:
        self._encoder, self.medium = encoder, medium
        self.error: LlamafastError | None = None
        self.left = False
        self._rows: dict[int, memoryview] = {}

    def rows(self, chunk: int) -> memoryview | None:
        return self._rows.get(chunk)

    def leave(self) -> None:
        assert not self.left
        self.left = True

    def come(self, on_news: Callable[[], None]) -> None:
        self.error = self._encoder.faults.get(self.medium.digest)
        if self.error is None:
            for j, chunk in enumerate(self.medium.chunks):
                if isinstance(chunk, MediaRows):
                    self._rows[j] = rows_of(self.medium, j)
        on_news()


class FakeEncoder:
    """``n_asked`` counts by digest; ``faults`` are errors by digest. Until ``may_end`` is set again nothing is done,
    however much later than after ``seconds``."""

    modalities = ("image",)
    shares_cpus = False
    busy = False

    def __init__(self, seconds: float = 0.0, widest_span: int = 0) -> None:
        self.seconds, self.widest_span = seconds, widest_span
        self._timers: list[threading.Timer] = []
        self.may_end = threading.Event()
        self.may_end.set()
        self.n_asked: Counter[bytes] = Counter()
        self.faults: dict[bytes, LlamafastError] = {}
        self.encodings: list[FakeEncoding] = []

    def encode(self, medium: Medium, salt: bytes, on_news: Callable[[], None]) -> FakeEncoding:
        self.n_asked[medium.digest] += 1
        encoding = FakeEncoding(self, medium)
        self.encodings.append(encoding)
        if self.seconds:
            timer = threading.Timer(self.seconds, self._end, (encoding, on_news))
            timer.daemon = True
            self._timers.append(timer)
            timer.start()
        else:
            encoding.come(on_news)
        return encoding

    def _end(self, encoding: FakeEncoding, on_news: Callable[[], None]) -> None:
        assert self.may_end.wait(60)
        encoding.come(on_news)

    def on_busy(self) -> None:
        pass

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def counts(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        for timer in self._timers:
            timer.cancel()


def fake_medium(seed: int, *, grid: tuple[int, int] | None = (3, 3), n_rows: int = 9, causal: bool = True) -> Medium:
    """Rows on a grid for M-RoPE, or ``n_rows`` in a line, between a token in front and one behind."""
    rows = MediaRows(n_rows, n_rows, causal)
    if grid is not None:
        width, height = grid
        y, x = np.divmod(np.arange(width * height, dtype=np.int32), width)
        planes = np.stack([np.zeros_like(x), y, x, np.zeros_like(x)])
        rows = MediaRows(width * height, max(grid), causal, planes.astype(np.int32).tobytes())
    digest = sha256(f"{seed} {rows.n_rows}".encode()).digest()
    return Medium(
        kind="image",
        digest=digest,
        chunks=(array("i", [40]), rows, array("i", [41])),
        source=None,
        path=f"messages[{seed}]",
    )


def rows_of(medium: Medium, chunk: int) -> memoryview:
    n_rows = medium.chunks[chunk].n_rows
    noise = np.random.default_rng(int.from_bytes(medium.digest[:8], "little") + chunk)
    return memoryview((3 * noise.standard_normal(n_rows * WIDTH)).astype(np.float32))
