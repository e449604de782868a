"""Constrained against free requests of the same length, in pairs: ``python -m benchmarks.micro.constraints``.

Both run to ``max_tokens``: the grammar allows an array that need not end, the free requests ignore the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

from benchmarks.server import serving
from benchmarks.workload import Workload, resolve_model

SCHEMA = {
    "type": "array",
    "minItems": 1000,
    "items": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "count": {"type": "integer"}, "kind": {"enum": ["a", "b"]}},
        "required": ["name", "count", "kind"],
        "additionalProperties": False,
    },
}
FREE = {"ignore_eos": True}
CONSTRAINED = {"guided_json": SCHEMA}


def rate(port: int, work: Workload, fields: dict[str, object], run: int) -> float:
    """Tokens per second of ``work.streams`` requests at once."""

    def one(stream: int) -> int:
        asked = {"prompt": work.prompt(run, stream, 0), "max_tokens": work.tokens, "temperature": 1, "seed": run}
        body = json.dumps(asked | fields).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)["usage"]["completion_tokens"]

    start = perf_counter()
    with ThreadPoolExecutor(work.streams) as pool:
        tokens = sum(pool.map(one, range(work.streams)))
    if tokens != work.streams * work.tokens:
        raise RuntimeError(f"{tokens} tokens instead of {work.streams * work.tokens}")
    return tokens / (perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    model, _ = resolve_model(arguments.model)
    work = Workload(
        model=str(model), streams=arguments.streams, requests=1, prompt_tokens=32, tokens=arguments.tokens,
        sampling="greedy", threads=1, partitioned=False,
    )  # fmt: skip
    with serving(work.server_config, None) as server:
        rate(server.port, work, CONSTRAINED, 0)
        ratios = []
        for pair in range(1, arguments.pairs + 1):
            free, constrained = (
                rate(server.port, work, fields, 2 * pair + k) for k, fields in enumerate((FREE, CONSTRAINED))
            )
            ratios.append(constrained / free)
            print(f"free {free:.0f} tok/s  constrained {constrained:.0f} tok/s  ratio {ratios[-1]:.3f}", flush=True)
    print(f"median {statistics.median(ratios):.3f}  range {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
