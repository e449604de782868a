"""What streams of text notice of hundreds of media that nobody should send: cut, lying, bloated, of the wrong kind.

    python -m benchmarks.media_strangers [--rounds N] [--media N] [--model smollm2] [--threads N]

They are asked about one after the other, as fast as they are refused or answered; a round has quiet streams too.
"""

from __future__ import annotations

import argparse
import base64
from collections import Counter
from itertools import pairwise

from benchmarks.ask import Ask
from benchmarks.client import load
from benchmarks.figures import percentile
from benchmarks.hostile_media import Hostile, hostile_media
from benchmarks.media import LIMIT_S, STREAMS, answered, chat, gaps, ours, stream, texts
from benchmarks.report import conditions, print_table, spread
from benchmarks.server import Server, serving
from benchmarks.workload import resolve_model
from recipes import tiny_mmproj

PROJECTOR = "mmproj-gemma3-ultravox-576"
# Of each stream, so that they last longer than the media.
ANSWERS = 12
MEDIA_TOKENS = 2


def asks_about(one: Hostile) -> Ask:
    data = base64.b64encode(one.data).decode()
    if one.kind == "audio":
        return chat([{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}], MEDIA_TOKENS)
    return chat([{"type": "image_url", "image_url": {"url": f"data:image/x;base64,{data}"}}], MEDIA_TOKENS)


def beside(server: Server, media: list[Ask], seed: int) -> tuple[list[float], Counter[str]]:
    """Gaps between the tokens of streams until the last of the media was answered, and how they were."""
    scripts = [[stream(1000 * seed + ANSWERS * i + k) for k in range(ANSWERS)] for i in range(STREAMS)]
    exchanges = load([*scripts, media], server.port, LIMIT_S).exchanges
    asked = [exchange for exchange in exchanges if exchange.ask.body["max_tokens"] == MEDIA_TOKENS]
    until = max(exchange.ended for exchange in asked)
    streams = [exchange for exchange in exchanges if exchange.ask.body["max_tokens"] != MEDIA_TOKENS]
    if failed := [exchange.error for exchange in streams if exchange.error]:
        raise SystemExit(f"a stream failed: {failed[0]}")
    if max(exchange.ended for exchange in streams) < until:
        raise SystemExit("the streams ended before the media: raise ANSWERS")
    pairs = (pair for exchange in streams for pair in pairwise(texts(exchange)))
    return [b - a for a, b in pairs if b <= until], Counter(
        (one.error or "answered").partition(":")[0] for one in asked
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.media_strangers", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--media", type=int, default=300)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    model, _ = resolve_model(options.model)
    media = list(map(asks_about, hostile_media(options.media)))
    print(conditions())
    figures: dict[str, list[float]] = {}
    with serving(ours(str(model), options.threads, tiny_mmproj.build(PROJECTOR)), None) as server:
        for one in range(1, options.rounds + 1):
            quiet = gaps(answered(server, *([stream(1000 * one + i)] for i in range(STREAMS))))
            busy, answers = beside(server, media, one)
            print(f"{dict(answers)}, {len(busy)} gaps", flush=True)
            for name, value in {
                "quiet p99": percentile(quiet, 99),
                "beside p99": percentile(busy, 99),
                "beside worst": max(busy),
                "p99 beside ÷ quiet": percentile(busy, 99) / percentile(quiet, 99),
            }.items():
                figures.setdefault(name, []).append(value)
    print_table([{"what": name, "median": spread(values, ".4f")} for name, values in figures.items()])


if __name__ == "__main__":
    main()
