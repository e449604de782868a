"""Pictures beside text: what a second look costs, and what streams notice of a first one.

    python -m benchmarks.media [--pairs N] [--model smollm2] [--threads N] [--size WxH]

The projector is as slow as a real one and its weights are made up (recipes/tiny_mmproj.py). llama-server of the same
llama.cpp source takes part where it was built (``make llama-server``). Every figure is a ratio within one round.
"""

from __future__ import annotations

import argparse
import base64
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.ask import Ask
from benchmarks.client import load
from benchmarks.contenders import LlamaServer, Unavailable
from benchmarks.figures import Exchange, median, percentile
from benchmarks.report import conditions, print_table, spread
from benchmarks.server import Server, free_port, serving, started
from benchmarks.workload import resolve_model
from recipes import tiny_mmproj

PROJECTOR = "mmproj-qwen3vl-576-large"
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
    return [at for at, event in exchange.events if b'"content":"' in event and b'"content":""' not in event]


def first_token(exchange: Exchange) -> float:
    return texts(exchange)[0] - exchange.sent


def gaps(exchanges: list[Exchange]) -> list[float]:
    return [b - a for exchange in exchanges for a, b in zip(texts(exchange), texts(exchange)[1:], strict=False)]


class Round:
    """One round's figures of one server, in seconds; ``seed`` gives it pictures of its own."""

    def __init__(self, server: Server, size: tuple[int, int], seed: int) -> None:
        self.server, self.size, self.seed = server, size, 1000 * seed

    def url(self, i: int) -> str:
        return picture(self.size, self.seed + i)

    def seconds(self, ask: Ask) -> float:
        (exchange,) = answered(self.server, [ask])
        return first_token(exchange)

    def looks_again(self) -> dict[str, float]:
        first = self.seconds(looks(self.url(0)))
        second = self.seconds(looks(self.url(0)))
        other = self.seconds(looks(self.url(0), "Which colours do you see in it, and where?"))
        return {"first": first, "second": second, "other question": other}

    def burst(self) -> dict[str, float]:
        exchanges = answered(self.server, *([looks(self.url(1), f"Question {i}?")] for i in range(STREAMS)))
        began = min(exchange.sent for exchange in exchanges)
        return {"eight at once": max(exchange.ended for exchange in exchanges) - began}

    def beside(self) -> dict[str, float]:
        quiet = answered(self.server, *([stream(i)] for i in range(STREAMS)))
        busy = answered(
            self.server,
            *([Ask(**_fields(stream(i), at=0.0))] for i in range(STREAMS)),
            [Ask(**_fields(looks(self.url(2)), at=0.6))],
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


def _fields(ask: Ask, **more: Any) -> dict[str, Any]:
    return {name: getattr(ask, name) for name in Ask.__struct_fields__} | more


@contextmanager
def llama_server(model: str, projector: Path, threads: int) -> Iterator[Server]:
    settings = SETTINGS | {"n_threads": threads, "n_threads_batch": threads}
    with ExitStack() as stack:
        folder, port = Path(stack.enter_context(tempfile.TemporaryDirectory())), free_port()
        contender = LlamaServer()
        command = [*contender.command(model, settings, port, folder), "--mmproj", str(projector)]
        yield stack.enter_context(started(command, port, contender.health, folder, None, {}))


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
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    model, _ = resolve_model(options.model)
    projector = tiny_mmproj.build(PROJECTOR)
    print(conditions())
    rounds: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        servers = {
            "llamafast": stack.enter_context(serving(ours(str(model), options.threads, projector), None)),
            "text only": stack.enter_context(serving(ours(str(model), options.threads, None), None)),
        }
        try:
            servers["llama-server"] = stack.enter_context(llama_server(str(model), projector, options.threads))
        except Unavailable as error:
            print(error)
        text_only = servers.pop("text only")
        for pair in range(options.pairs):
            # one after the other, before either has seen a picture in this round
            both = [(name, rate(server)) for name, server in (("with", servers["llamafast"]), ("without", text_only))]
            rounds.setdefault("text", []).append(dict(both if pair % 2 else both[::-1]))
            for name, server in servers.items():
                one = Round(server, (width, height), pair + 1)
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
    for theirs in [rounds["llama-server"]] if "llama-server" in rounds else []:
        pairs = list(zip(mine, theirs, strict=True))
        ratios |= {
            "first look ÷ llama-server's": [one["first"] / other["first"] for one, other in pairs],
            "second look ÷ llama-server's": [one["second"] / other["second"] for one, other in pairs],
            "other question ÷ llama-server's": [
                one["other question"] / other["other question"] for one, other in pairs
            ],
            "worst gap ÷ llama-server's": [one["beside worst"] / other["beside worst"] for one, other in pairs],
        }
    for what, values in ratios.items():
        yield {"what": what, "median": f"{median(values):.3f} {spread(values, '.3f')}"}


if __name__ == "__main__":
    main()
