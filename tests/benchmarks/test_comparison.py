"""What the report of a comparison says."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.compare import Result, failures
from benchmarks.comparison_report import page, plot, ratios, summary
from llamafast.bench.ask import Ask
from llamafast.bench.figures import Exchange, Goal, Load, summarize

WORDS = [b'data: {"choices": [{"text": "a"}]}', b'data: {"choices": [{"text": "b", "finish_reason": "length"}]}']


def result(name: str, rates: dict[str, list[float]]) -> Result:
    """Runs of one two-token answer each, at the given tokens per second."""

    def run(rate: float, good: bool = True):
        seconds = 2 / rate
        events = [(seconds / 2, WORDS[0]), (seconds, WORDS[1]), (seconds, b"data: [DONE]")]
        exchange = Exchange(Ask(body={}, tokens=2, prompt_tokens=1), sent=0, ended=seconds, events=events)
        if not good:
            exchange.error = "lost | its way"
        return summarize(Load([exchange], 0.1), 0.5, Goal(ttft=1, tpot=1))

    served = {server: [run(rate) for rate in rates[server]] for server in rates}
    served["seed"].append(run(1, good=False))
    served["llamafast"].append(run(1))
    peaks = {"llamafast": 10**8, "seed": None}
    return Result(scenario=name, about="two tokens", served=served, raw_rates=[400.0, 500.0], peak_bytes=peaks)


@pytest.fixture
def results() -> list[Result]:
    return [result("one", {"llamafast": [200.0, 300.0], "seed": [100.0, 100.0]})]


def test_ratios_are_pair_by_pair(results: list[Result]) -> None:
    assert ratios(results[0], "seed", lambda run: run.output_rate) == pytest.approx([2, 3])
    assert summary(results)[-1] == "| one | 2.50 (2.00-3.00) | 0.42 (0.33-0.50) |"


def test_failures_are_told(results: list[Result]) -> None:
    assert failures(results) == {("one", "seed"): ["lost | its way"]}


def test_what_no_server_has_a_value_for_is_not_drawn(tmp_path: Path) -> None:
    vectors = Exchange(Ask(body={}, vectors=1, prompt_tokens=3), sent=0, ended=1)
    vectors.events.append((1, b'{"data": [{}], "usage": {"prompt_tokens": 3}}'))
    run = summarize(Load([vectors], 0.1), 0.5)
    alone = Result(scenario="one", about="", served={"llamafast": [run]}, raw_rates=[], peak_bytes={"llamafast": None})
    assert plot([alone], tmp_path) == ["throughput.png", "ttft.png"]


def test_the_page_tells_everything(results: list[Result], tmp_path: Path) -> None:
    plots = plot(results, tmp_path)
    assert plots
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in plots)
    text = page(results, {"cores": 2}, Goal(ttft=1, tpot=1), plots)
    assert "* cores: 2" in text
    assert "| raw loop | 450 (400-500) |" in text
    assert "* one, seed: 1 times lost | its way" in text
    rows = [line for line in text.splitlines() if line.startswith("| seed |")]
    assert rows[-1].endswith("| 1 |")
    assert (
        len({line.count("|") for line in text.splitlines() if line.startswith(("| server", "| llamafast", "| raw"))})
        == 1
    )
