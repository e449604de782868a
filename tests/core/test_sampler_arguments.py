"""What a Sampler refuses."""

from __future__ import annotations

import math
import time
from array import array
from typing import Any

import numpy as np
import pytest

from benchmarks.samplers import OFF, sampler_of
from core.test_sampler import EMPTY, HISTORY, name_of, normal
from llamafast._core.dry import Breakers
from llamafast._core.sampler import Sampler


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": -0.1}, "top_p is -0.1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": math.nan}, "top_p is nan"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"min_p": math.nan}, "min_p is nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty is -1.0"),
        ({"repetition_penalty": 1e-60}, "repetition_penalty is 1e-60"),
        ({"repetition_penalty": math.inf}, "repetition_penalty is inf"),
        ({"presence_penalty": math.nan}, "presence_penalty is nan"),
        ({"frequency_penalty": 1e39}, r"frequency_penalty is 1e\+39"),
        ({"penalty_last_n": -2}, "penalty_last_n is -2"),
        ({"logit_bias": [(100, 1.0)]}, "token id 100 is outside the vocabulary of 100"),
        ({"logit_bias": [(-1, 1.0)]}, "token id -1 is outside"),
        ({"logit_bias": [(2**70, 1.0)]}, "is outside"),
        ({"logit_bias": [(1, math.inf)]}, "logit_bias is inf"),
        ({"typical_p": 1.1}, "typical_p is 1.1"),
        ({"top_n_sigma": math.nan}, "top_n_sigma is nan"),
        ({"xtc_probability": -0.1}, "xtc_probability is -0.1"),
        ({"xtc_threshold": 2.0}, "xtc_threshold is 2.0"),
        ({"dynatemp_range": math.inf}, "dynatemp_range is inf"),
        ({"mirostat": 3}, "mirostat is 3"),
        ({"mirostat_tau": math.nan}, "mirostat_tau is nan"),
        ({"dry_base": 0.0}, "dry_base is 0.0"),
        ({"dry_allowed_length": -1}, "dry_allowed_length is -1"),
        ({"dry_penalty_last_n": -2}, "dry_penalty_last_n is -2"),
        ({"samplers": ("top_k", "infill")}, "samplers has 'infill'"),
        ({"samplers": ("top_k",) * 17}, "samplers has 17 stages"),
        ({"seed": 2**64}, "seed is"),
        ({"seed": -(2**63) - 1}, "seed is"),
    ],
)
def test_nonsensical_parameters(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler_of(100, **parameters)


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 2.5},
        {"top_k": "40"},
        {"seed": "x"},
        {"seed": 1.5},
        {"penalty_last_n": None},
        {"penalty_last_n": 1.5},
        {"logit_bias": 3},
        {"logit_bias": [1]},
        {"logit_bias": [(1.5, 1.0)]},
        {"logit_bias": [(1, "x")]},
    ],
    ids=name_of,
)
def test_parameters_of_a_wrong_type(parameters: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        sampler_of(100, **parameters)


def test_nonsensical_sizes() -> None:
    with pytest.raises(ValueError, match="n_vocab is 0"):
        sampler_of(0)
    with pytest.raises(ValueError, match="a row of 99 logits for a vocabulary of 100"):
        sampler_of(100).pick(np.zeros(99, np.float32), EMPTY)
    with pytest.raises((ValueError, BufferError)):
        sampler_of(100).pick(bytes(400), EMPTY)


def test_every_value_is_named_and_a_sampler_is_made_once() -> None:
    with pytest.raises(TypeError):
        Sampler(100, temperature=1.0)  # type: ignore[call-arg]
    sampler = sampler_of(100, logit_bias=[(1, 1.0)])
    with pytest.raises(ValueError, match="made already"):
        sampler.__init__(100, **OFF)  # type: ignore[misc]


def test_large_integers_are_clamped() -> None:
    row = normal(100)
    sampler = sampler_of(100, top_k=2**70, penalty_last_n=2**70, presence_penalty=0.5, seed=4)
    plain = sampler_of(100, penalty_last_n=-1, presence_penalty=0.5, seed=4)
    assert [sampler.pick(row.copy(), HISTORY[:i]) for i in range(10)] == [
        plain.pick(row.copy(), HISTORY[:i]) for i in range(10)
    ]


def test_any_buffer_will_do() -> None:
    assert sampler_of(3, temperature=0).pick(array("f", [1, 3, 2]), array("i")) == 1


EVERYTHING: list[dict[str, Any]] = [
    {},
    {"temperature": 1.3, "top_p": 0.9, "logit_bias": [(3, 5.0), (4, -2.0)]},
    {"repetition_penalty": 1.5, "frequency_penalty": 0.5, "presence_penalty": 0.5},
    {"dry_multiplier": 2.0, "dry_breakers": Breakers([(7, ()), (8, (9,))]), "xtc_probability": 0.5},
    {"mirostat": 2, "temperature": 0.7},
]


@pytest.mark.parametrize("parameters", EVERYTHING, ids=name_of)
def test_a_reseeded_sampler_is_one_of_its_own(parameters: dict[str, Any]) -> None:
    """It draws what a new one with its seed draws, whatever its like have drawn and whether they live."""
    rows, history = [normal(100) for _ in range(30)], np.tile(np.arange(10, dtype=np.int32), 5)

    def drawn(sampler: Sampler) -> list[int]:
        return [sampler.pick(row.copy(), history[: 20 + i]) for i, row in enumerate(rows)]

    first = sampler_of(100, **parameters, seed=1)
    early = first.reseeded(2)
    assert drawn(first) == drawn(sampler_of(100, **parameters, seed=1))
    late = early.reseeded(3)
    del first
    assert drawn(early) == drawn(sampler_of(100, **parameters, seed=2))
    assert drawn(late) == drawn(sampler_of(100, **parameters, seed=3))
    assert early.reseeded(-1).pick(rows[0].copy(), history) == late.reseeded(2**64 - 1).pick(rows[0].copy(), history)
    with pytest.raises(ValueError, match="64 bits"):
        late.reseeded(2**64)


def test_thousands_of_samplers_share_what_is_large() -> None:
    large = sampler_of(
        100_000,
        dry_multiplier=1.0,
        dry_breakers=Breakers([(token, (1,)) for token in range(50_000)]),
        logit_bias=[(token, 1.0) for token in range(50_000)],
    )
    start = time.thread_time()
    samplers = [large.reseeded(seed) for seed in range(2048)]
    assert time.thread_time() - start < 0.5  # 10 ms
    assert len(samplers) == 2048
