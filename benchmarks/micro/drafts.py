"""What drafts are worth: tokens per second with them ÷ without, of one model, in pairs that take turns.

    python -m benchmarks.micro.drafts [--model M] [--streams N ...] [--work W ...] [--pairs N] [--tokens N]
                                      [--draft-model M [--only]]

Nobody generates anything but what the model says: copies, extracts, edits of code, turns of an agent that quotes what a
tool has answered, JSON of what a text says of some people, under its schema, free text, and half of them copies beside
free text. Prompts are of this repository's documents and code, and none comes twice; those whose answers end at once
are passed over. The seconds are those of the CPU that this process has, its one thread that computes and those that
find masks, behind the prompts and while nobody has ended, so that all have as many streams: others may use the machine.
Answers have to be the same with and without; how many were not is told. Gaps are the times of steps: the 99th
percentile of those with drafts ÷ without, the median over pairs. "all right" is what steps of such lengths would give
at most. A draft model drafts beside look-ups, or with ``--only`` in their place.
"""

from __future__ import annotations

import argparse
import os
import time
from array import array
from pathlib import Path
from statistics import NormalDist, mean, median, quantiles, stdev
from typing import NamedTuple

from msgspec.structs import asdict

from benchmarks.draft_work import WORKS, Texts, asked, form_of
from benchmarks.samplers import sampler_of
from benchmarks.workload import resolve_model
from llamafast._core.constraint import Constraint
from llamafast._core.context import Context
from llamafast._core.drafter import Drafter
from llamafast._core.model import Model
from llamafast._core.outbox import Outbox
from llamafast._core.runner import Runner
from llamafast._core.sequence import Sequence
from llamafast._core.vocab import Vocab
from llamafast.api.schema.completions import CompletionRequest
from llamafast.chat.grammar.asked import asked_of_completion
from llamafast.chat.grammar.constraints import Constraints
from llamafast.config import ModelConfig
from llamafast.engine.drafting import ANSWERS_BYTES, TIMING_SECONDS, create_draft_model
from llamafast.engine.masking import MaskerThreads
from llamafast.engine.pace import Pace
from llamafast.engine.types import Matcher

# In fewer steps together, because somebody's answer ends at once, nothing can be seen.
LEAST_STEPS = 4
# So nobody is asked what a model answers with fewer tokens than this when it is alone; of so many tries.
LEAST_TOKENS, TRIES = 48, 40


class Ran(NamedTuple):
    tokens: list[list[int]]
    n_generated: int
    seconds: float
    gaps: list[float]


class Bench:
    """One context, and two runners that take turns in it: one drafts."""

    def __init__(
        self, path: Path, n_seq_max: int, most: int, small: Path | None = None, *, looks_up: bool = True
    ) -> None:
        self.model = Model(str(path))
        self.vocab = Vocab(self.model)
        self.context = Context(self.model, n_ctx=16384, n_batch=512, n_ubatch=512, n_seq_max=n_seq_max, n_threads=1,
                               n_threads_batch=1, kv_unified=True)  # fmt: skip
        self.context.warm_up(0)
        asked = ModelConfig(path=str(path), draft_model="draft-simple", draft_model_path=str(small), threads=1)
        self.drafter = Drafter(
            self.context,
            most=most,
            most_sequences=n_seq_max,
            looks_up=looks_up,
            answers_bytes=ANSWERS_BYTES,
            model=None if small is None else create_draft_model(asked, self.context, self.vocab, Model(str(small))),
        )
        self.times = self.drafter.time_steps(max(self.vocab.bos, 0), 6 * TIMING_SECONDS)
        read, write = os.pipe()
        os.set_blocking(write, False)
        os.set_blocking(read, False)
        self._read = read
        self.outbox = Outbox(write)
        # all prompts at once: else the first answers end before the last one begins
        pace = asdict(Pace(target_itl=100.0))
        self.runners = {
            False: Runner(self.context, self.vocab, self.outbox, pace=pace),
            True: Runner(self.context, self.vocab, self.outbox, pace=pace, drafter=self.drafter),
        }
        self.constraints = Constraints(self.vocab)
        self.masking = [MaskerThreads(runner.masker) for runner in self.runners.values()]
        for threads in self.masking:
            threads.start()

    def close(self) -> None:
        for threads in self.masking:
            threads.close()

    def matcher(self, work: str) -> Matcher | None:
        ask = asked_of_completion(CompletionRequest(prompt="", **form_of(work)).task())
        return None if ask is None else self.constraints.compile(ask).matcher

    def run(self, prompts: list[str], max_tokens: int, matcher: Matcher | None, *, drafts: bool) -> Ran:
        runner = self.runners[drafts]
        sequences = []
        for tag, prompt in enumerate(prompts):
            tokens = self.vocab.tokenize(prompt, add_special=True, parse_special=True)
            sampler = sampler_of(self.vocab.n_tokens, temperature=0.0)
            constraint = None if matcher is None else Constraint(matcher, self.vocab.n_tokens)
            sequences.append(
                Sequence(self.vocab, array("i", tokens), sampler, tag=tag, max_tokens=max_tokens, constraint=constraint)
            )
        for sequence in sequences:
            runner.add(sequence)
        while any(sequence.n_tokens == sequence.n_prompt for sequence in sequences):
            runner.run(1)
        before = sum(sequence.n_tokens for sequence in sequences)
        start, gaps = time.process_time(), []
        while runner.n_running == len(sequences):
            began = time.thread_time()
            runner.run(1)
            gaps.append(time.thread_time() - began)
            for sequence in runner.finished():
                runner.remove(sequence)
        seconds = time.process_time() - start
        n_generated = sum(sequence.n_tokens for sequence in sequences) - before
        while runner.n_running:
            runner.run(1)
            for sequence in runner.finished():
                runner.remove(sequence)
        self.outbox.drain()
        return Ran([list(sequence.tokens()) for sequence in sequences], n_generated, seconds, gaps)


