"""What constraints cost, in pairs: ``python -m benchmarks.micro.constraints [--beside masks|ambiguous|compiling]``.

Constrained against free requests of the same length, in useful characters a second: those of the text, but of JSON not
the white space between its tokens, which tells nobody anything. Both run to ``max_tokens``: the grammar allows an array
that need not end, the free requests ignore the end. With ``--beside`` the p99 gap between tokens of free streams,
beside a request whose grammar is pathological against without one.
"""

from __future__ import annotations

import argparse
import json
import re
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any, NamedTuple

from msgspec.structs import replace

from benchmarks.server import serving
from benchmarks.workload import Workload, resolve_model
from llamafast.bench.address import loopback
from llamafast.bench.ask import Ask
from llamafast.bench.client import load
from llamafast.bench.figures import median, summarize

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
FREE: dict[str, object] = {"ignore_eos": True}
CONSTRAINED: dict[str, object] = {"guided_json": SCHEMA}
LIMIT_SECONDS = 120
# A string of JSON, or the beginning of one.
STRING = re.compile(r'("(?:[^"\\]|\\.)*(?:"|\\?\Z))', re.DOTALL)
# Pathological requests at once.
OTHERS = 4

# A mask of these branches takes milliseconds.
BRANCHES = [
    {"type": "object", "properties": {f"k{i}": {"enum": [k, i]} for i in range(8)}, "minProperties": 8}
    for k in range(120)
]
# Compiling this has no end.
ENDLESS = {"allOf": [{"type": "string", "pattern": f"x.{{{i}}}y"} for i in range(1, 30)]}
# By name: the fields of the requests that are sent at once, given the number of the run.
PATHOLOGICAL: dict[str, Callable[[int], list[dict[str, Any]]]] = {
    "masks": lambda run: [{"guided_json": {"type": "array", "items": {"anyOf": BRANCHES}, "minItems": 1000}}],
    "ambiguous": lambda run: [{"grammar": 'start: e\ne: e e | e "+" e | /[a-zA-Z ,.]/'}],
    "compiling": lambda run: [{"guided_json": {**ENDLESS, "$comment": f"{run}/{k}"}} for k in range(OTHERS)],
}


class Rate(NamedTuple):
    """Of ``work.streams`` requests at once, per second."""

    tokens: float
    useful: float


def useful(text: str) -> int:
    """The characters of JSON that are no white space between its tokens; the text may break off anywhere."""
    return len("".join(part if i % 2 else "".join(part.split()) for i, part in enumerate(STRING.split(text))))


def rate(port: int, work: Workload, fields: dict[str, object], run: int) -> Rate:
    def one(stream: int) -> tuple[int, int]:
        asked = {"prompt": work.prompt(run, stream, 0), "max_tokens": work.tokens, "temperature": 1, "seed": run}
        body = json.dumps(asked | fields).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as reply:
            answer = json.load(reply)
        text = answer["choices"][0]["text"]
        return answer["usage"]["completion_tokens"], useful(text) if fields is CONSTRAINED else len(text)

    start = perf_counter()
    with ThreadPoolExecutor(work.streams) as pool:
        tokens, characters = map(sum, zip(*pool.map(one, range(work.streams)), strict=True))
    seconds = perf_counter() - start
    if tokens != work.streams * work.tokens:
        raise RuntimeError(f"{tokens} tokens instead of {work.streams * work.tokens}")
    return Rate(tokens / seconds, characters / seconds)


def gap(port: int, work: Workload, beside: list[dict[str, Any]], run: int) -> float:
    """The p99 gap of free streams, in seconds, while others send requests with the fields ``beside``."""
    prompts = [work.prompt(run, work.streams + k, 0) for k in range(len(beside))]
    others = [
        [Ask(body={"prompt": prompt, "max_tokens": work.tokens, "temperature": 1, **fields}, measured=False)]
        for prompt, fields in zip(prompts, beside, strict=True)
    ]
    done = load([*work.asks(run), *others], loopback(port), LIMIT_SECONDS)
    if failed := [exchange.error for exchange in done.exchanges if exchange.ask.measured and exchange.error]:
        raise RuntimeError(failed[0])
    return summarize(done, None).itl_p99


def compare_rates(port: int, work: Workload, pairs: int) -> list[float]:
    rate(port, work, CONSTRAINED, 0)
    ratios = []
    for pair in range(1, pairs + 1):
        free, constrained = (rate(port, work, fields, 2 * pair + k) for k, fields in enumerate((FREE, CONSTRAINED)))
        ratios.append(constrained.useful / free.useful)
        sides = [
            f"{name} {one.useful:.0f} ({one.tokens:.0f} tok/s)" for name, one in (("free", free), ("JSON", constrained))
        ]
        print(f"useful characters/s: {'  '.join(sides)}  ratio {ratios[-1]:.3f}", flush=True)
    return ratios


def compare_gaps(port: int, work: Workload, pairs: int, name: str) -> list[float]:
    fields = PATHOLOGICAL[name]
    gap(port, work, fields(0), 0)
    ratios = []
    for pair in range(1, pairs + 1):
        alone = gap(port, work, [], 2 * pair)
        beside = gap(port, work, fields(pair), 2 * pair + 1)
        ratios.append(beside / alone)
        print(f"p99 gap {1e3 * alone:.2f} ms  beside {1e3 * beside:.2f} ms  ratio {ratios[-1]:.3f}", flush=True)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--beside", choices=PATHOLOGICAL)
    arguments = parser.parse_args()
    model, _ = resolve_model(arguments.model)
    work = Workload(
        model=str(model), streams=arguments.streams, requests=1, prompt_tokens=32,
        tokens=arguments.tokens, sampling="greedy", threads=1, partitioned=False,
    )  # fmt: skip
    with serving(replace(work, streams=work.streams + OTHERS).server_config, None) as server:
        if arguments.beside:
            ratios = compare_gaps(server.port, work, arguments.pairs, arguments.beside)
        else:
            ratios = compare_rates(server.port, work, arguments.pairs)
    print(f"median {median(ratios):.3f}  range {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
