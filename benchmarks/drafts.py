"""What drafts are worth behind a server: ours, llama-server with each of its kinds of n-grams, the example server.

    python -m benchmarks.drafts [--work W ...] [--streams N ...] [--pairs N] [--tokens N] [--servers NAME ...]
                                [--draft-model M]

The works are those of ``benchmarks.micro.drafts``: copies, extracts, edits of code, turns of an agent, JSON of what a
text says under its schema, free text, and half of them copies. In each round every server is asked the same prompts,
which no round has twice; they take turns. Tokens, those of the answers' texts, are counted by the CPU seconds that a
server and its children took for all of it, prompts included: others may use the machine. The best of llama-server's
settings is the one of the highest median at that work. The example server is there without drafts and with look-ups,
at what it has for defaults of these. With a draft model ours and llama-server draft by it too.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender, Llamafast, LlamaServer, Seed, Unavailable
from benchmarks.draft_work import WORKS, Texts, asked, form_of
from benchmarks.report import conditions, print_table, spread
from benchmarks.server import Server
from benchmarks.workload import resolve_model
from llamafast._core.model import Model
from llamafast._core.vocab import Vocab
from llamafast.bench.address import loopback
from llamafast.bench.ask import Ask
from llamafast.bench.client import load
from llamafast.bench.figures import median, read_chunk

LIMIT_S = 600
SETTINGS = {"n_ctx": 16384, "n_batch": 512, "n_ubatch": 512, "n_seq_max": 16, "kv_unified": True}
LOOKUP = {"draft_model": "prompt-lookup-decoding"}


class Drafts(Llamafast):
    """Ours, with what the config says of drafts."""

    def __init__(self, name: str, **drafts: Any) -> None:
        self.name, self._drafts = name, drafts

    def command(
        self, model: str, settings: dict[str, Any], port: int, folder: Path, mmproj: Path | None = None
    ) -> list[str]:
        return super().command(model, settings | self._drafts, port, folder, mmproj)


class SeedDrafts(Seed):
    """The example server with look-ups, at what it has for defaults of these."""

    name = "seed lookup"

    def command(
        self, model: str, settings: dict[str, Any], port: int, folder: Path, mmproj: Path | None = None
    ) -> list[str]:
        return super().command(model, settings | LOOKUP, port, folder, mmproj)


class Worded(LlamaServer):
    """llama-server with further words on its command line."""

    def __init__(self, name: str, *words: str) -> None:
        self.name, self._words = name, words

    def command(
        self, model: str, settings: dict[str, Any], port: int, folder: Path, mmproj: Path | None = None
    ) -> list[str]:
        return [*super().command(model, settings, port, folder, mmproj), *self._words]


def ngrams(kind: str, n: int, m: int) -> Worded:
    words = ("--spec-type", kind, f"--spec-{kind}-size-n", str(n), f"--spec-{kind}-size-m", str(m))
    return Worded(f"llama-server {kind} {n}/{m}", *words)


SERVERS: tuple[Contender, ...] = (
    Drafts("llamafast", **LOOKUP),
    Drafts("llamafast none", draft_model="none"),
    Worded("llama-server none"),
    Worded("llama-server default", "--spec-default"),
    ngrams("ngram-simple", 4, 16),
    ngrams("ngram-simple", 12, 48),
    ngrams("ngram-map-k", 8, 16),
    Worded(
        "llama-server ngram-mod 16/1-16",
        *("--spec-type", "ngram-mod", "--spec-ngram-mod-n-match", "16"),
        *("--spec-ngram-mod-n-min", "1", "--spec-ngram-mod-n-max", "16"),
    ),
    Seed(),
    SeedDrafts(),
)  # fmt: skip


def by_model(path: str) -> tuple[Contender, ...]:
    """Who drafts by this small model."""
    return (
        Drafts("llamafast draft-simple", draft_model="draft-simple", draft_model_path=path),
        Worded("llama-server draft-simple", "--spec-type", "draft-simple", "--model-draft", path),
    )


def rate(server: Server, vocab: Vocab, prompts: list[str], tokens: int, fields: dict[str, Any]) -> float:
    """Tokens a CPU second; each prompt is a stream. Raises SystemExit where a request fails."""
    asks = [[Ask(body={"prompt": prompt, "max_tokens": tokens, "temperature": 0} | fields)] for prompt in prompts]
    before = server.cpu_seconds()
    exchanges = load(asks, loopback(server.port), LIMIT_S).exchanges
    after = server.cpu_seconds()
    if failed := [exchange.error for exchange in exchanges if exchange.error]:
        raise SystemExit(f"a request failed: {failed[0]}")
    if before is None or after is None:
        raise SystemExit("CPU seconds are read from /proc")
    chunks = [[read_chunk(event) for _, event in one.events if event.startswith(b"data: {")] for one in exchanges]
    texts = ["".join(choice.said for chunk in each for choice in chunk.choices) for each in chunks]
    return sum(len(vocab.tokenize(text, add_special=False, parse_special=True)) for text in texts) / (after - before)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drafts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    every = [one.name for one in (*SERVERS, *by_model(""))]
    parser.add_argument("--servers", nargs="+", choices=every, help="all that are here")
    parser.add_argument("--draft-model", help="a tiny model's name, smollm2 or the path of a GGUF")
    options = parser.parse_args()
    small = () if options.draft_model is None else by_model(str(resolve_model(options.draft_model)[0]))
    model = str(resolve_model(options.model)[0])
    vocab = Vocab(Model(model, vocab_only=True))
    settings = SETTINGS | {"n_threads": options.threads, "n_threads_batch": options.threads}
    print(conditions())
    with ExitStack() as stack:
        running: dict[str, Server] = {}
        for one in (*SERVERS, *small):
            if options.servers is None or one.name in options.servers:
                try:
                    running[one.name] = stack.enter_context(one.serving(model, settings, None))
                except Unavailable as missing:
                    print(f"without {one.name}: {missing}")
        for work in options.work:
            for streams in options.streams:
                texts = Texts(streams)
                rates: dict[str, list[float]] = {name: [] for name in running}
                for k in range(options.pairs):
                    prompts = [asked(work, texts, i) for i in range(streams)]
                    names = list(running) if k % 2 else list(running)[::-1]
                    for name in names:
                        rates[name].append(rate(running[name], vocab, prompts, options.tokens, form_of(work)))
                first = next(iter(rates))
                print(f"\n{work}, {streams} streams; tokens a CPU second, and {first} ÷ each in the same round")
                print_table([
                    {"server": name, "tok/s": f"{median(each):.1f}",
                     f"{first} ÷ it": spread([a / b for a, b in zip(rates[first], each, strict=True)], ".2f")}
                    for name, each in rates.items()
                ])  # fmt: skip


if __name__ == "__main__":
    main()
