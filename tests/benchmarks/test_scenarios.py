"""What the servers are asked."""

from __future__ import annotations

import json

import pytest

from benchmarks.scenarios import SETS, Scenario, poisson, shared_prefix
from llamafast.bench.address import loopback


@pytest.fixture(scope="module")
def scenarios() -> list[Scenario]:
    return list(SETS["long"]())


def test_the_long_set_holds_the_short_one(scenarios: list[Scenario]) -> None:
    names = [scenario.name for scenario in scenarios]
    assert len(set(names)) == len(names) >= 20
    assert {scenario.name for scenario in SETS["short"]()} <= set(names)


def test_every_request_fits_its_context(scenarios: list[Scenario]) -> None:
    for scenario in scenarios:
        settings = scenario.size.context_settings()
        scripts = scenario.scripts(1)
        assert scenario.timed or len(scripts) <= settings["n_seq_max"]
        for ask in (ask for script in scripts for ask in script):
            each = (ask.prompt_tokens or 0) // max(1, ask.vectors) + (ask.tokens or 0)
            assert each <= settings["n_ctx"], scenario.name
            body = json.loads(ask.message(loopback(1), "history ").partition(b"\r\n\r\n")[2])
            assert body.get("stream", False) is not bool(ask.vectors)


def test_runs_repeat_and_differ(scenarios: list[Scenario]) -> None:
    for scenario in scenarios:
        assert scenario.scripts(1) == scenario.scripts(1) != scenario.scripts(2), scenario.name


def test_a_shared_prefix_is_shared_within_a_run_only() -> None:
    scenario = shared_prefix("tiny-llama-chain", 3, 40, 5, 8)
    first, second = ([script[0].body["prompt"] for script in scenario.scripts(run)] for run in (1, 2))
    assert len({tuple(prompt[:40]) for prompt in first}) == 1
    assert len({tuple(prompt) for prompt in first}) == 3
    assert first[0][:40] != second[0][:40]


def test_an_open_loop_comes_at_its_rate() -> None:
    times = [script[0].at for script in poisson("tiny-llama-chain", 50, 400, 8, 8).scripts(1)]
    assert times == sorted(times)
    assert 400 / times[-1] == pytest.approx(50, rel=0.2)
