"""How likely a model takes a text to be, with products and attention of ours and with llama.cpp's own.

    python -m benchmarks.micro.perplexity [--model M] [--tokens N] [--passage N]

The text is this repository's documents, in passages that know nothing of each other. The perplexity of both, their
ratio, and its standard error: passages are what is drawn, and each is scored by both.
"""

from __future__ import annotations

import argparse
import os
from array import array
from collections.abc import Iterator
from math import exp
from statistics import mean, stdev
from struct import iter_unpack

from msgspec.structs import asdict

from benchmarks.draft_work import ROOT
from benchmarks.samplers import sampler_of
from benchmarks.workload import resolve_model
from llamafast._core.context import Context
from llamafast._core.model import Model
from llamafast._core.outbox import Outbox
from llamafast._core.runner import Runner
from llamafast._core.sequence import Sequence
from llamafast._core.vocab import Vocab
from llamafast.engine.pace import Pace


class Scorer:
    """One context and who runs in it; ``bare`` leaves all nodes to llama.cpp."""

    def __init__(self, model: Model, vocab: Vocab, n_passage: int, *, bare: bool) -> None:
        self.vocab = vocab
        context = Context(
            model, n_ctx=n_passage + 8, n_batch=n_passage, n_ubatch=n_passage, n_seq_max=1, n_threads=1,
            n_threads_batch=1, kv_unified=True, bare=bare,
        )  # fmt: skip
        self._read, write = os.pipe()
        os.set_blocking(write, False)
        self.outbox = Outbox(write)
        self.runner = Runner(context, vocab, self.outbox, pace=asdict(Pace()))

    def logprob(self, tokens: list[int]) -> float:
        """Of all tokens but the first one, the mean."""
        sampler = sampler_of(self.vocab.n_tokens, temperature=0.0)
        sequence = Sequence(
            self.vocab, array("i", tokens), sampler, tag=1, max_tokens=0, top_logprobs=0, score_prompt=True
        )
        self.runner.add(sequence)
        found: list[float] = []
        while self.runner.n_running:
            self.runner.run(1)
            for finished in self.runner.finished():
                self.runner.remove(finished)
            for _, _, _, _, _, logprobs, *_ in self.outbox.drain():
                if logprobs is not None:
                    # each token is followed by its rank
                    found += [logprob for _, logprob in list(iter_unpack("if", logprobs[1]))[::2]]
        assert len(found) == len(tokens) - 1
        return mean(found)


def passages(vocab: Vocab, n_tokens: int, n_passage: int) -> Iterator[list[int]]:
    text = "\n\n".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))
    tokens = vocab.tokenize(text, add_special=False, parse_special=False)[:n_tokens]
    for start in range(0, len(tokens) - n_passage + 1, n_passage):
        yield list(tokens[start : start + n_passage])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.micro.perplexity", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", default="smollm2", help="a tiny model's name, smollm2 or the path of a GGUF")
    parser.add_argument("--tokens", type=int, default=32_000)
    parser.add_argument("--passage", type=int, default=256)
    options = parser.parse_args()
    model = Model(str(resolve_model(options.model)[0]))
    vocab = Vocab(model)
    ours, theirs = (Scorer(model, vocab, options.passage, bare=bare) for bare in (False, True))
    pairs = [(ours.logprob(one), theirs.logprob(one)) for one in passages(vocab, options.tokens, options.passage)]
    apart = [a - b for a, b in pairs]
    mine, other = (exp(-mean(side)) for side in zip(*pairs, strict=True))
    print(f"{len(pairs)} passages: perplexity {mine:.4f}, llama.cpp's {other:.4f}")
    print(f"their ratio {exp(-mean(apart)):.5f}, +- {stdev(apart) / len(apart) ** 0.5:.5f}")


if __name__ == "__main__":
    main()
