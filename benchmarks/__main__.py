"""``python -m benchmarks raw|serve|embeddings``."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import msgspec

from benchmarks import embeddings, raw
from benchmarks.client import load
from benchmarks.figures import ServedRun, summarize
from benchmarks.pinning import DEFAULT_PIN, bound_to, cores_of
from benchmarks.raw import RawRun
from benchmarks.report import Journal, conditions, print_table, spread
from benchmarks.server import Server, ServerFailure, serving
from benchmarks.workload import Workload, resolve_model

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
    for command in (raw_command, serve_command):
        add = command.add_argument
        add("--model", default="tiny-llama-chain", help="a tiny model's name, smollm2 or the path of a GGUF")
        add("--streams", type=at_least(1), nargs="+", help="sequences at once; several values make several rows (16)")
        add("--requests", type=at_least(1), help="requests a stream sends (as many as make a run of 3 s)")
        add("--prompt-tokens", type=at_least(1), help="tokens of a prompt (32)")
        add("--tokens", type=at_least(2), help="tokens generated a request (128)")
        add("--threads", type=at_least(1), default=1, help="compute threads (1)")
        add("--partitioned", action="store_true", help="a KV stream per sequence (kv_unified false)")
        add("--pairs", type=at_least(1), default=5, help="repetitions (5)")
        add("--json", type=Path, metavar="OUT", help="append every figure to this file, a JSON object a line")
    add = serve_command.add_argument
    add("--sampling", choices=("greedy", "top-p"), default="greedy", help="top-p is temperature 1, top_p 0.95 (greedy)")
    add("--timeout", type=float, default=300.0, help="seconds after which a request has failed (300)")
    add("--pin", choices=("client", "both", "none"), default=DEFAULT_PIN,
        help="client: the client on the last core; both: and the server on the others; none: neither")  # fmt: skip
    raw_command.set_defaults(sampling="greedy")
    embeddings_command = commands.add_parser("embeddings", help="/v1/embeddings, in pairs with the raw loop")
    embeddings.add_arguments(embeddings_command, at_least(1))
    embeddings_command.add_argument("--pin", choices=("client", "both", "none"), default=DEFAULT_PIN,
                                    help="as of serve")  # fmt: skip
    return parser.parse_args()


def workloads(options: argparse.Namespace) -> Iterator[Workload]:
    path, defaults = resolve_model(options.model)
    for streams in options.streams or [defaults.streams]:
        work = Workload(
            model=str(path), streams=streams, requests=options.requests or 1,
            prompt_tokens=options.prompt_tokens or defaults.prompt_tokens, tokens=options.tokens or defaults.tokens,
            sampling=options.sampling, threads=options.threads, partitioned=options.partitioned,
        )  # fmt: skip
        if options.requests is None:
            requests = round(RUN_SECONDS / raw.run(work).wall_s)
            work = msgspec.structs.replace(work, requests=max(1, min(requests, 1000)))
        yield work


def served_run(server: Server, work: Workload, run: int, cores: set[int] | None, timeout: float) -> ServedRun:
    before = server.cpu_seconds()
    with bound_to(cores):
        result = load(work, server.port, run, timeout)
    after = server.cpu_seconds()
    return summarize(result, work, None if before is None or after is None else after - before)


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


def main() -> int:
    options = arguments()
    # a termination must run the blocks that end the server
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    journal = Journal(options.json)
    about = conditions()
    print(" ".join(f"{name}={value}" for name, value in about.items()))
    journal.write("conditions", command=options.command, **about)
    rows, failures = [], []
    try:
        if options.command == "embeddings":
            rows = embeddings.rows(options, journal)
        for work in workloads(options) if options.command != "embeddings" else ():
            journal.write("workload", **msgspec.structs.asdict(work))
            if options.command == "raw":
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
