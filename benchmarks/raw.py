"""The bare llama_decode loop: no sampling, any tokens, logits of every decoded row, graphs as llama.cpp makes them.

It runs in a process of its own (``python -m benchmarks.raw``, a Workload on stdin, a RawRun on stdout) so that neither
its memory nor its threads touch the server's.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from benchmarks.workload import N_BATCH, Workload

ROOT = Path(__file__).parents[1]
DEADLINE_SECONDS = 1800


class RawRun(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds spent; ``wall_s`` is the whole loop."""

    prefill_s: float
    decode_s: float
    wall_s: float

    def decode_rate(self, work: Workload) -> float:
        """Tokens per second of decode steps alone."""
        return work.streams * work.requests * (work.tokens - 1) / self.decode_s

    def output_rate(self, work: Workload) -> float:
        """Generated tokens per second, the prompts' time counted."""
        return work.output_tokens / self.wall_s

    def all_rate(self, work: Workload) -> float:
        """Prompt and generated tokens per second."""
        return work.all_tokens / self.wall_s


def checked_decode(context: Any, batch: Any) -> None:
    code = context.decode(batch)
    if code != 0:
        raise RuntimeError(f"llama_decode returned {code}")


def prefill(context: Any, batch: Any, prompts: Sequence[Sequence[int]]) -> None:
    """Decode all prompts in full batches, with logits for the last token of each."""
    batch.clear()
    for seq_id, prompt in enumerate(prompts):
        for pos, token in enumerate(prompt):
            if len(batch) == N_BATCH:
                checked_decode(context, batch)
                batch.clear()
            batch.add(token, pos, seq_id, pos == len(prompt) - 1)
    checked_decode(context, batch)


def decode(context: Any, batch: Any, prompts: Sequence[Sequence[int]], steps: int) -> None:
    """``steps`` steps of one row a sequence."""
    batch.clear()
    for seq_id, prompt in enumerate(prompts):
        batch.add(prompt[-1], len(prompt), seq_id, True)
    for _ in range(steps):
        checked_decode(context, batch)
        batch.advance()


def run_here(work: Workload) -> RawRun:
    """The loop itself. The prefill's logits give the first token of a request, so ``tokens - 1`` steps follow it."""
    from llamafast._core.context import Batch, Context
    from llamafast._core.model import Model

    context = Context(Model(work.model), bare=True, **work.context_settings())
    batch = Batch(max(N_BATCH, work.streams))
    rounds = [[work.prompt(0, stream, request) for stream in range(work.streams)] for request in range(work.requests)]
    prefill(context, batch, rounds[0])
    decode(context, batch, rounds[0], min(8, work.tokens - 1))
    prefill_s = decode_s = 0.0
    start = perf_counter()
    for prompts in rounds:
        context.clear()
        begin = perf_counter()
        prefill(context, batch, prompts)
        middle = perf_counter()
        decode(context, batch, prompts, work.tokens - 1)
        prefill_s += middle - begin
        decode_s += perf_counter() - middle
    return RawRun(prefill_s=prefill_s, decode_s=decode_s, wall_s=perf_counter() - start)


def in_new_process(module: str, work: msgspec.Struct) -> bytes:
    """What ``module`` prints when it is run with ``work`` on stdin.

    Raises RuntimeError with what that process wrote when it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=msgspec.json.encode(work),
        capture_output=True,
        cwd=ROOT,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"the raw loop failed:\n{done.stderr.decode(errors='replace')[-2000:]}")
    return done.stdout


def run(work: Workload) -> RawRun:
    """``run_here`` in a new process. Raises RuntimeError with what that process wrote when it fails."""
    return msgspec.json.decode(in_new_process("benchmarks.raw", work), type=RawRun)


if __name__ == "__main__":
    sys.stdout.buffer.write(msgspec.json.encode(run_here(msgspec.json.decode(sys.stdin.buffer.read(), type=Workload))))
