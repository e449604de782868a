"""Pictures beside text: what a second look costs, and what streams notice of a first one.

    python -m benchmarks.media [--only looks,burst,beside,text] [--pairs N] [--model smollm2] [--threads N]
        [--size WxH] [--tokens N] [--servers llama-server,seed]

``looks`` is the time to the first token behind a new picture, the same one again, and another question about it;
``burst`` eight requests at once about a new one; ``beside`` eight streams while one is looked at; ``text`` these
streams with a projector and without one, which only llamafast is asked for. The projector is as slow as a real one and
its weights are made up (recipes/tiny_mmproj.py). llama-server of the same llama.cpp source takes part where it was
built (``make llama-server``), and llama-cpp-python's example server where it is asked for: eight streams stand still
there for as long as a picture takes. Every figure is a ratio within one round, and told as soon as the round is over.
"""

from __future__ import annotations

import argparse
import base64
import io
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from PIL import Image

from benchmarks.contenders import CONTENDERS, Unavailable
from benchmarks.pinning import DEFAULT_PIN, bound_to, cores_of
from benchmarks.report import conditions, print_table, spread
from benchmarks.server import Server, serving
from benchmarks.workload import resolve_model
from llamafast.bench.address import loopback
from llamafast.bench.ask import Ask
from llamafast.bench.client import load
from llamafast.bench.figures import Exchange, percentile, read_chunk
from recipes import tiny_mmproj

# Wide enough for SmolLM2, and for the tiny models.
PROJECTOR, TINY_PROJECTOR = "mmproj-qwen3vl-576-large", "mmproj-qwen3vl-64-large"
LIMIT_S = 600
STREAMS, STREAM_TOKENS = 8, 320  # of a stream, longer than a picture takes: more with a tiny model
WITH, WITHOUT = "with a projector", "without"
# Who asks keeps off the thread that computes, as do the event loop and the process that encodes.
CLIENT = cores_of(DEFAULT_PIN)[1]
SETTINGS = {"n_ctx": 16384, "n_batch": 1024, "n_ubatch": 512, "n_seq_max": 16, "kv_unified": True}


def picture(size: tuple[int, int], seed: int) -> str:
    """A data URL of a JPEG like a photo's: no two seeds have the same."""
    noise = np.random.default_rng(seed).integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def looks(url: str, question: str = "What is it?", tokens: int = 4, **more: Any) -> Ask:
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    return chat(content, tokens, **more)


