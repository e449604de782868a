"""Pages that were read into are used again, and never while somebody holds them."""

from __future__ import annotations

import gc

from llamafast.engine import pages as pages_module
from llamafast.engine.pages import GRAIN, LEAST_BYTES, Pages


def test_pages_that_nobody_holds_are_taken_again():
    pages = Pages()
    first = pages.take(LEAST_BYTES + 1)
    assert len(first) == LEAST_BYTES + GRAIN
    first[:3] = b"abc"
    part = first[1:]
    del first
    other = pages.take(LEAST_BYTES + 1)
    assert bytes(other[:3]) == bytes(3)
    assert bytes(part[:2]) == b"bc"
    del part
    gc.collect()
    again = pages.take(LEAST_BYTES + GRAIN)
    assert bytes(again[:3]) == b"abc"


def test_other_sizes_and_small_ones_are_fresh():
    pages = Pages()
    for n_bytes in (1, 100, LEAST_BYTES, 2 * LEAST_BYTES):
        taken = pages.take(n_bytes)
        assert len(taken) >= n_bytes
        assert not any(taken[:100])
        taken[:1] = b"x"
        del taken


def test_what_is_kept_has_a_bound(monkeypatch):
    monkeypatch.setattr(pages_module, "KEPT_BYTES", 3 * LEAST_BYTES)
    pages = Pages()
    held = [pages.take(LEAST_BYTES) for _ in range(5)]
    for one in held:
        one[:1] = b"x"
    held.clear()
    del one
    gc.collect()
    taken = [pages.take(LEAST_BYTES) for _ in range(5)]
    assert sorted(bytes(one[:1]) for one in taken) == [bytes(1)] * 2 + [b"x"] * 3
