"""How long ggml's threads should spin at a barrier: speeds alone and beside a busy process.

libgomp reads GOMP_SPINCOUNT when it is loaded; without it a waiting thread spins 300,000 times before it sleeps.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import msgspec
from tqdm import tqdm

from benchmarks.client import load
from benchmarks.figures import ServedRun, summarize
from benchmarks.report import Journal, spread
from benchmarks.server import serving
from benchmarks.workload import Workload

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
    return summarize(load(work.asks(run), port, limit_s), None)


def measure_threads(
    work: Workload, threads: Sequence[int], spins: Sequence[int], pairs: int, limit_s: float, journal: Journal
) -> tuple[list[dict[str, str]], list[str]]:
    """A row per setting, alone and beside a neighbour in turn, and the reasons of failed requests."""
    rows: list[dict[str, str]] = []
    failures: list[str] = []
    with tqdm(total=len(threads) * len(spins) * pairs * 2, unit="run", smoothing=0) as bar:
        for n_threads in threads:
            for spin in spins:
                setting = msgspec.structs.replace(work, threads=n_threads)
                quiet, beside = [], []
                with serving(setting.server_config, None, {"GOMP_SPINCOUNT": str(spin)}) as server:
                    served(setting, server.port, 0, limit_s)
                    for pair in range(pairs):
                        quiet.append(served(setting, server.port, 2 * pair + 1, limit_s))
                        bar.update()
                        with busy_neighbour():
                            beside.append(served(setting, server.port, 2 * pair + 2, limit_s))
                        bar.update()
                for place, runs in (("quiet", quiet), ("beside", beside)):
                    for run in runs:
                        failures += run.failures
                        journal.write(
                            "threads", threads=n_threads, spin=spin, place=place, **msgspec.structs.asdict(run)
                        )
                rows.append(
                    {
                        "threads": str(n_threads),
                        "spin": f"{spin:,}{' (libgomp)' if spin == LIBGOMP_DEFAULT else ''}",
                        "quiet tok/s": spread([run.output_rate for run in quiet], ".1f"),
                        "beside a busy process tok/s": spread([run.output_rate for run in beside], ".1f"),
                    }
                )
    return rows, failures
