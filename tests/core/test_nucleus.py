"""Where the nucleus of top_p ends."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.llama_chain import Chain
from core.test_sampler import draws, fit, normal

BOUND = 1.0616


@pytest.mark.parametrize("top_p", [0.9, 0.1])
def test_a_nucleus_that_a_sample_of_the_row_misjudges(top_p: float) -> None:
    """Only every 16th block is looked at for an estimate: here those are unlike all others, both ways."""
    for likely, unlikely in [(1.0, 0.0), (0.0, 1.0)]:
        row = np.full(65_536, unlikely, np.float32) + normal(65_536, 0.01)
        for at in range(0, len(row), 16 * 256):
            row[at : at + 256] += likely - unlikely
        probabilities = Chain(len(row), top_p=top_p).probabilities(row)
        counts = draws({"top_p": top_p}, row, 2_000)
        assert counts[probabilities == 0].sum() <= 2  # the chain adds up 60,000 floats: its border is not exact
        high = row > 0.5
        assert counts[high].sum() / 2_000 == pytest.approx(probabilities[high].sum(), abs=0.04)


def test_top_p_keeps_all_that_tie_at_the_border() -> None:
    row = np.round(normal(300))
    kept = Chain(300, top_p=0.7).probabilities(row) > 0
    counts = draws({"top_p": 0.7, "temperature": 1e6}, row, 6_000)
    np.testing.assert_array_equal(counts > 0, row >= row[kept].min())


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
@pytest.mark.parametrize("n", [12, 700])
def test_the_edge_is_exact_where_bounds_do_not_tell(n: int, temperature: float) -> None:
    """The nucleus ends right before or right after a token whose place bounds leave open."""
    row = normal(n, 1.2)
    order = np.argsort(-row)
    share = np.exp(row[order].astype(np.float64))
    share /= share.sum()
    mass = np.cumsum(share)
    k = int((mass < 0.8).sum())
    for top_p, kept in ((mass[k] - 1e-3 * share[k], k + 1), (mass[k] + 1e-3 * share[k], k + 2)):
        # whether the last kept one and the next are inside: what bounds say of both is open
        for weight in (1 - mass[kept - 2], 1 - mass[kept - 1]):
            assert 1 / BOUND < weight / (1 - top_p) < BOUND or n < 100
        parameters = {"top_p": float(top_p), "temperature": temperature}
        probabilities = np.zeros(n)
        hot = np.exp(row[order[:kept]].astype(np.float64) / temperature)
        probabilities[order[:kept]] = hot / hot.sum()
        counts = draws(parameters, row, 6_000)
        assert not counts[order[kept:]].any()
        assert fit(counts, probabilities) > 1e-4
        assert counts[order[kept - 1]] > 0 or n > 100
