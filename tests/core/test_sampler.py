"""The sampler against llama.cpp's chain of the same stages."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.llama_chain import Chain, Floats
from benchmarks.samplers import sampler_of
from llamafast._core.sampler import Sampler

Ids = npt.NDArray[np.int32]
EMPTY = np.zeros(0, np.int32)
POSITIONS = np.zeros(30_000, np.int32)

TRUNCATIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8},
    {"temperature": 2.5},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 300, "temperature": 1.5},
    {"top_p": 0.0},
    {"top_p": 0.5},
    {"top_p": 0.95},
    {"top_p": 0.95, "temperature": 0.6},
    {"top_p": 0.9, "temperature": 1.7},
    {"top_p": 0.9999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_p": 0.9, "min_p": 0.1, "temperature": 1.3},
    {"top_p": 0.5, "min_p": 0.01},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 20, "min_p": 0.2},
    {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
    {"top_k": 500, "top_p": 0.7, "min_p": 0.02, "temperature": 1.2},
]


RARE: list[dict[str, Any]] = [
    {"typical_p": 0.5},
    {"typical_p": 0.95, "temperature": 0.7},
    {"top_n_sigma": 1.0},
    {"top_n_sigma": 2.5, "temperature": 1.4, "top_k": 100},
    {"xtc_probability": 1.0, "xtc_threshold": 0.05},
    {"xtc_probability": 1.0, "xtc_threshold": 0.01, "min_p": 0.02, "temperature": 0.9},
    {"dynatemp_range": 0.5, "temperature": 0.8, "top_k": 50},
    {"dynatemp_range": 2.0, "dynatemp_exponent": 2.5, "temperature": 1.0, "top_k": 20},
    {"dynatemp_range": 0.7, "temperature": 0.0, "top_k": 20},
    {"mirostat": 1},
    {"mirostat": 1, "mirostat_tau": 2.0, "temperature": 0.7},
    {"mirostat": 2},
    {"mirostat": 2, "mirostat_tau": 1.0, "temperature": 1.5},
    {"samplers": ("min_p", "top_k"), "min_p": 0.05, "top_k": 30, "top_p": 0.1, "temperature": 0.1},
    {"samplers": ("temperature", "top_p"), "temperature": 1.6, "top_p": 0.7},
    {"samplers": ("temperature", "min_p", "top_k"), "temperature": 0.5, "min_p": 0.1, "top_k": 10},
    {"typical_p": 0.9, "top_k": 200, "top_p": 0.9, "min_p": 0.01, "top_n_sigma": 4.0, "temperature": 1.2},
]


def name_of(parameters: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in parameters.items()) or "plain"


def normal(n: int, spread: float = 3.0, seed: int = 0) -> Floats:
    return np.random.default_rng((n, seed)).normal(0, spread, n).astype(np.float32)


def peaked(n: int) -> Floats:
    row = normal(n, 2.0, 1)
    row[[n // 7, n // 3, n // 2]] = 14.0, 13.0, 12.0
    return row


def holed(n: int) -> Floats:
    row = normal(n, 1.5, 2)
    row[np.random.default_rng(n).random(n) < 0.8] = -np.inf
    row[n - 1] = 1.0
    return row


ROWS = {
    "one": np.array([-3.25], np.float32),
    "seven": normal(7),
    "flat-513": normal(513, 0.4),
    "peaked-513": peaked(513),
    "holed-1000": holed(1000),
    "offset-300": normal(300) + np.float32(2000),
    "normal-20001": normal(20_001),
}


def draws(parameters: dict[str, Any], row: Floats, n: int, seed: int = 11) -> npt.NDArray[np.int64]:
    """How often each token is drawn at n positions."""
    sampler = sampler_of(len(row), **parameters, seed=seed)
    return np.bincount([sampler.pick(row, POSITIONS[:i]) for i in range(n)], minlength=len(row))


def survival(chi_square: float, freedom: int) -> float:
    """P(X >= chi_square) by the approximation of Wilson and Hilferty (1931)."""
    scale = 2 / (9 * freedom)
    z = ((chi_square / freedom) ** (1 / 3) - (1 - scale)) / math.sqrt(scale)
    return math.erfc(z / math.sqrt(2)) / 2


def fit(counts: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> float:
    """The p-value of the counts; outcomes expected fewer than ten times are taken together."""
    expected = probabilities * counts.sum()
    often = expected >= 10
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum())
    observed, wanted = observed[wanted > 1], wanted[wanted > 1]
    if len(wanted) < 2:
        return 1.0
    return survival(float(((observed - wanted) ** 2 / wanted).sum()), len(wanted) - 1)


@pytest.mark.parametrize("parameters", TRUNCATIONS, ids=name_of)
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_distribution_is_the_chains(row: Floats, parameters: dict[str, Any]) -> None:
    probabilities = Chain(len(row), **parameters).probabilities(row)
    counts = draws(parameters, row, 6_000)
    assert not counts[probabilities == 0].any()
    assert fit(counts, probabilities) > 1e-4


@pytest.mark.parametrize("parameters", RARE, ids=name_of)
@pytest.mark.parametrize("name", ["one", "seven", "flat-513", "peaked-513", "normal-20001"])
def test_rare_stages_are_the_chains(name: str, parameters: dict[str, Any]) -> None:
    row = ROWS[name]
    probabilities = Chain(len(row), **parameters).probabilities(row)
    sampler_per_draw = "mirostat" in parameters  # its target moves with every draw
    if sampler_per_draw:
        seeds = range(1_500)
        picks = [sampler_of(len(row), **parameters, seed=seed).pick(row, EMPTY) for seed in seeds]
        counts = np.bincount(picks, minlength=len(row))
    else:
        counts = draws(parameters, row, 1_500)
    assert not counts[probabilities == 0].any()
    assert fit(counts, probabilities) > 1e-4


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_steers_the_surprise(version: int) -> None:
    """Its mean approaches tau, measured as mirostat does: among the tokens that were left."""
    row = normal(5_000, 1.5)
    chance = np.exp(row - row.max(), dtype=np.float64)
    bits = -np.log2(chance / chance.sum())
    for tau in (3.0, 6.0):
        sampler = sampler_of(len(row), mirostat=version, mirostat_tau=tau, mirostat_eta=0.2, seed=5)
        picks = [sampler.pick(row, POSITIONS[:i]) for i in range(600)]
        assert bits[picks[100:]].mean() < bits.min() + 2 * tau
        assert bits[picks[100:]].mean() == pytest.approx(tau, abs=1.5 + bits.min())


def test_xtc_is_as_frequent_as_asked() -> None:
    row = np.array([5.0, 5.0, 0.0], np.float32)
    counts = draws({"xtc_probability": 0.3, "xtc_threshold": 0.2, "temperature": 0.01}, row, 6_000)
    assert counts[2] == 0
    assert counts.min(initial=6_000, where=counts > 0) == pytest.approx(6_000 * 0.35, rel=0.06)


def test_greedy_after_rare_stages() -> None:
    """Temperature 0 takes the best of what is left: without the top choices, another one."""
    row = normal(300)
    row[[7, 9]] = 12.0, 11.0
    xtc = {"xtc_probability": 1.0, "xtc_threshold": 0.1}
    assert sampler_of(300, temperature=0.0, **xtc).pick(row.copy(), EMPTY) == 9
    assert sampler_of(300, temperature=0.0, typical_p=0.5, top_n_sigma=1.0).pick(row.copy(), EMPTY) == 7


@pytest.mark.parametrize("samplers", [("top_k", "penalties"), ("temperature", "penalties", "min_p")])
def test_penalties_after_truncation(samplers: tuple[str, ...]) -> None:
    parameters = {"top_k": 20, "min_p": 0.05, "temperature": 1.5, "frequency_penalty": 0.8, "samplers": samplers}
    row = normal(60, 1.0)
    chain = Chain(60, **parameters)
    chain.accept(HISTORY.tolist())
    probabilities = chain.probabilities(row)
    picks = [sampler_of(60, **parameters, seed=seed).pick(row.copy(), HISTORY) for seed in range(4_000)]
    counts = np.bincount(picks, minlength=60)
    assert not counts[probabilities == 0].any()
    assert fit(counts, probabilities) > 1e-4


@pytest.mark.parametrize(
    "parameters", [{}, {"top_p": 0.9, "temperature": 1.2}, {"top_k": 30, "min_p": 0.01}], ids=name_of
)
def test_distribution_in_detail(parameters: dict[str, Any]) -> None:
    row = normal(64, 1.0)
    counts = draws(parameters, row, 30_000)
    assert fit(counts, Chain(64, **parameters).probabilities(row)) > 1e-4


@pytest.mark.parametrize("parameters", [p for p in TRUNCATIONS if p], ids=name_of)
@pytest.mark.parametrize("name", ["seven", "peaked-513", "holed-1000"])
def test_every_survivor_of_the_chain_can_be_drawn(name: str, parameters: dict[str, Any]) -> None:
    """At a very high temperature the survivors are equally likely, and truncation does not look at temperature."""
    row = ROWS[name]
    hot = parameters | {"temperature": 1e6}
    survivors = Chain(len(row), **hot).probabilities(row) > 0
    counts = draws(hot, row, 30 * int(survivors.sum()))
    np.testing.assert_array_equal(counts > 0, survivors)


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
        {"top_k": 100},
        {"top_p": 0.3},
        {"top_p": 0.8, "temperature": 0.7},
        {"top_p": 0.6, "min_p": 0.02, "temperature": 1.4},
        {"min_p": 0.2},
    ],
    ids=name_of,
)
def test_a_real_vocabulary(parameters: dict[str, Any]) -> None:
    row = normal(49_152)
    probabilities = Chain(len(row), **parameters).probabilities(row)
    counts = draws(parameters, row, 3_000)
    assert not counts[probabilities == 0].any()
    assert fit(counts, probabilities) > 1e-4


@pytest.mark.parametrize("k", [1, 10, 64, 200])
def test_top_k_with_ties_keeps_k_tokens_the_lowest_ids_first(k: int) -> None:
    row = np.round(normal(900) * 2) / 2
    counts = draws({"top_k": k, "temperature": 1e6}, row, 30 * k)
    expected = np.sort(np.lexsort((np.arange(900), -row))[:k])
    np.testing.assert_array_equal(np.flatnonzero(counts), expected)


HISTORY = np.array([5, 5, 5, 9, 2, 9, 40, 41, 5, 0], np.int32)
EDITS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 0.7, "penalty_last_n": 4},
    {"presence_penalty": 0.9},
    {"frequency_penalty": -0.4, "presence_penalty": 0.2},
    {"logit_bias": ((3, 2.5), (299, -100.0), (3, 0.25))},
    {"repetition_penalty": 1.1, "presence_penalty": 0.3, "frequency_penalty": 0.6, "logit_bias": ((5, 9.0), (9, -1.5))},
]


@pytest.mark.parametrize("edits", EDITS, ids=name_of)
def test_bias_and_penalties_edit_the_row_as_the_chain_does(edits: dict[str, Any]) -> None:
    row = holed(300)
    row[:64] = normal(64)
    chain = Chain(300, **edits)
    chain.accept(HISTORY.tolist())
    expected = chain.logits(row)
    sampler_of(300, temperature=0, **edits).pick(row, HISTORY)
    np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("edits", [{}, *EDITS], ids=name_of)
@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_greedy_is_the_chains(temperature: float, edits: dict[str, Any]) -> None:
    sampler = sampler_of(300, temperature=temperature, top_k=5, top_p=0.5, min_p=0.1, seed=3, **edits)
    for seed in range(50):
        row = np.round(normal(300, 1.0, seed) * 4) / 4  # ties for the first place
        chain = Chain(300, temperature=temperature, **edits)
        chain.accept(HISTORY.tolist())
        assert chain.pick(row) == sampler.pick(row, HISTORY)


def test_penalties_and_truncation_together() -> None:
    parameters = EDITS[-1] | {"top_k": 30, "top_p": 0.9, "temperature": 0.9}
    row = normal(100, 1.0)
    chain = Chain(100, **(parameters | {"logit_bias": ((5, 9.0), (9, -1.5))}))
    chain.accept(HISTORY.tolist())
    probabilities = chain.probabilities(row)
    picks = [sampler_of(100, **parameters, seed=seed).pick(row.copy(), HISTORY) for seed in range(6_000)]
    counts = np.bincount(picks, minlength=100)
    assert not counts[probabilities == 0].any()
    assert fit(counts, probabilities) > 1e-4


def penalized(sampler: Sampler, history: Ids) -> Floats:
    row = np.linspace(-2, 2, 500, dtype=np.float32)
    sampler.pick(row, history)
    return row


@pytest.mark.parametrize("window", [0, 1, 5, 64, 65, 300, -1])
def test_counts_follow_a_history_that_changes(window: int) -> None:
    """A sampler that saw every version of the history edits like one that sees only the last."""
    parameters: dict[str, Any] = {"repetition_penalty": 1.2, "frequency_penalty": 0.1, "penalty_last_n": window}
    rng = np.random.default_rng(5)
    sampler = sampler_of(500, temperature=0, **parameters)
    history = EMPTY
    for step in range(400):
        # rejected drafts are taken back and others come; now and then a sequence starts anew or is cut short
        keep = len(history) - int(rng.integers(0, 12))
        if step % 50 == 49:
            keep = int(rng.integers(0, len(history)))
        grown = rng.zipf(1.3, int(rng.integers(0, 40))) % 500
        history = np.concatenate([history[: max(0, keep)], grown.astype(np.int32)])
        fresh = sampler_of(500, temperature=0, **parameters)
        np.testing.assert_array_equal(penalized(sampler, history), penalized(fresh, history))


def test_penalties_skip_ids_outside_the_vocabulary() -> None:
    history = np.array([-1, 500, 2**31 - 1, -(2**31), 7], np.int32)
    changed = penalized(sampler_of(500, temperature=0, presence_penalty=1.0), history)
    assert np.flatnonzero(changed != np.linspace(-2, 2, 500, dtype=np.float32)).tolist() == [7]


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    row, other = normal(1000), peaked(1000)
    sampler = sampler_of(1000, seed=1)
    first = [sampler.pick(row, POSITIONS[:i]) for i in range(50)]
    for i in range(50):
        sampler.pick(other, POSITIONS[: 3 * i])
    resumed = sampler_of(1000, seed=1)
    assert [resumed.pick(row, np.full(i, 9, np.int32)) for i in range(25, 50)] == first[25:]
    assert [sampler.pick(row, POSITIONS[:i]) for i in range(50)] == first
    assert [sampler_of(1000, seed=2).pick(row, POSITIONS[:i]) for i in range(50)] != first


def test_seeds_are_64_bits_signed_or_not() -> None:
    row = normal(1000)

    def sequence(seed: int) -> list[int]:
        sampler = sampler_of(1000, seed=seed)
        return [sampler.pick(row, POSITIONS[:i]) for i in range(20)]

    assert sequence(-1) == sequence(2**64 - 1)
    assert len({tuple(sequence(seed)) for seed in (0, 1, 2**32, 2**63, -1)}) == 5


@pytest.mark.parametrize(("seeds", "step"), [((4, 4), 1), ((4, 5), 0), ((4, 4 + 2**32), 0)])
def test_neighbouring_draws_are_independent(seeds: tuple[int, int], step: int) -> None:
    """Pairs of draws, at neighbouring positions or of neighbouring seeds, are evenly spread."""
    row = np.zeros(8, np.float32)
    one, two = (sampler_of(8, seed=seed) for seed in seeds)
    pairs = [one.pick(row, POSITIONS[:i]) * 8 + two.pick(row, POSITIONS[: i + step]) for i in range(16_000)]
    assert fit(np.bincount(pairs, minlength=64), np.full(64, 1 / 64)) > 1e-4


HOSTILE = {
    "minus infinity": (np.full(600, -np.inf), {0}),
    "nan": (np.full(600, np.nan), {0}),
    "one nan": (np.where(np.arange(600) == 5, np.nan, -np.inf), {0}),
    "nan but one": (np.where(np.arange(600) == 555, -5.0, np.nan), {555}),
    "plus infinity": (np.where(np.arange(600) % 300 == 299, np.inf, 0.0), {299}),
    "largest": (np.where(np.arange(600) == 400, 3.4e38, -3.4e38), {400}),
    "all largest": (np.full(600, 3.4e38), set(range(600))),
    "all smallest": (np.full(600, -3.4e38), set(range(600))),
    "denormal": (np.full(600, 1e-42), set(range(600))),
    "signed zeros": (np.where(np.arange(600) % 2, 0.0, -0.0), set(range(600))),
}


@pytest.mark.parametrize("parameters", [*TRUNCATIONS, *RARE, {"temperature": 0.0}, {"temperature": 1e-45}], ids=name_of)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_rows(name: str, parameters: dict[str, Any]) -> None:
    values, allowed = HOSTILE[name]
    row = values.astype(np.float32)
    sampler = sampler_of(600, **parameters, seed=8)
    assert {sampler.pick(row, POSITIONS[:i]) for i in range(30)} <= allowed


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-30])
def test_a_tiny_temperature_draws_the_best_token(temperature: float) -> None:
    row = normal(2000)
    counts = draws({"temperature": temperature, "top_p": 0.95}, row, 20)
    assert counts[row.argmax()] == 20


@pytest.mark.parametrize("temperature", [1e30, 1.7e308])
def test_a_huge_temperature_is_uniform(temperature: float) -> None:
    row = normal(40)
    row[7] = -np.inf
    counts = draws({"temperature": temperature}, row, 8_000)
    assert counts[7] == 0
    assert fit(counts, np.where(np.arange(40) == 7, 0, 1 / 39)) > 1e-4


def test_hostile_penalties_stay_inside_the_vocabulary() -> None:
    for value in (3e38, -3e38, 1e-38):
        for logit in (3e38, -3e38, 0.0, -np.inf, np.nan):
            row = np.full(300, logit, np.float32)
            sampler = sampler_of(
                300, repetition_penalty=abs(value), presence_penalty=value, frequency_penalty=value,
                logit_bias=[(i, value) for i in range(300)],
            )  # fmt: skip
            assert 0 <= sampler.pick(row, HISTORY % 300) < 300


def test_samplers_in_a_cycle_that_the_garbage_collector_clears_free_their_biases_once():
    """In a process of its own: the C library ends it where it sees a block freed twice."""
    code = (
        "import gc; from benchmarks.samplers import sampler_of\n"
        "base = sampler_of(100, logit_bias=[(k, 1.0) for k in range(50)])\n"
        "gc.disable()\n"
        "for seed in range(3):\n"
        "    cycle = [base.reseeded(seed)]; cycle.append(cycle); del cycle\n"
        "del base; gc.collect()\n"
        "samplers = [sampler_of(100, logit_bias=[(k, 1.0) for k in range(50)]) for _ in range(20)]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
