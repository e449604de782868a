"""The time a token's text takes from the engine's Event to the frame on the wire, parsed against plain.

    python -m benchmarks.micro.reply [--tokens N] [--rounds R]

Each case is one reply of N tokens of text, most of them inside reasoning, content or one argument. Printed: µs per
token for the first and the last tenth, and what that is above a chat that is not parsed. Medians over rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from benchmarks.workload import resolve_model
from llamafast._core.model import Model
from llamafast._core.vocab import Vocab
from llamafast.api.chat.frames import ChatFrames
from llamafast.api.chat.schema import ChatChunk, ChatRequest
from llamafast.api.logprobs import TokenNames
from llamafast.api.measured import Measured
from llamafast.bench.figures import median
from llamafast.chat.reply.deltas import PlainReply, ReplyParser
from llamafast.chat.reply.dialects.parser import DialectParser
from llamafast.chat.reply.dialects.tables import dialect_named
from llamafast.chat.reply.reader import Reply
from llamafast.chat.tools import read_tools
from llamafast.engine.generation import Generation
from llamafast.engine.types import Event

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "write",
            "parameters": {"type": "object", "properties": {"text": {"type": "string"}, "data": {"type": "array"}}},
        },
    }
]

# No token is named where no log probability is asked for.
VOCAB = Vocab(Model(str(resolve_model("tiny-llama")[0]), vocab_only=True))


def parser(name: str) -> Callable[[], ReplyParser]:
    return lambda: DialectParser(dialect_named(name), read_tools(TOOLS))


# what makes the parser, how the reply begins, the token that is repeated
CASES: dict[str, tuple[Callable[[], ReplyParser], list[str], str]] = {
    "plain": (PlainReply, [], " word"),
    "content, hermes": (parser("hermes"), [], " word"),
    "content full of beginnings of marks, hermes": (parser("hermes"), [], " <tool"),
    "reasoning, hermes": (parser("hermes"), ["<think>", "\n"], " word"),
    "a JSON string, hermes": (parser("hermes"), ["<tool_call>", '{"name": "write", "arguments": {"text": "'], " word"),
    "a JSON array, hermes": (parser("hermes"), ["<tool_call>", '{"name": "write", "arguments": {"data": ['], "1,"),
    "a string parameter, qwen-xml": (
        parser("qwen-xml"), ["<tool_call>\n", "<function=write>\n", "<parameter=text>\n"], " word",
    ),
    "an array parameter, qwen-xml": (
        parser("qwen-xml"), ["<tool_call>\n", "<function=write>\n", "<parameter=data>\n", "["], "1,",
    ),
    "arguments before the name, hermes": (parser("hermes"), ["<tool_call>", '{"arguments": {"text": "'], " word"),
    "analysis, harmony": (parser("harmony"), ["<|start|>assistant<|channel|>analysis<|message|>"], " word"),
    "a string, gemma-4": (parser("gemma-4"), ['<|tool_call>call:write{text:<|"|>'], " word"),
}  # fmt: skip


def seconds(new_parser: Callable[[], ReplyParser], opening: list[str], token: str, n_tokens: int) -> list[float]:
    """The time of each token."""
    request = ChatRequest(messages=[{}], tools=TOOLS)
    chunk = ChatChunk(id="chatcmpl-0", created=0, model="model", choices=[])
    measured = Measured(Generation(1, 0, lambda _: None, lambda _: None), request)
    frames = ChatFrames(chunk, [Reply(new_parser())], request, TokenNames(request, VOCAB), measured)
    for text in opening:
        frames.event(Event(0, text, 1))
    times = []
    for _ in range(n_tokens):
        event = Event(0, token, 1)
        start = time.perf_counter()
        frames.event(event)
        times.append(time.perf_counter() - start)
    return times


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tokens", type=int, default=8000)
    arguments.add_argument("--rounds", type=int, default=5)
    options = arguments.parse_args()
    tenth = options.tokens // 10
    plain = 0.0
    print(f"{'reply':<46} {'first tenth':>12} {'last tenth':>12} {'above plain':>12}   µs per token")
    for name, (new_parser, opening, token) in CASES.items():
        rounds = [seconds(new_parser, opening, token, options.tokens) for _ in range(options.rounds)]
        first = median(sum(times[:tenth]) / tenth for times in rounds) * 1e6
        last = median(sum(times[-tenth:]) / tenth for times in rounds) * 1e6
        plain = plain or last
        print(f"{name:<46} {first:>12.2f} {last:>12.2f} {last - plain:>12.2f}", flush=True)


if __name__ == "__main__":
    main()