def chat(content: Any, tokens: int, **more: Any) -> Ask:
    body = {
        "messages": [{"role": "user", "content": content}], "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
    return Ask(path="/v1/chat/completions", body=body, **more)


def stream(i: int, tokens: int = STREAM_TOKENS) -> Ask:
    return chat(f"Tell story number {i} of a small town by the sea.", tokens)


def answered(server: Server, *scripts: list[Ask], timed: bool = False) -> list[Exchange]:
    exchanges = load(scripts, loopback(server.port), LIMIT_S, timed=timed).exchanges
    if failed := [exchange.error for exchange in exchanges if exchange.error]:
        raise SystemExit(f"a request failed: {failed[0]}")
    return exchanges


def texts(exchange: Exchange) -> list[float]:
    """When its pieces of text came."""
    chunks = [(at, read_chunk(event)) for at, event in exchange.events if event.startswith(b"data: {")]
    return [at for at, chunk in chunks if any(choice.said for choice in chunk.choices)]


def first_token(exchange: Exchange) -> float:
    return texts(exchange)[0] - exchange.sent


def gaps(exchanges: list[Exchange], since: float = 0, until: float = math.inf) -> list[float]:
    """Of those that were open in that time."""
    pairs = (pair for exchange in exchanges for pair in pairwise(texts(exchange)))
    return [b - a for a, b in pairs if b >= since and a <= until]


class Round:
    """One round's figures of one server, in seconds; ``seed`` gives it pictures of its own, streams have so many
    ``tokens``, ``fields`` are added to its requests."""

    def __init__(self, server: Server, size: tuple[int, int], seed: int, tokens: int, fields: dict[str, Any]) -> None:
        self.server, self.size, self.seed, self.tokens, self.fields = server, size, 1000 * seed, tokens, fields

    def answered(self, *scripts: list[Ask], timed: bool = False) -> list[Exchange]:
        whole = [[replace(ask, body=ask.body | self.fields) for ask in script] for script in scripts]
        return answered(self.server, *whole, timed=timed)

    def url(self, i: int) -> str:
        return picture(self.size, self.seed + i)

    def seconds(self, ask: Ask) -> float:
        (exchange,) = self.answered([ask])
        return first_token(exchange)

    def looks_again(self) -> dict[str, float]:
        first = self.seconds(looks(self.url(0)))
        second = self.seconds(looks(self.url(0)))
        other = self.seconds(looks(self.url(0), "Which colours do you see in it, and where?"))
        return {"first": first, "second": second, "other question": other}

    def burst(self) -> dict[str, float]:
        exchanges = self.answered(*([looks(self.url(1), f"Question {i}?")] for i in range(STREAMS)))
        began = min(exchange.sent for exchange in exchanges)
        return {"eight at once": max(exchange.ended for exchange in exchanges) - began}

    def beside(self) -> dict[str, float]:
        quiet = self.answered(*([stream(i, self.tokens)] for i in range(STREAMS)))
        busy = self.answered(
            *([stream(i, self.tokens)] for i in range(STREAMS)),
            [looks(self.url(2), at=0.6)],
            timed=True,
        )
        streams = [exchange for exchange in busy if "story" in str(exchange.ask.body["messages"])]
        (looked,) = [exchange for exchange in busy if exchange not in streams]
        # what the streams did while the picture was encoded and read
        until = texts(looked)[0]
        if max(exchange.ended for exchange in streams) < until:
            raise SystemExit("the streams ended before the picture was read: raise --tokens")
        during = [at for exchange in streams for at in texts(exchange) if looked.sent <= at <= until]
        ends = [at for exchange in streams for at in texts(exchange)]
        return {
            "quiet p99": percentile(gaps(quiet), 99),
            "beside p99": percentile(gaps(streams, looked.sent, until), 99),
            "beside worst": max(gaps(streams, looked.sent, until)),
            "looked": first_token(looked),
            "share": len(during) / max(1e-9, min(until, max(ends)) - looked.sent) / _rate(quiet),
        }


def text_only(server: Server) -> dict[str, float]:
    """Text streams: their tokens per second, and the CPU time of the server and of what it started."""
    before = server.cpu_seconds() or 0.0
    rate = _rate(answered(server, *([stream(i)] for i in range(STREAMS))))
    return {"rate": rate, "CPU": (server.cpu_seconds() or 0.0) - before}


def _rate(exchanges: list[Exchange]) -> float:
    times = [at for exchange in exchanges for at in texts(exchange)]
    return len(times) / (max(times) - min(times))


def ours(model: str, threads: int, projector: Path | None) -> Callable[[int], dict[str, object]]:
    section = {"path": model, "alias": "benchmark", "threads": threads, **SETTINGS}
    if projector is not None:
        section["mtmd"] = {"mmproj_path": str(projector)}
    return lambda port: {"server": {"port": port}, "model": section}


MEASURES: dict[str, Callable[[Round], dict[str, float]]] = {
    "looks": Round.looks_again, "burst": Round.burst, "beside": Round.beside,
}  # fmt: skip
TEXT = "text"


def chosen(names: str) -> list[str]:
    """What ``--only`` says."""
    if unknown := set(names.split(",")) - {*MEASURES, TEXT}:
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: none of {', '.join([*MEASURES, TEXT])}")
    return names.split(",")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.media", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", type=chosen, default=[*MEASURES, TEXT], help="what is measured, with commas")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--tokens", type=int, default=STREAM_TOKENS, help="of a stream beside the picture")
    parser.add_argument("--servers", default="llama-server", help="beside llamafast, with commas")
    options = parser.parse_args()
    print(conditions(), flush=True)
    measures = [MEASURES[name] for name in options.only if name != TEXT]
    if measures:
        told(beside_others(options, measures))
    if TEXT in options.only:
        told(with_and_without(options))


