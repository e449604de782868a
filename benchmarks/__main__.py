"""``python -m benchmarks raw|serve|embeddings|compare|threads``."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from benchmarks import embeddings, raw
from benchmarks.compare import compare, failures
from benchmarks.comparison_report import page, plot, summary
from benchmarks.contenders import CONTENDERS, Unavailable
from benchmarks.pinning import DEFAULT_PIN, bound_to, cores_of
from benchmarks.raw import RawRun
from benchmarks.report import Journal, conditions, print_table, spread
from benchmarks.scenarios import SETS
from benchmarks.server import Server, ServerFailure, serving
from benchmarks.threads import LIBGOMP_DEFAULT, measure_threads
from benchmarks.workload import Workload, resolve_model
from llamafast.bench.address import loopback
from llamafast.bench.client import load
from llamafast.bench.figures import Goal, ServedRun, median, summarize
from llamafast.engine.threads import physical_cores

# A run without --requests lasts about this long in the raw loop.
RUN_SECONDS = 3.0


def at_least(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if (value := int(text)) < low:
            raise argparse.ArgumentTypeError(f"{value} is less than {low}")
        return value

    return parse


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Tokens per second, raw and served.")
    commands = parser.add_subparsers(dest="command", required=True)
    raw_command = commands.add_parser("raw", help="the bare llama_decode loop")
    serve_command = commands.add_parser("serve", help="the server under load, in pairs with the raw loop")
    compare_command = commands.add_parser("compare", help="llamafast beside other servers over the same requests")
    threads_command = commands.add_parser(
        "threads", help="thread counts and barrier spins, alone and beside a neighbour"
    )
    for command in (raw_command, serve_command, threads_command):
        add = command.add_argument
        add("--model", default="tiny-llama-chain", help="a tiny model's name, smollm2 or the path of a GGUF")
        add("--streams", type=at_least(1), nargs="+", help="sequences at once; several values make several rows (16)")
        add("--requests", type=at_least(1), help="requests a stream sends (as many as make a run of 3 s)")
        add("--prompt-tokens", type=at_least(1), help="tokens of a prompt (32)")
        add("--tokens", type=at_least(2), help="tokens generated a request (128)")
        add("--partitioned", action="store_true", help="a KV stream per sequence (kv_unified false)")
        add("--pairs", type=at_least(1), default=5, help="repetitions (5)")
        add("--json", type=Path, metavar="OUT", help="append every figure to this file, a JSON object a line")
    add = serve_command.add_argument
    add("--sampling", choices=("greedy", "top-p"), default="greedy", help="top-p is temperature 1, top_p 0.95 (greedy)")
    add("--timeout", type=float, default=300.0, help="seconds after which a request has failed (300)")
    raw_command.set_defaults(sampling="greedy")
    embeddings_command = commands.add_parser("embeddings", help="/v1/embeddings beside other servers and the raw loop")
    embeddings.add_arguments(embeddings_command, at_least(1))
    for command in (serve_command, embeddings_command, compare_command):
        command.add_argument("--pin", choices=("client", "both", "none"), default=DEFAULT_PIN,
            help="client: the client on the last core; both: and the server on the others; none: neither")  # fmt: skip
    for command in (raw_command, serve_command):
        command.add_argument("--threads", type=at_least(1), default=1, help="compute threads (1)")
    threads_command.set_defaults(sampling="greedy")
    add = threads_command.add_argument
    add(
        "--threads",
        type=at_least(0),
        nargs="+",
        default=[0, 1, physical_cores()],
        help="compute threads, 0: as the server chooses (0, 1 and all cores)",
    )
    add("--spins", type=at_least(0), nargs="+", default=[1000],
        help=f"values of GOMP_SPINCOUNT (1000, as llamafast sets it; libgomp's is {LIBGOMP_DEFAULT})")  # fmt: skip
    add("--timeout", type=float, default=300.0, help="seconds after which a request has failed (300)")
    add = compare_command.add_argument
    add("--set", choices=SETS, default="short", help="which scenarios (short)")
    add("--only", default="", metavar="TEXT", help="those of them whose name contains this")
    add("--servers", nargs="+", choices=CONTENDERS, help="who takes part (whoever is available)")
    add("--pairs", type=at_least(1), default=3, help="runs of each server (3)")
    add("--threads", type=at_least(1), default=1, help="compute threads of the servers, not of the raw loop (1)")
    add("--timeout", type=float, default=300.0, help="seconds after which a request has failed (300)")
    add("--goal-ttft", type=float, default=0.5, help="seconds to the first token of a good answer (0.5)")
    add("--goal-tpot", type=float, default=0.05, help="seconds per further token of a good answer (0.05)")
    add("--out", type=Path, default=Path(".cache/comparison"), help="folder of the report (.cache/comparison)")
    return parser.parse_args()


def workloads(options: argparse.Namespace) -> Iterator[Workload]:
    path, defaults = resolve_model(options.model)
    for streams in options.streams or [defaults.streams]:
        work = Workload(
            model=str(path), streams=streams, requests=options.requests or 1,
            prompt_tokens=options.prompt_tokens or defaults.prompt_tokens, tokens=options.tokens or defaults.tokens,
            sampling=options.sampling, threads=options.threads if options.command != "threads" else 1,
            partitioned=options.partitioned,
        )  # fmt: skip
        if options.requests is None:
            requests = round(RUN_SECONDS / raw.run(work).wall_s)
            work = msgspec.structs.replace(work, requests=max(1, min(requests, 1000)))
        yield work


def served_run(server: Server, work: Workload, run: int, cores: set[int] | None, timeout: float) -> ServedRun:
    before = server.cpu_seconds()
    with bound_to(cores):
        result = load(work.asks(run), loopback(server.port), timeout)
    after = server.cpu_seconds()
    return summarize(result, None if before is None or after is None else after - before)


def measure_pairs(work: Workload, options: argparse.Namespace, journal: Journal) -> list[tuple[RawRun, ServedRun]]:
    """Raw and served runs in turn, each first in every other pair, after a served run that warms up."""
    server_cores, client_cores = cores_of(options.pin)
    pairs: list[tuple[RawRun, ServedRun]] = []
    with serving(work.server_config, server_cores) as server:
        served_run(server, msgspec.structs.replace(work, requests=1), 0, client_cores, options.timeout)
        for pair in range(1, options.pairs + 1):
            bare = raw.run(work) if pair % 2 else None
            served = served_run(server, work, pair, client_cores, options.timeout)
            bare = bare or raw.run(work)
            journal.write("raw", pair=pair, **msgspec.structs.asdict(bare))
            journal.write("serve", pair=pair, **msgspec.structs.asdict(served))
            pairs.append((bare, served))
    return pairs


def raw_row(work: Workload, runs: list[RawRun]) -> dict[str, str]:
    return {
        "streams": str(work.streams),
        "requests": str(work.requests),
        "prompt+tokens": f"{work.prompt_tokens}+{work.tokens}",
        "decode only tok/s": spread([run.decode_rate(work) for run in runs], ",.0f"),
        "output tok/s": spread([run.output_rate(work) for run in runs], ",.0f"),
        "all tok/s": spread([run.all_rate(work) for run in runs], ",.0f"),
    }


def serve_row(work: Workload, pairs: list[tuple[RawRun, ServedRun]]) -> dict[str, str]:
    served = [run for _, run in pairs]
    cpu = [run.server_cpu_per_1000 for run in served if run.server_cpu_per_1000 is not None]
    return {
        "streams": str(work.streams),
        "requests": str(work.requests),
        "prompt+tokens": f"{work.prompt_tokens}+{work.tokens}",
        "raw tok/s": spread([bare.output_rate(work) for bare, _ in pairs], ",.0f"),
        "served tok/s": spread([run.output_rate for run in served], ",.0f"),
        "efficiency": spread([run.output_rate / bare.output_rate(work) for bare, run in pairs], ".3f"),
        "of decode": f"{median(run.output_rate / bare.decode_rate(work) for bare, run in pairs):.3f}",
        "TTFT ms p50/p99": milliseconds([run.ttft_p50 for run in served], [run.ttft_p99 for run in served]),
        "ITL ms p50/p99": milliseconds([run.itl_p50 for run in served], [run.itl_p99 for run in served]),
        "events/token": f"{sum(run.text_events for run in served) / max(1, sum(run.tokens for run in served)):.2f}",
        "CPU s/1k": f"{median(cpu):.3f}" if cpu else "-",
        "client busy": f"{median(run.client_cpu_s / run.wall_s for run in served):.0%}",
        "failed": str(sum(len(run.failures) for run in served)),
    }  # fmt: skip


def milliseconds(p50: list[float], p99: list[float]) -> str:
    return f"{1000 * median(p50):.2f}/{1000 * median(p99):.2f}"


def participants(options: argparse.Namespace) -> dict[str, object]:
    """The servers that take part, and their versions. Raises SystemExit where one that was named cannot be had."""
    versions: dict[str, object] = {}
    for name in options.servers or CONTENDERS:
        try:
            versions[name] = CONTENDERS[name].about()
        except Unavailable as reason:
            if options.servers:
                sys.exit(f"benchmarks: {reason}")
            print(f"without {name}: {reason}", file=sys.stderr)
    return versions


def run_comparison(options: argparse.Namespace) -> int:
    """Measure, write results.jsonl, report.md and plots into ``--out``, print the ratios; 1 if a request failed."""
    versions = participants(options)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.jsonl").unlink(missing_ok=True)
    journal, about = Journal(options.out / "results.jsonl"), conditions() | versions
    journal.write("conditions", command=" ".join(sys.argv), **about)
    scenarios = [
        msgspec.structs.replace(scenario, size=msgspec.structs.replace(scenario.size, threads=options.threads))
        for scenario in SETS[options.set]()
        if options.only in scenario.name
    ]
    if not scenarios:
        sys.exit(f"benchmarks: no scenario of the {options.set} set has {options.only!r} in its name")
    goal = Goal(options.goal_ttft, options.goal_tpot)
    results = compare(scenarios, list(versions), options.pairs, cores_of(options.pin), options.timeout, goal, journal)
    report = options.out / "report.md"
    report.write_text(page(results, about, goal, plot(results, options.out)))
    print(*summary(results), f"the whole report: {report}", sep="\n")
    failed = failures(results)
    for (scenario, name), reasons in failed.items():
        print(f"failed: {scenario}, {name}: {len(reasons)} requests, {reasons[0][:200]}", file=sys.stderr)
    return 1 if failed else 0


def main() -> int:
    options = arguments()
    # a termination must run the blocks that end the server
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.command == "compare":
        try:
            return run_comparison(options)
        except (FileNotFoundError, RuntimeError, ServerFailure, Unavailable) as error:
            sys.exit(f"benchmarks: {error}")
    journal = Journal(options.json)
    versions = participants(options) if options.command == "embeddings" else {}
    about = conditions() | versions
    print(" ".join(f"{name}={value}" for name, value in about.items()))
    journal.write("conditions", command=options.command, **about)
    rows: list[dict[str, str]] = []
    failures: list[str] = []
    try:
        if options.command == "embeddings":
            rows, failures = embeddings.measure(options, list(versions), journal)
        for work in workloads(options) if options.command != "embeddings" else ():
            journal.write("workload", **msgspec.structs.asdict(work))
            if options.command == "threads":
                measured, failed = measure_threads(
                    work, options.threads, options.spins, options.pairs, options.timeout, journal
                )
                rows += measured
                failures += failed
            elif options.command == "raw":
                runs = [raw.run(work) for _ in range(options.pairs)]
                for run in runs:
                    journal.write("raw", **msgspec.structs.asdict(run))
                rows.append(raw_row(work, runs))
            else:
                pairs = measure_pairs(work, options, journal)
                failures += [reason for _, run in pairs for reason in run.failures]
                rows.append(serve_row(work, pairs))
    except (FileNotFoundError, RuntimeError, ServerFailure, subprocess.TimeoutExpired) as error:
        sys.exit(f"benchmarks: {error}")
    sampling = f" sampling={options.sampling}" if options.command != "embeddings" else ""
    print(f"model={options.model}{sampling} threads={options.threads} pairs={options.pairs}")
    print_table(rows)
    for reason in sorted(set(failures))[:5]:
        print(f"failed: {reason}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
