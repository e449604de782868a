"""Adapters beside llama-server: whether both say the same with them, and how fast each is with several groups at once.

    python -m benchmarks.adapters [--rounds N] [--bare]

SmolLM2-135M on one compute thread, three adapters of ranks 4, 16 and 8 (recipes/tiny_lora.py). Log probabilities of the
tokens that both chose, up to where they part; then 16 streams of three groups and of none, in tokens per second. With
--bare llamafast leaves all products to llama.cpp, as where GPUs compute, and what is compared has micro-batches of one
row and partitions of its own: what differs then is no rounding. llama-server is asked one after the other: of 16 at
once it does not say what it says alone. No prompt is cached: it would give one group what it has computed for another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.contenders import Contender, Llamafast, LlamaServer, seed_config
from benchmarks.media import answered
from benchmarks.report import conditions, print_table, spread
from benchmarks.server import Server
from benchmarks.workload import resolve_model
from llamafast.bench.ask import Ask
from recipes import tiny_lora

NAMES = ("lora-smollm2", "lora-smollm2-2", "lora-smollm2-3")
SETTINGS = {
    "n_ctx": 8192, "n_batch": 512, "n_ubatch": 512, "n_seq_max": 16, "n_threads": 1, "n_threads_batch": 1,
    "kv_unified": True,
}  # fmt: skip
# Nobody else's rows, nor where they lie in memory, change the last bits of a sum.
APART = SETTINGS | {"n_ctx": 16 * 1024, "n_ubatch": 1, "kv_unified": False}
Lora = tuple[tuple[int, float], ...]
# who has which
CHOICES: tuple[Lora, ...] = (((0, 1.0),), ((1, 0.5),), ((2, -1.0), (0, 0.25)), ())
QUESTIONS = ("What is a river?", "Name three birds.", "How does bread rise?", "Write a line about rain.")
TOKENS = 48
BARE = """
import sys
from llamafast.cli import main
from llamafast.engine import load
load.computes_bare = lambda model: True
sys.exit(main(["serve", sys.argv[1]]))
"""


class AdaptedLlamafast(Llamafast):
    """The first adapter is everybody's who does not choose."""

    def __init__(self, *, bare: bool) -> None:
        self._start = [sys.executable, "-c", BARE] if bare else []

    def command(
        self, model: str, settings: dict[str, Any], port: int, folder: Path, mmproj: Path | None = None
    ) -> list[str]:
        loras = [{"path": str(tiny_lora.build(name)), "name": name, "default": name == NAMES[0]} for name in NAMES]
        start = self._start or super().command(model, settings, port, folder, mmproj)[:-1]
        return [*start, seed_config(model, settings, port, folder, mmproj, loras=loras)]


class AdaptedLlamaServer(LlamaServer):
    def command(
        self, model: str, settings: dict[str, Any], port: int, folder: Path, mmproj: Path | None = None
    ) -> list[str]:
        scaled = ",".join(f"{tiny_lora.build(name)}:{1.0 if name == NAMES[0] else 0.0}" for name in NAMES)
        return [*super().command(model, settings, port, folder, mmproj), "--lora-scaled", scaled]


def asked(question: str, lora: Lora | None, *, ends: bool = True) -> Ask:
    """None: what the server gives to who does not choose. Unless it ``ends`` all tokens are generated, which changes
    llama-server's log probabilities."""
    chosen = {} if lora is None else {"lora": [{"id": id, "scale": dict(lora).get(id, 0.0)} for id in range(3)]}
    body = {
        "messages": [{"role": "user", "content": question}], "max_tokens": TOKENS, "temperature": 0, "logprobs": True,
        "top_logprobs": 5, "ignore_eos": not ends, "cache_prompt": False, **chosen,
    }  # fmt: skip
    return Ask(path="/v1/chat/completions", body=body)


def told(server: Server, asks: Sequence[Ask]) -> list[list[dict[str, Any]]]:
    """For each ask the log probabilities of its tokens, all asked at once."""
    whole = []
    for exchange in answered(server, *([ask] for ask in asks)):
        tokens: list[dict[str, Any]] = []
        for _, event in exchange.events:
            if event.startswith(b"data: {"):
                for choice in msgspec.json.decode(event[6:]).get("choices", ()):
                    tokens += ((choice.get("logprobs") or {}).get("content")) or []
        whole.append(tokens)
    return whole


def apart(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> tuple[float, int]:
    """How far log probabilities of the same tokens are, and how many tokens both chose."""
    farthest, n_same = 0.0, 0
    for a, b in zip(one, other, strict=False):
        known = {top["token"]: top["logprob"] for top in b["top_logprobs"]}
        farthest = max(
            [
                farthest,
                *(abs(top["logprob"] - known[top["token"]]) for top in a["top_logprobs"] if top["token"] in known),
            ]
        )
        if a["token"] != b["token"]:
            break
        n_same += 1
    return farthest, n_same


def compared(one: Server, other: Server) -> list[dict[str, str]]:
    rows = []
    cases: dict[str, list[list[Ask]]] = {
        "everybody's": [[asked(question, None)] for question in QUESTIONS],
        **{f"asked for {lora}": [[asked(question, lora)] for question in QUESTIONS] for lora in CHOICES},
        "16 at once": [[asked(question, lora) for question in QUESTIONS for lora in CHOICES]],
    }
    for name, rounds in cases.items():
        farthest, n_same, n_tokens = 0.0, 0, 0
        for asks in rounds:
            for ours, theirs in zip(told(one, asks), (told(other, [ask])[0] for ask in asks), strict=True):
                distance, n = apart(ours, theirs)
                farthest, n_same, n_tokens = max(farthest, distance), n_same + n, n_tokens + len(ours)
        rows.append({"who": name, "farthest": f"{farthest:.4f}", "same tokens": f"{n_same} of {n_tokens}"})
    return rows


def rate(server: Server, choices: Sequence[Lora], seed: int) -> float:
    """Tokens per second of 16 streams."""
    asks = [asked(f"{seed}: {QUESTIONS[k % 4]} ({k})", choices[k % len(choices)], ends=False) for k in range(16)]
    exchanges = answered(server, *([ask] for ask in asks))
    return 16 * TOKENS / (max(one.ended for one in exchanges) - min(one.sent for one in exchanges))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", action="store_true", help="llama.cpp's own products in llamafast, too")
    options = parser.parse_args()
    model = str(resolve_model("smollm2")[0])
    contenders: list[Contender] = [AdaptedLlamafast(bare=options.bare), AdaptedLlamaServer()]
    print(conditions(), *(contender.about() for contender in contenders), sep="\n")
    ours, theirs = contenders
    settings = APART if options.bare else SETTINGS
    with ours.serving(model, settings, None) as one, theirs.serving(model, settings, None) as other:
        print_table(compared(one, other))
    with ours.serving(model, SETTINGS, None) as one, theirs.serving(model, SETTINGS, None) as other:
        rows = []
        for name, choices in (("none", CHOICES[3:]), ("one group", CHOICES[:1]), ("three groups and none", CHOICES)):
            rates = [(rate(one, choices, 2 * k), rate(other, choices, 2 * k + 1)) for k in range(options.rounds)]
            rows.append({
                "16 streams": name, ours.name: spread([a for a, _ in rates], ".1f"),
                theirs.name: spread([b for _, b in rates], ".1f"), "÷": spread([a / b for a, b in rates], ".2f"),
            })  # fmt: skip
        print_table(rows)


if __name__ == "__main__":
    main()
