"""How many threads should compute, and how long they should spin at a barrier: speeds alone and beside a busy process.

libgomp reads GOMP_SPINCOUNT when it is loaded; without it a waiting thread spins 300,000 times before it sleeps.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import product

import msgspec
from tqdm import tqdm

from benchmarks.report import Journal, spread
from benchmarks.server import serving
from benchmarks.workload import Workload
from llamafast.bench.address import loopback
from llamafast.bench.client import load
from llamafast.bench.figures import ServedRun, median, summarize

LIBGOMP_DEFAULT = 300_000


@contextmanager
def busy_neighbour() -> Iterator[int]:
    """A process that never sleeps, on whatever core the kernel gives it; its id."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def served(work: Workload, port: int, run: int, limit_s: float) -> ServedRun:
    """One run; the client shares the cores with the server, as the HTTP side does."""
    return summarize(load(work.asks(run), loopback(port), limit_s), None)


def measure_threads(
    work: Workload, threads: Sequence[int], spins: Sequence[int], pairs: int, limit_s: float, journal: Journal
) -> tuple[list[dict[str, str]], list[str]]:
    """A row per setting, alone and then beside a neighbour, and the reasons of failed requests. 0 threads are as
    many as the server chooses. All servers are up together and take turns; ratios are to the fastest fixed number's of
    the same round, the median of all rounds. A run that does not count comes before those of each place: what chooses
    has to find out where it is.
    """
    settings = list(product(threads, spins))
    runs: dict[tuple[str, int, int], list[ServedRun]] = {}
    with ExitStack() as stack, tqdm(total=len(settings) * pairs * 2, unit="run", smoothing=0) as bar:
        works = {n: msgspec.structs.replace(work, threads=n) for n in threads}
        servers = {
            (n, spin): stack.enter_context(serving(works[n].server_config, None, {"GOMP_SPINCOUNT": str(spin)}))
            for n, spin in settings
        }
        for place in ("quiet", "beside"):
            with ExitStack() as there:
                if place == "beside":
                    there.enter_context(busy_neighbour())
                for n, spin in settings:
                    served(works[n], servers[n, spin].port, 0, limit_s)
                for pair in range(pairs):
                    for n, spin in settings[pair % len(settings) :] + settings[: pair % len(settings)]:
                        run = served(works[n], servers[n, spin].port, 1 + 2 * pair + (place == "beside"), limit_s)
                        runs.setdefault((place, n, spin), []).append(run)
                        journal.write("threads", threads=n, spin=spin, place=place, **msgspec.structs.asdict(run))
                        bar.update()
    failures = [reason for each in runs.values() for run in each for reason in run.failures]
    return [row(runs, n, spin, [other for other in threads if other]) for n, spin in settings], failures


def row(
    runs: dict[tuple[str, int, int], list[ServedRun]], threads: int, spin: int, fixed: Sequence[int]
) -> dict[str, str]:
    """``fixed`` are the numbers of threads that are not chosen by the server."""
    cells = {
        "threads": str(threads or "chosen"),
        "spin": f"{spin:,}{' (libgomp)' if spin == LIBGOMP_DEFAULT else ''}",
    }
    for place, title in (("quiet", "quiet tok/s"), ("beside", "beside a busy process tok/s")):
        rates = [run.output_rate for run in runs[place, threads, spin]]
        cells[title] = spread(rates, ".1f")
        if fixed:
            best = [max(runs[place, n, spin][i].output_rate for n in fixed) for i in range(len(rates))]
            ratios = [rate / most for rate, most in zip(rates, best, strict=True)]
            cells[f"÷ best fixed, {place}"] = f"{median(ratios):.2f}"
    return cells
