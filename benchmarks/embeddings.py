"""``python -m benchmarks embeddings``: /v1/embeddings under load, beside other servers and the bare loop."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import embedding_work
from benchmarks.compare import RAW, Result, compare, failures
from benchmarks.comparison_report import both
from benchmarks.contenders import CONTENDERS
from benchmarks.embedding_work import EmbeddingWork, embedding_model
from benchmarks.pinning import cores_of
from benchmarks.report import Journal, spread
from benchmarks.scenarios import Scenario, embeddings

# A run without --requests lasts about this long in the raw loop.
RUN_SECONDS = 1.5
# What is measured where the command line names no clients, inputs or tokens: (clients, inputs, tokens)
SHAPES = [(1, 32, 64), (32, 1, 64), (1, 1, 16), (8, 1, 16), (64, 1, 16), (1, 1, 256), (8, 1, 256), (64, 1, 256)]


def add_arguments(parser: argparse.ArgumentParser, positive: Any) -> None:
    add = parser.add_argument
    add("--model", default="minilm", help="minilm, a tiny model's name or the path of a GGUF (minilm)")
    add("--clients", type=positive, nargs="+", help="several values make several rows (1)")
    add("--inputs", type=positive, help="texts of one request (32)")
    add("--tokens", type=positive, nargs="+", help="tokens of a text (64)")
    add("--requests", type=positive, help=f"requests a client sends (as many as make a run of {RUN_SECONDS} s)")
    add("--threads", type=positive, default=1, help="compute threads (1)")
    add("--servers", nargs="+", choices=CONTENDERS, help="who takes part (whoever is available)")
    add("--pairs", type=positive, default=3, help="runs of each server (3)")
    add("--timeout", type=float, default=300.0, help="seconds after which a request has failed (300)")
    add("--json", type=Path, metavar="OUT", help="append every figure to this file, a JSON object a line")


def shapes(options: argparse.Namespace) -> list[tuple[int, int, int]]:
    """Clients, inputs and tokens of each row: what the command line names, else ``SHAPES``."""
    if not (options.clients or options.inputs or options.tokens):
        return SHAPES
    inputs = options.inputs or 32
    return [(clients, inputs, tokens) for tokens in options.tokens or [64] for clients in options.clients or [1]]


def scenarios(options: argparse.Namespace) -> Iterator[Scenario]:
    path = str(embedding_model(options.model))
    for clients, inputs, tokens in shapes(options):
        work = EmbeddingWork(
            model=path, clients=clients, requests=options.requests or 1, inputs=inputs, tokens=tokens,
            threads=options.threads,
        )  # fmt: skip
        if options.requests is None:
            requests = ceil(RUN_SECONDS / embedding_work.run(work))
            work = msgspec.structs.replace(work, requests=max(1, min(1000, requests)))
        yield embeddings(options.model, work)


def rows(scenario: Scenario, result: Result) -> list[dict[str, str]]:
    """The raw loop's row and one for each server."""
    work = scenario.size
    assert isinstance(work, EmbeddingWork)

    def row(server: str, rates: Sequence[float], of_raw: str, latencies: str, failed: str) -> dict[str, str]:
        return {
            "clients": str(work.clients),
            "requests": str(work.requests),
            "inputs x tokens": f"{work.inputs}x{work.tokens}",
            "server": server,
            "inputs/s": spread([rate / work.tokens for rate in rates], ",.1f"),
            "tok/s": spread(rates, ",.0f"),
            "of raw": of_raw,
            "ms p50/p99": latencies,
            "failed": failed,
        }

    table = [row(RAW, result.raw_rates, "", "", "")]
    for name, runs in result.served.items():
        rates = [run.output_rate for run in runs]
        of_raw = spread([rate / raw for rate, raw in zip(rates, result.raw_rates, strict=True)], ".3f")
        latencies = both(runs, lambda run: run.e2el_p50, lambda run: run.e2el_p99)
        table.append(row(name, rates, of_raw, latencies, str(sum(len(run.failures) for run in runs))))
    return table


def measure(
    options: argparse.Namespace, names: Sequence[str], journal: Journal
) -> tuple[list[dict[str, str]], list[str]]:
    """The table of one command and the reasons of failed requests. Raises what the loop and the servers raise."""
    chosen = list(scenarios(options))
    results = compare(chosen, names, options.pairs, cores_of(options.pin), options.timeout, None, journal)
    table = [row for scenario, result in zip(chosen, results, strict=True) for row in rows(scenario, result)]
    return table, [f"{name}: {reason}" for (_, name), reasons in failures(results).items() for reason in reasons]
