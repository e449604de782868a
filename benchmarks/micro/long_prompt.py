"""The pauses of running answers while a long prompt is computed beside them, in one process, engine only.

    python -m benchmarks.micro.long_prompt [--model NAME] [--streams N] [--prompt-tokens N] [--seconds S]

A stream is one short answer after another, so that the streams together are as long at any time as at another: a longer
answer decodes slower by itself. The gaps between an answer's tokens are pooled: first without the prompt for some
seconds, then from its submission to its first token, or for so many seconds. How the prompt gets on is seen in the
engine's counter, looked at every 20 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from contextlib import suppress

from benchmarks.micro.cache import prompt, start
from benchmarks.workload import PROMPT_IDS, resolve_model
from llamafast.bench.figures import median, percentile
from llamafast.engine.engine import Engine
from llamafast.engine.types import Plan, SamplingParams

GREEDY = SamplingParams(temperature=0)
# Every token has text of its own, and so an event of its own.
PLAIN = SamplingParams(temperature=0, logit_bias=((PROMPT_IDS[0], 100.0),))
LOOK_SECONDS = 0.02


class Stream:
    """Answers of ``n_tokens`` tokens without end; ``gaps`` are the seconds between tokens since they were taken."""

    def __init__(self, engine: Engine, number: int, n_streams: int, n_tokens: int) -> None:
        self.gaps: list[float] = []
        self.decodes = asyncio.Event()
        self._engine = engine
        self._prompt = prompt(number, 1)
        self._n_tokens = n_tokens
        # no two streams begin an answer at the same time
        self._n_first = max(2, n_tokens * (number + 1) // n_streams)

    async def read(self) -> None:
        max_tokens = self._n_first
        while True:
            plan = Plan(prompts=(self._prompt,), sampling=PLAIN, max_tokens=max_tokens, ignore_eos=True)
            last = 0.0
            async for _ in self._engine.submit(plan):
                now = time.perf_counter()
                if last:
                    self.gaps.append(now - last)
                    self.decodes.set()
                last = now
            max_tokens = self._n_tokens


def take(streams: list[Stream]) -> list[float]:
    gaps = [gap for stream in streams for gap in stream.gaps]
    for stream in streams:
        stream.gaps.clear()
    return gaps


class Progress:
    """How many prompt ``tokens`` were computed and the most seconds in which none was."""

    def __init__(self, engine: Engine) -> None:
        self.tokens = 0.0
        self.longest_wait = 0.0
        self._engine = engine

    async def watch(self) -> None:
        first, since = self._engine.counters()["prompt_tokens"], time.perf_counter()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            n, now = self._engine.counters()["prompt_tokens"] - first, time.perf_counter()
            self.longest_wait = max(self.longest_wait, now - since)
            if n > self.tokens:
                self.tokens, since = n, now


def described(gaps: list[float]) -> str:
    percentiles = f"p99 {percentile(gaps, 99) * 1e3:.1f} ms, worst {max(gaps) * 1e3:.1f} ms"
    return f"{len(gaps)} gaps, median {median(gaps) * 1e3:.1f} ms, {percentiles}"


async def measure(options: argparse.Namespace) -> None:
    path, _ = resolve_model(options.model)
    # everybody is admitted: the scheduler reserves a few hundred cells ahead
    n_ctx = (options.streams + 1) * (options.tokens + 256) + options.prompt_tokens
    engine = start(path, 0, n_ctx, options.streams + 1)
    streams = [Stream(engine, k, options.streams, options.tokens) for k in range(options.streams)]
    readers = [asyncio.create_task(stream.read()) for stream in streams]
    await asyncio.gather(*(stream.decodes.wait() for stream in streams))
    take(streams)
    await asyncio.sleep(options.seconds)
    without = take(streams)
    progress = Progress(engine)
    watching = asyncio.create_task(progress.watch())
    started = time.perf_counter()
    long = prompt("long", options.prompt_tokens)
    generation = engine.submit(Plan(prompts=(long,), sampling=GREEDY, max_tokens=1, ignore_eos=True))
    with suppress(TimeoutError):
        await asyncio.wait_for(anext(generation), options.beside)
    seconds = time.perf_counter() - started
    watching.cancel()
    beside = take(streams)
    print(f"without the prompt: {described(without)}")
    print(f"beside it: {described(beside)}")
    print(f"p99 beside it ÷ median without it: {percentile(beside, 99) / median(without):.2f}")
    print(
        f"{progress.tokens:.0f} of {len(long)} prompt tokens in {seconds:.1f} s, "
        f"never more than {progress.longest_wait:.2f} s without progress"
    )
    for reader in readers:
        reader.cancel()
    generation.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    await engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a tiny model's name, smollm2 or the path of a GGUF")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="of an answer")
    parser.add_argument("--prompt-tokens", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=15, help="of decoding without the prompt")
    parser.add_argument("--beside", type=float, default=600, help="seconds of decoding beside the prompt at most")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