def beside_others(
    options: argparse.Namespace, measures: list[Callable[[Round], dict[str, float]]]
) -> Iterator[dict[str, dict[str, float]]]:
    """Of each round what every server came to."""
    width, height = map(int, options.size.split("x"))
    model, projector = parts(options)
    settings = SETTINGS | {"n_threads": options.threads, "n_threads_batch": options.threads}
    with ExitStack() as stack:
        servers = {"llamafast": stack.enter_context(serving(ours(model, options.threads, projector), None))}
        for name in filter(None, options.servers.split(",")):
            try:
                servers[name] = stack.enter_context(CONTENDERS[name].serving(model, settings, None, projector))
            except Unavailable as error:
                print(error)
        stack.enter_context(bound_to(CLIENT))
        for pair in range(options.pairs):
            rounds: dict[str, dict[str, float]] = {}
            for name, server in servers.items():
                one = Round(server, (width, height), pair + 1, options.tokens, CONTENDERS[name].fields(model))
                rounds[name] = {key: figure for measure in measures for key, figure in measure(one).items()}
            yield rounds


def with_and_without(options: argparse.Namespace) -> Iterator[dict[str, dict[str, float]]]:
    """Text on a server with a projector and on one without, the first of each round in turn."""
    model, projector = parts(options)
    with ExitStack() as stack:
        servers = {
            name: stack.enter_context(serving(ours(model, options.threads, path), None))
            for name, path in ((WITH, projector), (WITHOUT, None))
        }
        stack.enter_context(bound_to(CLIENT))
        for server in servers.values():
            text_only(server)
        for pair in range(options.pairs):
            order = list(servers.items())
            yield {name: text_only(server) for name, server in (order if pair % 2 else order[::-1])}


def parts(options: argparse.Namespace) -> tuple[str, Path]:
    """The model and its projector."""
    model, _ = resolve_model(options.model)
    return str(model), tiny_mmproj.build(PROJECTOR if options.model == "smollm2" else TINY_PROJECTOR)


def told(rounds: Iterable[dict[str, dict[str, float]]]) -> None:
    """Print the ratios of each round when it is over, and a table of all in the end."""
    figures: dict[str, list[float]] = {}
    quotients: dict[str, list[float]] = {}
    for n, found in enumerate(rounds, 1):
        for name, of_server in found.items():
            for key, figure in of_server.items():
                figures.setdefault(f"{name}: {key}", []).append(figure)
        one = ratios(found)
        for what, quotient in one.items():
            quotients.setdefault(what, []).append(quotient)
        print(f"{n}: " + ", ".join(f"{what} {quotient:.3f}" for what, quotient in one.items()), flush=True)
    print_table([
        *({"what": what, "median": spread(values, ".4f")} for what, values in figures.items()),
        *({"what": what, "median": f"{spread(values, '.3f')}{interval(values)}"} for what, values in quotients.items()),
    ])  # fmt: skip


def ratios(found: dict[str, dict[str, float]]) -> dict[str, float]:
    """Of one round."""
    if WITH in found:
        with_it, without = found[WITH], found[WITHOUT]
        rates = {"text with a projector ÷ without": with_it["rate"] / without["rate"]}
        # where others use the machine too: what a token costs, and not how long it waits
        return rates | ({"by CPU time": without["CPU"] / with_it["CPU"]} if with_it["CPU"] else {})
    mine = found["llamafast"]
    quotients = {
        f"{of} ÷ {by}": mine[of] / mine[by]
        for of, by in (("second", "first"), ("eight at once", "first"), ("beside p99", "quiet p99"))
        if of in mine and by in mine
    }
    for name in found.keys() - {"llamafast"}:
        quotients |= {
            f"{key} ÷ {name}'s": mine[key] / found[name][key]
            for key in ("first", "second", "other question", "beside worst")
            if key in mine
        }
    return quotients


def interval(values: list[float]) -> str:
    """In which the true median is with a chance of 95 %, by the order of the values; nothing where they are too few."""
    n, chance, k = len(values), 0.0, 0
    while (chance := chance + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    if not k:
        return ""
    ordered = sorted(values)
    return f", 95 %: {ordered[k - 1]:.3f}-{ordered[n - k]:.3f}"


if __name__ == "__main__":
    main()
