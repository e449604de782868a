"""What the disk tier costs and gives.

    python -m benchmarks.micro.disk [restore restart throughput gaps index] [--pairs N] [--model NAME]

* restore: the time to the first token of 512 tokens that are on the disk ÷ of 512 that are computed, the page cache
  dropped for each file before;
* restart: that of a prompt of 2,000 tokens from a server that was ended (SIGTERM, or SIGKILL after two idle seconds)
  and started again ÷ from one that had never seen it, asked as soon as the server answers;
* throughput: tokens per second of streams whose prompts have nothing in common, with a disk_cache ÷ without, in slices
  that take turns, and bytes written ÷ bytes of all states saved to RAM; what idle times are for is not done;
* gaps: the 99th percentile of the time between tokens of 16 streams while a gigabyte is written and one is read ÷
  without, window by window;
* index: how long 10,000 files take to be found, and the first answer of an engine that finds them ÷ of one without.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import signal
import tempfile
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from benchmarks.media import answered
from benchmarks.micro.cache import ask, prompt, settled
from benchmarks.report import conditions, print_table, spread
from benchmarks.server import Server, serving
from benchmarks.workload import resolve_model
from llamafast.bench.ask import Ask
from llamafast.bench.figures import percentile
from llamafast.config import CacheConfig, Config, DiskCacheConfig, ModelConfig
from llamafast.cpus import allowed_cpus, leave_to_compute, on_cpus
from llamafast.engine import disk_writer, worker
from llamafast.engine.disk import DiskStore, new_id
from llamafast.engine.disk_entry import encode_head, file_name
from llamafast.engine.disk_events import Order, Written
from llamafast.engine.disk_folder import DiskFolder
from llamafast.engine.engine import Engine
from llamafast.engine.load import load_engine
from llamafast.engine.types import Plan, SamplingParams

GIGABYTE = 10**9
RAM = 2**30
PART_BYTES = 12 * 10**6  # 512 tokens of SmolLM2
N_ENTRIES = 10_000
CPUS = allowed_cpus()
WARM_SECONDS, IDLE_SECONDS = 1.0, 2.0


@contextmanager
def folders() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=Path.cwd() / ".cache") as name:
        yield Path(name)


def start(path: Path, folder: Path | None, n_seq_max: int = 16, n_ctx: int = 8192) -> Engine:
    disk = None if folder is None else DiskCacheConfig(path=str(folder), max_bytes=20 * GIGABYTE)
    model = ModelConfig(path=str(path), n_ctx=n_ctx, n_seq_max=n_seq_max, threads=1)
    with on_cpus(CPUS):  # as a server does
        engine = load_engine(Config(model=model, cache=CacheConfig(ram_bytes=RAM), disk_cache=disk), path)
        engine.start()
    return engine


def forget_pages(folder: Path) -> None:
    for file in folder.glob("*/*.safetensors"):
        fd = os.open(file, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


async def listed(engine: Engine, n: int) -> None:
    for _ in range(60_000):
        if engine.counters()["disk_entries"] >= n:
            return
        await asyncio.sleep(0.001)
    raise TimeoutError("files are missing")


async def restore(path: Path, options: argparse.Namespace) -> list[dict[str, str]]:
    prompts = [prompt(("kept", k), 512) for k in range(options.pairs)]
    with folders() as folder:
        engine = start(path, folder)
        for tokens in prompts:
            await ask(engine, tokens, 1)
        await settled(engine)
        await engine.close()
        forget_pages(folder)
        engine = start(path, folder)
        await listed(engine, options.pairs)
        await ask(engine, prompt("warm", 512), 1)
        ratios, kept, computed = [], [], []
        for k, tokens in enumerate(prompts):
            await settled(engine)
            seconds, _, n = await ask(engine, array("i", [*tokens, 40]), 1)
            assert n == 512, "it was to be found"
            kept.append(seconds)
            await settled(engine)
            computed.append((await ask(engine, prompt(("new", k), 513), 1))[0])
            ratios.append(kept[-1] / computed[-1])
        await engine.close()
    return [
        {"what": "restore: 512 tokens from the disk, s", "median": spread(kept, ".4f")},
        {"what": "restore: 512 tokens computed, s", "median": spread(computed, ".4f")},
        {"what": "restore: from the disk ÷ computed", "median": spread(ratios, ".3f")},
    ]


def restart(path: Path, options: argparse.Namespace) -> list[dict[str, str]]:
    rows = []
    for name, end in (("SIGTERM", signal.SIGTERM), ("SIGKILL after 2 s idle", signal.SIGKILL)):
        ratios, firsts, seconds = [], [], []
        for k in range(options.rounds):
            tokens = list(prompt((name, k), 2000))
            wanted = Ask(body={"prompt": tokens, "max_tokens": 4, "temperature": 0}, tokens=4)
            other = Ask(body={"prompt": list(prompt("warm", 64)), "max_tokens": 1, "temperature": 0}, tokens=1)
            with folders() as folder:
                found = []
                for again in (False, True):
                    with serving(configured(path, folder), None) as server:
                        if not again:
                            answered(server, [other])
                        (exchange,) = answered(server, [wanted])
                        found.append(exchange.events[0][0] - exchange.sent)
                        if not again:
                            ended(server, end)
                    forget_pages(folder)
            firsts.append(found[0])
            seconds.append(found[1])
            ratios.append(found[1] / found[0])
        rows += [
            {"what": f"restart, {name}: cold, s", "median": spread(firsts, ".3f")},
            {"what": f"restart, {name}: started again, s", "median": spread(seconds, ".3f")},
            {"what": f"restart, {name}: again ÷ cold", "median": spread(ratios, ".3f")},
        ]
    return rows


def configured(path: Path, folder: Path) -> Callable[[int], dict[str, object]]:
    return lambda port: {
        "server": {"port": port},
        "model": {"path": str(path), "alias": "benchmark", "n_ctx": 8192, "threads": 1},
        "disk_cache": {"path": str(folder), "max_bytes": GIGABYTE},
    }


def ended(server: Server, end: signal.Signals) -> None:
    if end == signal.SIGKILL:
        time.sleep(IDLE_SECONDS)
    os.kill(server.pid, end)
    while Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)


async def throughput(path: Path, n_streams: int, options: argparse.Namespace) -> list[dict[str, str]]:
    kept_seconds, worker.IDLE_SECONDS = worker.IDLE_SECONDS, 1e6
    answer = 64
    with folders() as folder:
        engines = {"on": start(path, folder, n_streams), "off": start(path, None, n_streams)}
        walls, cpus = [], []
        for pair in range(options.pairs + 1):
            speeds = {}
            for name in ("on", "off") if pair % 2 else ("off", "on"):
                prompts = [prompt((name, pair, k), 160) for k in range(n_streams)]
                wall, cpu = time.perf_counter(), time.process_time()
                await asyncio.gather(*(ask(engines[name], tokens, answer) for tokens in prompts))
                await settled(engines[name])
                speeds[name] = time.perf_counter() - wall, time.process_time() - cpu
            if pair:  # the first one warms up
                walls.append(speeds["off"][0] / speeds["on"][0])
                cpus.append(speeds["off"][1] / speeds["on"][1])
        counters = engines["on"].counters()
        for engine in engines.values():
            engine._worker.transfer.close = lambda seconds: None  # type: ignore[method-assign]
            await engine.close()
    worker.IDLE_SECONDS = kept_seconds
    saved = counters["cache_bytes"] / max(counters["cache_states"], 1) * counters["cache_saves"]
    return [
        {"what": f"throughput, {n_streams} streams: on ÷ off, wall", "median": spread(walls, ".3f")},
        {"what": f"throughput, {n_streams} streams: on ÷ off, CPU", "median": spread(cpus, ".3f")},
        {"what": "bytes written ÷ saved", "median": f"{counters['disk_written_bytes'] / saved:.4f}"},
    ]


class Traffic:
    """A store of its own in this process, that writes and reads a gigabyte each when told to."""

    def __init__(self, folder: Path) -> None:
        self._news = threading.Semaphore(0)
        self._store = DiskStore(DiskFolder(folder, {"traffic": 1}), 50 * GIGABYTE, self._news.release)
        self._store.start()
        self._data = [secrets.token_bytes(PART_BYTES) for _ in range(4)]

    def run(self, n_bytes: int) -> None:
        """Blocks."""
        heads = []
        n = n_bytes // PART_BYTES
        tokens = array("i", range(512))
        for k in range(n):
            self._store.write(Order(new_id(), "", "", 0, 0, tokens, self._data[k % 4]))
        n_read = 0
        while n_read < n:
            self._news.acquire()
            event = self._store.next_event()
            if isinstance(event, Written) and event.head is not None:
                heads.append(event.head)
                self._store.read(event.head)
            elif event is not None and hasattr(event, "state"):
                n_read += 1
        for head in heads:
            self._store.delete(head.id)

    def close(self) -> None:
        self._store.close(30.0)


async def gaps(path: Path, options: argparse.Namespace) -> list[dict[str, str]]:
    disk_writer.BURST = 1000 * GIGABYTE
    with folders() as folder:
        engine, traffic = start(path, folder / "engine"), Traffic(folder / "traffic")
        ratios = []
        loop = asyncio.get_running_loop()
        busy = 4.0
        for pair in range(options.rounds * 4):
            found = {}
            for beside in (True, False) if pair % 2 else (False, True):
                times: list[list[float]] = [[] for _ in range(16)]
                streams = [asyncio.create_task(stream(engine, k, times[k])) for k in range(16)]
                await asyncio.sleep(WARM_SECONDS)
                began = time.perf_counter()
                if beside:
                    await loop.run_in_executor(None, traffic.run, GIGABYTE)
                    busy = time.perf_counter() - began
                else:
                    await asyncio.sleep(busy)
                ended = time.perf_counter()
                for task in streams:
                    task.cancel()
                await asyncio.gather(*streams, return_exceptions=True)
                await settled(engine)
                steps = [[t for t in one if began <= t <= ended] for one in times]
                found[beside] = percentile([b - a for one in steps for a, b in pairwise(one)], 99)
            ratios.append(found[True] / found[False])
        traffic.close()
        await engine.close()
    return [{"what": "gaps: p99 beside a GB written and one read ÷ without", "median": spread(ratios, ".3f")}]


async def stream(engine: Engine, k: int, times: list[float]) -> None:
    while True:
        greedy = SamplingParams(temperature=0)
        plan = Plan(prompts=(prompt(k, 16),), sampling=greedy, max_tokens=400, ignore_eos=True)
        async for _ in engine.submit(plan):
            times.append(time.perf_counter())


async def index(path: Path, options: argparse.Namespace) -> list[dict[str, str]]:
    found: dict[bool, list[float]] = {True: [], False: []}
    listings = []
    with folders() as folder:
        engine = start(path, folder)
        store = engine.disk
        await engine.close()
        assert store is not None
        for k in range(N_ENTRIES):
            entry(store.folder, k)
        for _ in range(options.rounds):
            for full in (True, False):
                began = time.perf_counter()
                engine = start(path, folder if full else None)
                loaded = time.perf_counter()
                await ask(engine, prompt("first", 64), 4)
                found[full].append(time.perf_counter() - loaded)
                if full:
                    await listed(engine, N_ENTRIES)
                    listings.append(time.perf_counter() - loaded)
                await engine.close()
                del began
    later = [a - b for a, b in zip(found[True], found[False], strict=True)]
    return [
        {"what": f"index: {N_ENTRIES} files found, s", "median": spread(listings, ".3f")},
        {"what": "index: the first answer later by, s", "median": spread(later, ".4f")},
    ]


def entry(folder: DiskFolder, k: int) -> None:
    tokens = array("i", random.Random(k).choices(range(40, 400), k=512))
    state = secrets.token_bytes(4096)
    head = Order(new_id(), "", "", 0, 0, tokens, state).head("0" * 32)
    (folder.namespace / file_name(head.id)).write_bytes(encode_head(head, folder.name, tokens) + state)


async def measure(options: argparse.Namespace) -> None:
    real, _ = resolve_model(options.model)
    tiny, _ = resolve_model("tiny-llama-chain")
    print(conditions())
    leave_to_compute(1)
    rows: list[dict[str, str]] = []
    for what in options.what or ("restore", "restart", "throughput", "gaps", "index"):
        match what:
            case "restore":
                rows += await restore(real, options)
            case "restart":
                rows += await asyncio.to_thread(restart, real, options)
            case "throughput":
                rows += await throughput(tiny, 16, options)
                rows += await throughput(real, 8, options)
            case "gaps":
                rows += await gaps(tiny, options)
            case "index":
                rows += await index(tiny, options)
    print_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3, help="of restarts and starts; four windows of gaps each")
    parser.add_argument("--model", default="smollm2", help="a tiny model's name, smollm2 or the path of a GGUF")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
