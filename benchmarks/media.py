"""Pictures beside text: what a second look costs, and what streams notice of a first one.

    python -m benchmarks.media [--pairs N] [--model smollm2] [--threads N] [--size WxH] [--servers llama-server,seed]

The projector is as slow as a real one and its weights are made up (recipes/tiny_mmproj.py). llama-server of the same
llama.cpp source takes part where it was built (``make llama-server``), and llama-cpp-python's example server where it
is asked for: eight streams stand still there for as long as a picture takes. Every figure is a ratio within one round.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from PIL import Image

from benchmarks.ask import Ask
from benchmarks.client import load
from benchmarks.contenders import CONTENDERS, Unavailable
from benchmarks.figures import Exchange, median, percentile, read_chunk
from benchmarks.report import conditions, print_table, spread
from benchmarks.server import Server, serving
from benchmarks.workload import resolve_model
from recipes import tiny_mmproj

# Wide enough for SmolLM2, and for the tiny models.
PROJECTOR, TINY_PROJECTOR = "mmproj-qwen3vl-576-large", "mmproj-qwen3vl-64-large"
LIMIT_S = 600
STREAMS, STREAM_TOKENS = 8, 160
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


def stream(i: int) -> Ask:
    return chat(f"Tell story number {i} of a small town by the sea.", STREAM_TOKENS)


def answered(server: Server, *scripts: list[Ask], timed: bool = False) -> list[Exchange]:
    exchanges = load(scripts, server.port, LIMIT_S, timed=timed).exchanges
    if failed := [exchange.error for exchange in exchanges if exchange.error]:
        raise SystemExit(f"a request failed: {failed[0]}")
    return exchanges


def texts(exchange: Exchange) -> list[float]:
    """When its pieces of text came."""
    chunks = [(at, read_chunk(event)) for at, event in exchange.events if event.startswith(b"data: {")]
    return [at for at, chunk in chunks if any(choice.said for choice in chunk.choices)]


def first_token(exchange: Exchange) -> float:
    return texts(exchange)[0] - exchange.sent


def gaps(exchanges: list[Exchange]) -> list[float]:
    return [b - a for exchange in exchanges for a, b in zip(texts(exchange), texts(exchange)[1:], strict=False)]


class Round:
    """One round's figures of one server, in seconds; ``seed`` gives it pictures of its own, ``fields`` are added to
    its requests."""

    def __init__(self, server: Server, size: tuple[int, int], seed: int, fields: dict[str, Any]) -> None:
        self.server, self.size, self.seed, self.fields = server, size, 1000 * seed, fields

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
        quiet = self.answered(*([stream(i)] for i in range(STREAMS)))
        busy = self.answered(
            *([stream(i)] for i in range(STREAMS)),
            [looks(self.url(2), at=0.6)],
            timed=True,
        )
        streams = [exchange for exchange in busy if "story" in str(exchange.ask.body["messages"])]
        (looked,) = [exchange for exchange in busy if exchange not in streams]
        # what the streams did while the picture was encoded and read
        until = texts(looked)[0]
        during = [at for exchange in streams for at in texts(exchange) if looked.sent <= at <= until]
        ends = [at for exchange in streams for at in texts(exchange)]
        return {
            "quiet p99": percentile(gaps(quiet), 99),
            "beside p99": percentile(gaps(streams), 99),
            "beside worst": max(gaps(streams)),
            "looked": first_token(looked),
            "share": len(during) / max(1e-9, min(until, max(ends)) - looked.sent) / _rate(quiet),
        }


def rate(server: Server) -> float:
    """Tokens per second of text streams, the better of some runs."""
    return max(_rate(answered(server, *([stream(i)] for i in range(STREAMS)))) for _ in range(3))


def _rate(exchanges: list[Exchange]) -> float:
    times = [at for exchange in exchanges for at in texts(exchange)]
    return len(times) / (max(times) - min(times))


def ours(model: str, threads: int, projector: Path | None) -> Callable[[int], dict[str, object]]:
    section = {"path": model, "alias": "benchmark", "threads": threads, **SETTINGS}
    if projector is not None:
        section["mtmd"] = {"mmproj_path": str(projector)}
    return lambda port: {"server": {"port": port}, "model": section}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.media", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--servers", default="llama-server", help="beside llamafast, with commas")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    model, _ = resolve_model(options.model)
    projector = tiny_mmproj.build(PROJECTOR if options.model == "smollm2" else TINY_PROJECTOR)
    settings = SETTINGS | {"n_threads": options.threads, "n_threads_batch": options.threads}
    print(conditions())
    rounds: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        servers = {
            "llamafast": stack.enter_context(serving(ours(str(model), options.threads, projector), None)),
            "text only": stack.enter_context(serving(ours(str(model), options.threads, None), None)),
        }
        for name in filter(None, options.servers.split(",")):
            try:
                servers[name] = stack.enter_context(CONTENDERS[name].serving(str(model), settings, None, projector))
            except Unavailable as error:
                print(error)
        text_only = servers.pop("text only")
        for pair in range(options.pairs):
            # one after the other, before either has seen a picture in this round
            both = [(name, rate(server)) for name, server in (("with", servers["llamafast"]), ("without", text_only))]
            rounds.setdefault("text", []).append(dict(both if pair % 2 else both[::-1]))
            for name, server in servers.items():
                one = Round(server, (width, height), pair + 1, CONTENDERS[name].fields(str(model)))
                rounds.setdefault(name, []).append(one.looks_again() | one.burst() | one.beside())
    print_table(list(rows(rounds)))


def rows(rounds: dict[str, list[dict[str, float]]]) -> Iterator[dict[str, str]]:
    for name, found in rounds.items():
        for key in found[0]:
            yield {"what": f"{name}: {key}", "median": spread([one[key] for one in found], ".4f")}
    mine = rounds["llamafast"]
    ratios = {
        "second look ÷ first": [one["second"] / one["first"] for one in mine],
        "eight at once ÷ one": [one["eight at once"] / one["first"] for one in mine],
        "p99 beside ÷ quiet": [one["beside p99"] / one["quiet p99"] for one in mine],
        "text with mtmd ÷ without": [one["with"] / one["without"] for one in rounds["text"]],
    }
    for name in CONTENDERS.keys() & rounds.keys() - {"llamafast"}:
        pairs = list(zip(mine, rounds[name], strict=True))
        for what, key in {
            "first look": "first", "second look": "second", "other question": "other question",
            "worst gap": "beside worst",
        }.items():  # fmt: skip
            ratios[f"{what} ÷ {name}'s"] = [one[key] / other[key] for one, other in pairs]
    for what, values in ratios.items():
        yield {"what": what, "median": f"{median(values):.3f} {spread(values, '.3f')}"}


if __name__ == "__main__":
    main()
