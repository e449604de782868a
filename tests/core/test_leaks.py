"""The counters that the other tests here are checked with."""

from __future__ import annotations

import gc

import pytest

from benchmarks.samplers import sampler_of
from llamafast._core.leaks import counting, living
from llamafast._core.sampler import Sampler


def test_a_living_object_counts_in_a_build_that_counts():
    gc.collect()
    before = living()["sampler"]
    sampler = sampler_of(10)
    assert living()["sampler"] == before + counting()
    del sampler
    assert living()["sampler"] == before


def test_a_failed_constructor_leaves_nothing():
    before = living()
    with pytest.raises(ValueError, match="n_vocab"):
        sampler_of(0)
    with pytest.raises(TypeError):
        Sampler()
    assert living() == before
