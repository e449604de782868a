"""Distributions over requests: which of them count, and as what."""

from __future__ import annotations

from types import SimpleNamespace

from llamafast.engine import generation as generations
from llamafast.engine import request_sizes
from llamafast.engine.generation import Generation
from llamafast.engine.request_sizes import RequestSizes


def test_requests_that_end_well_are_counted(monkeypatch):
    now = [100.0]
    for module in (generations, request_sizes):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    ended = []
    sizes = RequestSizes(ended.append)
    sizes.asked(2)
    generation = Generation(2, 100, lambda one: None, sizes.finished, 2)
    now[0] += 1
    generation.push(0, "a", 1, None, n_cached=60)
    now[0] += 0.5
    generation.push(0, "b", 4, "stop", n_cached=60)
    assert not ended
    generation.push(1, "b", 5, "length")
    assert ended == [generation]
    told = sizes.histograms()
    # five tokens each, of which four came after the first
    assert [told[name][2] for name in told] == [2.0, 0.125, 40.0]
    assert [sum(told[name][1]) for name in told] == [1, 1, 1]
    bounds, counts, _ = told["request_token_seconds"]
    assert counts[bounds.index(0.15)] == 1


def test_one_token_has_no_time_between_tokens():
    sizes = RequestSizes(lambda one: None)
    Generation(1, 10, lambda one: None, sizes.finished).push(0, "a", 1, "length")
    told = sizes.histograms()
    assert sum(told["request_token_seconds"][1]) == 0
    assert sum(told["request_computed_tokens"][1]) == 1
