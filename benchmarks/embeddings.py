"""``python -m benchmarks embeddings``: /v1/embeddings under load, in pairs with the bare llama_decode loop.

The bare loop packs the same inputs into batches, as many at once as the clients have under way, and reads no vector. It
runs in a process of its own (``python -m benchmarks.embeddings``, an EmbeddingWork on stdin, its seconds on stdout).
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import uvloop

from benchmarks.pinning import bound_to, cores_of
from benchmarks.raw import DEADLINE_SECONDS, ROOT, checked_decode
from benchmarks.report import Journal, spread
from benchmarks.server import Server, serving
from recipes import minilm

N_BATCH = 512
N_SEQ_MAX = 64
RUN_SECONDS = 2.0
# Plain words in all-MiniLM-L6-v2 and the tiny models.
INPUT_IDS = range(33, 450)


class EmbeddingWork(msgspec.Struct, frozen=True, kw_only=True):
    """``clients`` send ``requests`` lists of ``inputs`` texts with ``tokens`` tokens each, one list after another."""

    model: str
    clients: int
    requests: int
    inputs: int
    tokens: int
    threads: int

    @property
    def all_inputs(self) -> int:
        return self.clients * self.requests * self.inputs

    def input_list(self, run: int, client: int, request: int) -> list[list[int]]:
        draw = random.Random(f"{run}/{client}/{request}")
        return [draw.choices(INPUT_IDS, k=self.tokens) for _ in range(self.inputs)]

    def server_config(self, port: int) -> dict[str, object]:
        model = {
            "path": self.model, "alias": "benchmark", "embedding": True, "n_ctx": N_BATCH, "n_batch": N_BATCH,
            "n_ubatch": N_BATCH, "n_seq_max": N_SEQ_MAX, "threads": self.threads,
        }  # fmt: skip
        return {"server": {"port": port, "max_queue": 4096}, "model": model}


class Reply(msgspec.Struct):
    data: list[msgspec.Raw]


def run_here(work: EmbeddingWork) -> float:
    """Seconds of the bare loop."""
    from llamafast._core.context import Batch, Context
    from llamafast._core.model import Model

    context = Context(
        Model(work.model), n_ctx=N_BATCH, n_batch=N_BATCH, n_ubatch=N_BATCH, n_seq_max=N_SEQ_MAX, kv_unified=True,
        n_threads=work.threads, n_threads_batch=work.threads, embeddings=True,
    )  # fmt: skip
    batch = Batch(N_BATCH)
    lists = [work.input_list(0, client, 0) for client in range(work.clients)]
    texts = [text for texts in lists for text in texts] * work.requests
    at_once = min(N_BATCH // work.tokens, N_SEQ_MAX, work.clients * work.inputs)

    def decode(some: Sequence[list[int]]) -> None:
        batch.clear()
        for seq_id, text in enumerate(some):
            for pos, token in enumerate(text):
                batch.add(token, pos, seq_id, True)
        checked_decode(context, batch)
        if context.has_memory:
            context.clear()

    for _ in range(3):
        decode(texts[:at_once])
    start = perf_counter()
    for first in range(0, len(texts), at_once):
        decode(texts[first : first + at_once])
    return perf_counter() - start


def run_raw(work: EmbeddingWork) -> float:
    """``run_here`` in a new process. Raises RuntimeError with what that process wrote when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.embeddings"],
        input=msgspec.json.encode(work), capture_output=True, cwd=ROOT, timeout=DEADLINE_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the raw loop failed:\n{done.stderr.decode(errors='replace')[-2000:]}")
    return float(done.stdout)


