"""DRY against llama.cpp's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.llama_chain import Chain
from benchmarks.samplers import sampler_of
from core.test_sampler import Ids, name_of, normal
from llamafast._core.dry import Breakers

DRY: list[dict[str, Any]] = [
    {"dry_multiplier": 0.8},
    {"dry_multiplier": 1.5, "dry_base": 1.1, "dry_allowed_length": 0},
    {"dry_multiplier": -0.5, "dry_allowed_length": 1, "dry_penalty_last_n": 20},
    {"dry_multiplier": 1e30, "dry_base": 3.0},
]


@pytest.mark.parametrize("parameters", DRY, ids=name_of)
@pytest.mark.parametrize("n_words", [2, 3, 8])
def test_dry_edits_the_row_as_the_chain_does(parameters: dict[str, Any], n_words: int) -> None:
    rng = np.random.default_rng(n_words)
    for _ in range(60):
        history = rng.integers(0, n_words, int(rng.integers(0, 90))).astype(np.int32)
        row = normal(40)
        chain = Chain(40, **parameters, temperature=1.0)
        chain.accept(history.tolist())
        expected = chain.logits(row)
        parameters.setdefault("dry_penalty_last_n", 64)
        sampler_of(40, **parameters).pick(row, history)
        np.testing.assert_array_equal(row, expected)


def test_dry_does_not_reach_over_a_breaker() -> None:
    """7 breaks alone, 8 only before 9."""
    history = np.array([1, 2, 3, 4, 7, 1, 2, 3], np.int32)

    def penalized_by(history: Ids, breakers: list[tuple[int, tuple[int, ...]]]) -> list[int]:
        row = np.zeros(10, np.float32)
        sampler_of(10, dry_multiplier=1.0, dry_breakers=Breakers(breakers)).pick(row, history)
        return np.flatnonzero(row).tolist()

    assert penalized_by(history, []) == [4]
    assert penalized_by(history, [(7, ())]) == [4]
    assert penalized_by(history, [(2, ())]) == []
    assert penalized_by(history, [(4, ())]) == []
    assert penalized_by(history, [(2, (3,))]) == []
    assert penalized_by(history, [(2, (4,)), (9, ())]) == [4]
