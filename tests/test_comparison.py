"""The comparison of servers: what they are asked, how they are started, what the report says."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tiny_gguf

from benchmarks import contenders
from benchmarks.ask import Ask
from benchmarks.compare import Result, failures, scripts_for
from benchmarks.comparison_report import page, plot, ratios, summary
from benchmarks.contenders import CONTENDERS, Contender, Llamafast, LlamaServer, Seed, Unavailable, end_tokens
from benchmarks.figures import Exchange, Goal, Load, summarize
from benchmarks.scenarios import SETS, Scenario, minilm, poisson, shared_prefix, streams
from benchmarks.server import serving
from benchmarks.threads import busy_neighbour, measure_threads
from benchmarks.workload import Workload

SETTINGS = {"n_ctx": 8192, "n_batch": 512, "n_ubatch": 256, "n_seq_max": 4, "n_threads": 3, "n_threads_batch": 5,
            "kv_unified": True}  # fmt: skip
WORDS = [b'data: {"choices": [{"text": "a"}]}', b'data: {"choices": [{"text": "b", "finish_reason": "length"}]}']


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
            body = json.loads(ask.message("history ").partition(b"\r\n\r\n")[2])
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


# the servers


def test_all_get_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_SERVER", sys.executable)
    command = LlamaServer().command("m.gguf", SETTINGS, 1234, tmp_path)
    pairs = dict(zip(command[1::2], command[2::2], strict=False))
    assert command[0] == sys.executable
    assert command[-2:] == ["--kv-unified", "--no-ui"]
    assert "--embeddings" not in command
    assert "--embeddings" in LlamaServer().command("m.gguf", SETTINGS | {"embedding": True}, 1234, tmp_path)
    assert (pairs["--ctx-size"], pairs["--batch-size"], pairs["--ubatch-size"]) == ("8192", "512", "256")
    assert (pairs["--parallel"], pairs["--threads"], pairs["--threads-batch"]) == ("4", "3", "5")
    Llamafast().command("m.gguf", SETTINGS, 1234, tmp_path)
    config = json.loads((tmp_path / "cfg.json").read_text())
    assert config["server"]["port"] == 1234
    model = {name: value for name, value in SETTINGS.items() if not name.startswith("n_threads")}
    assert config["model"] == {"path": "m.gguf", "alias": "benchmark", "threads": 3, "threads_batch": 5, **model}


def test_without_a_binary_it_says_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_SERVER", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(contenders, "CACHE", tmp_path)
    with pytest.raises(Unavailable, match="make llama-server"):
        LlamaServer().about()
    monkeypatch.setenv("LLAMA_SERVER", str(tmp_path / "none"))
    with pytest.raises(Unavailable, match="LLAMA_SERVER"):
        LlamaServer().about()


def test_the_seed_is_the_one_that_was_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "CACHE", tmp_path)
    monkeypatch.setattr(contenders, "version", lambda name: "9.9")
    script = tmp_path / "llama_cpp_python-9.9" / "examples" / "server" / "server.py"
    script.parent.mkdir(parents=True)
    script.write_text('# /// script\n# dependencies = [\n#   "llama-cpp-python",\n#   "uvicorn",\n# ]\n# ///\n')
    assert Seed().script() == script
    assert contenders.script_requirements(script) == ["llama-cpp-python", "uvicorn"]
    (tmp_path / "seed-9.9" / "bin").mkdir(parents=True)
    (tmp_path / "seed-9.9" / "complete").touch()
    command = Seed().command("m.gguf", SETTINGS, 1, tmp_path)
    assert command[1:] == [str(script), "-C", str(tmp_path / "cfg.json")]
    assert json.loads((tmp_path / "cfg.json").read_text())["model"]["store_logits"] is False


def test_the_seed_is_kept_from_ending_early() -> None:
    path = str(tiny_gguf.build("tiny-llama-chain"))
    ends = end_tokens(path)
    assert ends
    scenario = streams("tiny-llama-chain", 2, 1)
    (ask, *_), *_ = scripts_for(Seed(), scenario, 1)
    assert ask.body["logit_bias"] == {str(token): -100.0 for token in ends}
    assert scripts_for(Llamafast(), scenario, 1) == scenario.scripts(1)
    vectors = minilm(2, 1, 1, 8)
    assert scripts_for(Seed(), vectors, 1) == vectors.scripts(1)


@pytest.fixture(scope="module")
def chain_server() -> Iterator[tuple[Contender, int]]:
    work = streams("tiny-llama-chain", 2, 1).size
    contender = CONTENDERS["llamafast"]
    with contender.serving(work.model, work.context_settings(), None) as server:
        assert server.peak_bytes() is None or server.peak_bytes() > 10_000_000
        yield contender, server.port


def test_a_contender_serves(chain_server: tuple[Contender, int]) -> None:
    from benchmarks.client import load

    contender, port = chain_server
    scenario = streams("tiny-llama-chain", 2, 1, tokens=8)
    run = summarize(load(scripts_for(contender, scenario, 1), port, 30), None)
    assert (run.requests, run.tokens, run.failures) == (2, 16, [])


# threads


def test_every_setting_has_a_row(tmp_path: Path) -> None:
    work = Workload(
        model=str(tiny_gguf.build("tiny-llama")), streams=1, requests=1, prompt_tokens=4, tokens=4, sampling="greedy",
        threads=1, partitioned=False,
    )  # fmt: skip
    from benchmarks.report import Journal

    rows, failed = measure_threads(work, [1], [20_000], 1, 30, Journal(tmp_path / "out"))
    assert [(row["threads"], row["spin"]) for row in rows] == [("1", "20,000")]
    assert failed == []
    records = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [record["place"] for record in records] == ["quiet", "beside"]


def test_the_spin_reaches_the_process(tmp_path: Path) -> None:
    config = {"model": {"path": str(tiny_gguf.build("tiny-llama")), "threads": 1, "n_ctx": 256}}
    with serving(lambda port: config | {"server": {"port": port}}, None, {"GOMP_SPINCOUNT": "77"}) as server:
        environment = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
    assert b"GOMP_SPINCOUNT=77" in environment


def test_a_neighbour_goes_away() -> None:
    with busy_neighbour():
        pass


# the report


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