def message(work: EmbeddingWork, run: int, client: int, request: int) -> bytes:
    body = msgspec.json.encode({"input": work.input_list(run, client, request), "encoding_format": "base64"})
    head = (
        "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def play(port: int, messages: Sequence[bytes]) -> list[tuple[float, bytes]]:
    """One client's requests in turn: seconds and body of each answer. Raises RuntimeError for a status but 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    answers = []
    for sent in messages:
        start = perf_counter()
        writer.write(sent)
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
        )
        body = await reader.readexactly(length)
        if b" 200 " not in head.split(b"\r\n")[0]:
            raise RuntimeError(f"the server answered {head[:40]!r}: {body[:300]!r}")
        answers.append((perf_counter() - start, body))
    writer.close()
    return answers


async def play_all(port: int, scripts: Sequence[Sequence[bytes]]) -> tuple[float, list[tuple[float, bytes]]]:
    start = perf_counter()
    played = await asyncio.gather(*(play(port, script) for script in scripts))
    return perf_counter() - start, [answer for answers in played for answer in answers]


def run_served(server: Server, work: EmbeddingWork, run: int, cores: set[int] | None) -> tuple[float, list[float]]:
    """Wall seconds and the latency of each request. Raises RuntimeError for an answer without all vectors."""
    scripts = [[message(work, run, c, r) for r in range(work.requests)] for c in range(work.clients)]
    with bound_to(cores), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        wall, answers = runner.run(play_all(server.port, scripts))
    for _, body in answers:
        if len(msgspec.json.decode(body, type=Reply).data) != work.inputs:
            raise RuntimeError(f"an answer has not {work.inputs} vectors: {body[:300]!r}")
    return wall, sorted(seconds for seconds, _ in answers)


def add_arguments(parser: argparse.ArgumentParser, positive: Any) -> None:
    add = parser.add_argument
    add("--model", default="minilm", help="minilm or the path of a GGUF (minilm)")
    add("--clients", type=positive, nargs="+", default=[1], help="several values make several rows (1)")
    add("--inputs", type=positive, default=32, help="texts of one request (32)")
    add("--tokens", type=positive, nargs="+", default=[64], help="tokens of a text (64)")
    add("--requests", type=positive, help="requests a client sends (as many as make a run of 2 s)")
    add("--threads", type=positive, default=1, help="compute threads (1)")
    add("--pairs", type=positive, default=5, help="repetitions (5)")
    add("--json", type=Path, metavar="OUT", help="append every figure to this file, a JSON object a line")


def workloads(options: argparse.Namespace) -> Iterator[EmbeddingWork]:
    path = minilm.build() if options.model == "minilm" else Path(options.model).resolve()
    for tokens in options.tokens:
        for clients in options.clients:
            work = EmbeddingWork(
                model=str(path), clients=clients, requests=options.requests or 1, inputs=options.inputs,
                tokens=tokens, threads=options.threads,
            )  # fmt: skip
            if options.requests is None:
                work = msgspec.structs.replace(work, requests=max(1, min(1000, ceil(RUN_SECONDS / run_raw(work)))))
            yield work


def measure(work: EmbeddingWork, options: argparse.Namespace, journal: Journal) -> dict[str, str]:
    """A row of the table: raw and served in turn, each first in every other pair."""
    server_cores, client_cores = cores_of(options.pin)
    raw: list[float] = []
    served: list[tuple[float, list[float]]] = []
    with serving(work.server_config, server_cores) as server:
        run_served(server, msgspec.structs.replace(work, requests=1), 0, client_cores)
        for pair in range(1, options.pairs + 1):
            bare = run_raw(work) if pair % 2 else None
            served.append(run_served(server, work, pair, client_cores))
            raw.append(bare or run_raw(work))
            journal.write("embeddings", pair=pair, raw_s=raw[-1], served_s=served[-1][0])
    latencies = sorted(seconds for _, run in served for seconds in run)
    return {
        "clients": str(work.clients),
        "requests": str(work.requests),
        "inputs x tokens": f"{work.inputs}x{work.tokens}",
        "raw inputs/s": spread([work.all_inputs / seconds for seconds in raw], ",.0f"),
        "served inputs/s": spread([work.all_inputs / seconds for seconds, _ in served], ",.0f"),
        "served tok/s": spread([work.all_inputs * work.tokens / seconds for seconds, _ in served], ",.0f"),
        "efficiency": spread([bare / wall for bare, (wall, _) in zip(raw, served, strict=True)], ".3f"),
        "ms p50/p99": f"{1000 * latencies[len(latencies) // 2]:.1f}/{1000 * latencies[len(latencies) * 99 // 100]:.1f}",
    }


def rows(options: argparse.Namespace, journal: Journal) -> list[dict[str, str]]:
    """The table of one command. Raises what the loop and the server raise."""
    table = []
    for work in workloads(options):
        journal.write("workload", **msgspec.structs.asdict(work))
        table.append(measure(work, options, journal))
    return table


if __name__ == "__main__":
    print(run_here(msgspec.json.decode(sys.stdin.buffer.read(), type=EmbeddingWork)))