def lasting(bench: Bench, work: str, texts: Texts, k: int, matcher: Matcher | None) -> str:
    """A prompt for stream ``k`` whose answer does not end at once. Raises SystemExit where the model knows none."""
    for _ in range(TRIES):
        prompt = asked(work, texts, k)
        (tokens,) = bench.run([prompt], LEAST_TOKENS, matcher, drafts=False).tokens
        if len(tokens) >= LEAST_TOKENS + len(bench.vocab.tokenize(prompt, add_special=True, parse_special=True)):
            return prompt
    raise SystemExit(f"{work}: of {TRIES} answers none has {LEAST_TOKENS} tokens")


def ceiling(times: dict[int, float], streams: int, most: int) -> float:
    """On ÷ off where every drafted token is right and steps are as long as they were measured behind few cells."""
    sizes = [rows for rows in times if streams <= rows <= streams * (1 + most)]
    return max(rows / times[rows] for rows in sizes) * times[streams] / streams


def p99(gaps: list[float]) -> float:
    return quantiles(gaps, n=100, method="inclusive")[98]


def compared(bench: Bench, work: str, streams: int, pairs: int, max_tokens: int, texts: Texts) -> list[str]:
    """A row of the table."""
    ratios, longer, n_apart, n_all = [], [], 0, 0
    totals = {False: [0, 0.0], True: [0, 0.0]}
    before, matcher = bench.drafter.counts(), bench.matcher(work)
    for pair in range(pairs):
        prompts = [lasting(bench, work, texts, k, matcher) for k in range(streams)]
        order = (False, True) if pair % 2 else (True, False)
        ran = {drafts: bench.run(prompts, max_tokens, matcher, drafts=drafts) for drafts in order}
        if min(len(one.gaps) for one in ran.values()) < LEAST_STEPS:
            continue
        rates = {drafts: one.n_generated / one.seconds for drafts, one in ran.items()}
        ratios.append(rates[True] / rates[False])
        n_apart += sum(a != b for a, b in zip(ran[True].tokens, ran[False].tokens, strict=True))
        n_all += streams
        longer.append(p99(ran[True].gaps) / p99(ran[False].gaps))
        for drafts, one in ran.items():
            totals[drafts][0] += one.n_generated
            totals[drafts][1] += one.seconds
    if not ratios:
        raise SystemExit(f"{work}, {streams} streams: somebody's answer ended at once in all {pairs} pairs")
    after = bench.drafter.counts()
    highest = ceiling(bench.times, streams, int(after["draft_most"]))
    decoded, accepted = (after[key] - before[key] for key in ("draft_tokens_verified", "draft_tokens_accepted"))
    overall = (totals[True][0] / totals[True][1]) / (totals[False][0] / totals[False][1])
    low = mean(ratios) - NormalDist().inv_cdf(0.975) * stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else 0.0
    return [
        work, str(streams), f"{totals[False][0] / totals[False][1]:.1f}", f"{median(ratios):.2f}", f"{overall:.2f}",
        f"{low:.3f}", f"{min(ratios):.2f}", f"{decoded / max(1, totals[True][0]):.2f}",
        f"{accepted / max(1, decoded):.2f}", f"{median(longer):.2f}", f"{n_apart}/{n_all}",
        f"{highest:.2f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.micro.drafts", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", default="smollm2", help="a tiny model's name, smollm2 or the path of a GGUF")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=96, help="most of an answer")
    parser.add_argument("--draft", type=int, default=16, help="most tokens of a draft")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--draft-model", help="a small one that drafts, by the same names")
    parser.add_argument("--only", action="store_true", help="the draft model, and no look-ups")
    options = parser.parse_args()
    small = None if options.draft_model is None else resolve_model(options.draft_model)[0]
    path = resolve_model(options.model)[0]
    bench = Bench(path, max(options.streams), options.draft, small, looks_up=not options.only)
    times = {rows: seconds / bench.times[1] for rows, seconds in sorted(bench.times.items())}
    print(f"a step of one row: {bench.times[1] * 1e3:.2f} ms; of more, in its:",
          ", ".join(f"{rows}: {ratio:.2f}" for rows, ratio in times.items()))  # fmt: skip
    print("work | streams | tok/s without | on ÷ off, median | all in all | lower 95 % | least | drafted/token | of "
          "these right | p99 gap | answers apart | all right")  # fmt: skip
    for work in options.work:
        for streams in options.streams:
            texts = Texts(options.seed + streams)
            print(" | ".join(compared(bench, work, streams, options.pairs, options.tokens, texts)), flush=True)
    bench.close()


if __name__ == "__main__":
    main()
