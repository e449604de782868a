"""Servers in turn over the same requests, their runs interleaved: a slow minute of the machine hits all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec
from msgspec import Struct
from tqdm import tqdm

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.pinning import bound_to
from benchmarks.report import Journal
from benchmarks.scenarios import Scenario, Scripts
from benchmarks.server import Server
from llamafast.bench.address import loopback
from llamafast.bench.client import load
from llamafast.bench.figures import Goal, ServedRun, summarize

RAW = "raw loop"


class Result(Struct, frozen=True, kw_only=True):
    """What a scenario gave: the runs of each server by name, the raw loop's beside them, peak memory in bytes."""

    scenario: str
    about: str
    served: dict[str, list[ServedRun]]
    raw_rates: list[float]
    peak_bytes: dict[str, int | None]


def scripts_for(contender: Contender, scenario: Scenario, run: int) -> Scripts:
    """The scenario's requests as this server must be asked."""
    scripts = scenario.scripts(run)
    if any(ask.vectors for script in scripts for ask in script):
        return scripts
    extra = contender.fields(scenario.size.model)
    return [[msgspec.structs.replace(ask, body={**ask.body, **extra}) for ask in script] for script in scripts]


def measure(
    contender: Contender,
    server: Server,
    scenario: Scenario,
    run: int,
    cores: set[int] | None,
    limit_s: float,
    goal: Goal | None,
) -> ServedRun:
    scripts = scripts_for(contender, scenario, run)
    before = server.cpu_seconds()
    with bound_to(cores):
        result = load(scripts, loopback(server.port), limit_s, timed=scenario.timed)
    after = server.cpu_seconds()
    return summarize(result, None if before is None or after is None else after - before, goal)


def compare(
    scenarios: Sequence[Scenario], names: Sequence[str], pairs: int, cores: tuple[set[int] | None, set[int] | None],
    limit_s: float, goal: Goal | None, journal: Journal,
) -> list[Result]:  # fmt: skip
    """Every scenario, every server, ``pairs`` times; each server starts afresh for a scenario and warms up first.

    Raises ServerFailure when a server does not start.
    """
    results = []
    with tqdm(total=len(scenarios) * pairs * len(names), unit="run", smoothing=0) as bar:
        for scenario in scenarios:
            bar.set_description(scenario.name)
            results.append(compare_one(scenario, names, pairs, cores, limit_s, goal, journal, bar))
    return results


def compare_one(
    scenario: Scenario, names: Sequence[str], pairs: int, cores: tuple[set[int] | None, set[int] | None],
    limit_s: float, goal: Goal | None, journal: Journal, bar: tqdm[Any],
) -> Result:  # fmt: skip
    server_cores, client_cores = cores
    served: dict[str, list[ServedRun]] = {name: [] for name in names}
    rates: list[float] = []
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(
                CONTENDERS[name].serving(scenario.size.model, scenario.size.context_settings(), server_cores)
            )
            for name in names
        }
        for name in names:
            warm_up(CONTENDERS[name], servers[name], scenario, limit_s)
        raw_rate = scenario.raw_rate
        takers = [*([RAW] if raw_rate else []), *names]
        for run in range(1, pairs + 1):
            turn = run % len(takers)
            for name in (*takers[turn:], *takers[:turn]):
                if raw_rate and name == RAW:
                    rates.append(raw_rate())
                    journal.write("raw", scenario=scenario.name, run=run, rate=rates[-1])
                    continue
                figures = measure(CONTENDERS[name], servers[name], scenario, run, client_cores, limit_s, goal)
                served[name].append(figures)
                journal.write("served", scenario=scenario.name, server=name, run=run, **msgspec.structs.asdict(figures))
                bar.update()
        peaks = {name: server.peak_bytes() for name, server in servers.items()}
    journal.write("memory", scenario=scenario.name, peak_bytes=peaks)
    return Result(scenario=scenario.name, about=scenario.about, served=served, raw_rates=rates, peak_bytes=peaks)


def warm_up(contender: Contender, server: Server, scenario: Scenario, limit_s: float) -> None:
    """The first request of a run nobody measures."""
    first = next(ask for script in scripts_for(contender, scenario, 0) for ask in script)
    load([[msgspec.structs.replace(first, at=0.0)]], loopback(server.port), limit_s)


def failures(results: Sequence[Result]) -> Mapping[tuple[str, str], list[str]]:
    """The reasons of failed requests, by scenario and server."""
    return {
        (result.scenario, name): reasons
        for result in results
        for name, runs in result.served.items()
        if (reasons := [reason for run in runs for reason in run.failures])
    }
