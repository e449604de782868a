"""What one run of embeddings asks for, and the bare llama_decode loop over the same inputs.

The loop packs as many inputs into a batch as the clients have under way and reads no vector. It runs in a process of
its own (``python -m benchmarks.embedding_work``, an EmbeddingWork on stdin, its seconds on stdout).
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from benchmarks.raw import checked_decode, in_new_process
from benchmarks.workload import N_BATCH, resolve_model
from llamafast.bench.ask import Ask
from recipes import minilm

N_SEQ_MAX = 64
# Plain words in all-MiniLM-L6-v2 and the tiny models.
INPUT_IDS = range(33, 450)


class EmbeddingWork(msgspec.Struct, frozen=True, kw_only=True):
    """``clients`` send ``requests`` lists of ``inputs`` texts with ``tokens`` tokens each, one list after another."""

    model: str
    clients: int
    requests: int
    inputs: int
    tokens: int
    threads: int = 1

    @property
    def all_tokens(self) -> int:
        return self.clients * self.requests * self.inputs * self.tokens

    def input_list(self, run: int, client: int, request: int) -> list[list[int]]:
        draw = random.Random(f"{run}/{client}/{request}")
        return [draw.choices(INPUT_IDS, k=self.tokens) for _ in range(self.inputs)]

    def asks(self, run: int) -> list[list[Ask]]:
        """The requests of every client."""
        return [
            [
                Ask(
                    path="/v1/embeddings",
                    body={"input": self.input_list(run, client, request), "encoding_format": "base64"},
                    prompt_tokens=self.inputs * self.tokens,
                    vectors=self.inputs,
                )
                for request in range(self.requests)
            ]
            for client in range(self.clients)
        ]

    def context_settings(self) -> dict[str, Any]:
        """The servers' settings by the names of their config. Batch and micro-batch are one: llama.cpp aborts where
        attention looks both ways and a batch is larger."""
        return {
            "n_ctx": N_BATCH,
            "n_batch": N_BATCH,
            "n_ubatch": N_BATCH,
            "n_seq_max": N_SEQ_MAX,
            "n_threads": self.threads,
            "n_threads_batch": self.threads,
            "kv_unified": True,
            "embedding": True,
        }


def embedding_model(name: str) -> Path:
    """``minilm``, converted where it is not yet, or what ``resolve_model`` knows. Raises FileNotFoundError."""
    return minilm.build() if name == "minilm" else resolve_model(name)[0]


def run_here(work: EmbeddingWork) -> float:
    """Seconds of the bare loop, on graphs as llama.cpp makes them."""
    from llamafast._core.context import Batch, Context
    from llamafast._core.model import Model

    settings = work.context_settings()
    context = Context(Model(work.model), embeddings=settings.pop("embedding"), bare=True, **settings)
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


def run(work: EmbeddingWork) -> float:
    """``run_here`` in a new process. Raises RuntimeError with what that process wrote when it fails."""
    return float(in_new_process("benchmarks.embedding_work", work))


if __name__ == "__main__":
    print(run_here(msgspec.json.decode(sys.stdin.buffer.read(), type=EmbeddingWork)))
