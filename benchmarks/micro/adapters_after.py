"""Whether steps take longer after somebody had adapters: each step at its fastest, before and after.

    python -m benchmarks.micro.adapters_after [--rounds N] [--runs N]

SmolLM2-135M in this process, one compute thread, 8 sequences without adapters. Two contexts take turns: one that never
had adapters, and one where, before each round, three groups had some and let them go. Compared is what each step takes
at its fastest of some runs, in CPU time of its thread: what else the machine does is not in that.
"""

from __future__ import annotations

import argparse
import os
import time
from array import array
from pathlib import Path
from statistics import median

from msgspec.structs import asdict

from benchmarks.report import conditions, print_table
from benchmarks.samplers import sampler_of
from benchmarks.workload import resolve_model
from llamafast._core.adapters import Adapter
from llamafast._core.context import Context
from llamafast._core.model import Model
from llamafast._core.outbox import Outbox
from llamafast._core.runner import Runner
from llamafast._core.sequence import Sequence
from llamafast._core.vocab import Vocab
from llamafast.engine.pace import Pace
from recipes import tiny_lora

NAMES = ("lora-smollm2", "lora-smollm2-2", "lora-smollm2-3")
N_SEQUENCES, PROMPT_TOKENS, ANSWER_TOKENS = 8, 32, 48
# Steps of a run that decode and nothing else.
STEPS = slice(4, 44)
# So many batches without it and an adapter leaves.
LETS_GO = 60


class Bench:
    """A context of its own."""

    def __init__(self, path: Path) -> None:
        self.model = Model(str(path))
        self.vocab = Vocab(self.model)
        self.context = Context(
            self.model,
            n_ctx=4096,
            n_batch=512,
            n_ubatch=512,
            n_seq_max=16,
            kv_unified=True,
            flash_attn_type=1,
            n_threads=1,
            n_threads_batch=1,
        )
        self.outbox = Outbox(os.open(os.devnull, os.O_WRONLY))
        self.runner = Runner(self.context, self.vocab, self.outbox, pace=asdict(Pace()))

    def seconds(self, groups: tuple[int, ...] = (0,), n: int = N_SEQUENCES, tokens: int = ANSWER_TOKENS) -> list[float]:
        """Of each step, for ``n`` sequences that have ``groups`` in turn."""
        self.context.clear()
        for i in range(n):
            prompt = array("i", ((37 * i + 11 * k) % 40_000 + 100 for k in range(PROMPT_TOKENS)))
            group = groups[i % len(groups)]
            sampler = sampler_of(self.vocab.n_tokens, temperature=0.0)
            self.runner.add(
                Sequence(self.vocab, prompt, sampler, tag=i, max_tokens=tokens, group=group, ignore_eos=True)
            )
        took = []
        while self.runner.n_running:
            began = time.thread_time()
            self.runner.run(1)
            took.append(time.thread_time() - began)
            for sequence in self.runner.finished():
                self.runner.remove(sequence)
        self.outbox.drain()
        return took


def measure(n_rounds: int, n_runs: int) -> list[dict[str, str]]:
    path = resolve_model("smollm2")[0]
    never, had = Bench(path), Bench(path)
    for group, name in enumerate(NAMES, 1):
        adapter = Adapter(had.model, str(tiny_lora.build(name)), tiny_lora.LORAS[name].alpha)
        had.context.adapters.define(group, [(adapter, 1.0)])
    for bench in (never, had):
        bench.seconds()
    rows = []
    for number in range(n_rounds + 1):
        if number:
            had.seconds((0, 1, 2, 3))
            for bench in (never, had):
                bench.seconds(n=1, tokens=LETS_GO)
        runs: dict[Bench, list[list[float]]] = {never: [], had: []}
        for k in range(n_runs):
            for bench in (never, had) if k % 2 else (had, never):
                runs[bench].append(bench.seconds()[STEPS])
        fastest = {bench: [min(steps) for steps in zip(*all_runs, strict=True)] for bench, all_runs in runs.items()}
        ratio = median(one / other for one, other in zip(fastest[never], fastest[had], strict=True))
        rows.append(
            {
                "round": str(number) if number else "before",
                "never ÷ had": f"{ratio:.4f}",
                "ms a step": f"{1000 * median(fastest[had]):.2f}",
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=6)
    options = parser.parse_args()
    print(conditions())
    print_table(measure(options.rounds, options.runs))


if __name__ == "__main__":
    main()
