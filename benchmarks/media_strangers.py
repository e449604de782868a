"""What streams of text notice of hundreds of media that nobody should send: cut, lying, bloated, of the wrong kind.

    python -m benchmarks.media_strangers [--rounds N] [--media N] [--model smollm2] [--threads N]

They are asked about one after the other, as fast as they are refused or answered. Each round has such streams without
them, too: one that ends is followed by the next, whose prompt the others notice in any case.
"""

from __future__ import annotations

import argparse
import base64
from collections import Counter

from benchmarks.hostile_media import Hostile, hostile_media
from benchmarks.media import CLIENT, LIMIT_S, STREAMS, answered, chat, gaps, ours, stream
from benchmarks.pinning import bound_to
from benchmarks.report import conditions, print_table, spread
from benchmarks.server import Server, serving
from benchmarks.workload import resolve_model
from llamafast.bench.address import loopback
from llamafast.bench.ask import Ask
from llamafast.bench.client import load
from llamafast.bench.figures import percentile
from recipes import tiny_mmproj

PROJECTOR = "mmproj-gemma3-ultravox-576"
# Of each stream, so that they last longer than the media; and about as many as come while these are asked about.
ANSWERS, QUIET_ANSWERS = 12, 4
MEDIA_TOKENS = 2


def asks_about(one: Hostile) -> Ask:
    data = base64.b64encode(one.data).decode()
    if one.kind == "audio":
        return chat([{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}], MEDIA_TOKENS)
    return chat([{"type": "image_url", "image_url": {"url": f"data:image/x;base64,{data}"}}], MEDIA_TOKENS)


def streams_of(seed: int, answers: int) -> list[list[Ask]]:
    return [[stream(1000 * seed + ANSWERS * i + k) for k in range(answers)] for i in range(STREAMS)]


def beside(server: Server, media: list[Ask], seed: int) -> tuple[list[float], Counter[str]]:
    """Gaps between the tokens of streams until the last of the media was answered, and how they were."""
    exchanges = load([*streams_of(seed, ANSWERS), media], loopback(server.port), LIMIT_S).exchanges
    asked = [exchange for exchange in exchanges if exchange.ask.body["max_tokens"] == MEDIA_TOKENS]
    until = max(exchange.ended for exchange in asked)
    streams = [exchange for exchange in exchanges if exchange.ask.body["max_tokens"] != MEDIA_TOKENS]
    if failed := [exchange.error for exchange in streams if exchange.error]:
        raise SystemExit(f"a stream failed: {failed[0]}")
    if max(exchange.ended for exchange in streams) < until:
        raise SystemExit("the streams ended before the media: raise ANSWERS")
    return gaps(streams, until=until), Counter((one.error or "answered").partition(":")[0] for one in asked)


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
    with serving(ours(str(model), options.threads, tiny_mmproj.build(PROJECTOR)), None) as server, bound_to(CLIENT):
        for one in range(1, options.rounds + 1):
            quiet = gaps(answered(server, *streams_of(2 * one, QUIET_ANSWERS)))
            busy, answers = beside(server, media, 2 * one + 1)
            print(f"{dict(answers)}, {len(busy)} gaps, {len(quiet)} quiet ones", flush=True)
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
