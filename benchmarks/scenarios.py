"""What the servers are compared on. Every scenario gives all of them the same requests."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import accumulate

import msgspec
from msgspec import Struct

from benchmarks import embedding_work, raw
from benchmarks.embedding_work import EmbeddingWork, embedding_model
from benchmarks.workload import PROMPT_IDS, SAMPLING_FIELDS, Workload, resolve_model
from llamafast.bench.ask import Ask

Scripts = list[list[Ask]]
GREEDY = SAMPLING_FIELDS["greedy"]
WORDS = ["the", "of", "to", "in", "is", "you", "that", "he", "was", "for", "on", "are", "with", "as", "his", "they"]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Scenario(Struct, frozen=True, kw_only=True):
    """``size`` gives the context; ``raw_rate`` lets the raw loop do the same work and says its tokens per second.
    ``scripts`` are the requests of a run, a list per client; ``timed`` ones are sent at their own times (an open
    loop)."""

    name: str
    about: str
    size: Workload | EmbeddingWork
    scripts: Callable[[int], Scripts]
    raw_rate: Callable[[], float] | None = None
    timed: bool = False

    @property
    def n_requests(self) -> int:
        return sum(map(len, self.scripts(0)))


def sized(model: str, streams: int, prompt_tokens: int, tokens: int, **more: object) -> Workload:
    path, _ = resolve_model(model)
    settings = {"requests": 1, "sampling": "greedy", "threads": 1, "partitioned": False, **more}
    return Workload(model=str(path), streams=streams, prompt_tokens=prompt_tokens, tokens=tokens, **settings)  # type: ignore[arg-type]


def completion(ids: list[int], tokens: int, **more: object) -> Ask:
    """A greedy completion of exactly ``tokens`` tokens."""
    body = {"prompt": ids, "max_tokens": tokens, "ignore_eos": True, **GREEDY}
    return msgspec.structs.replace(Ask(body=body, prompt_tokens=len(ids), tokens=tokens), **more)


def draw(*key: object) -> random.Random:
    return random.Random("/".join(map(str, key)))


def ids(rng: random.Random, n: int) -> list[int]:
    return rng.choices(PROMPT_IDS, k=n)


def streams(model: str, n: int, requests: int, *, prompt: int = 32, tokens: int = 128, top_p: bool = False) -> Scenario:
    """``n`` clients, one request after another."""
    size = sized(model, n, prompt, tokens, requests=requests, sampling="top-p" if top_p else "greedy")
    return Scenario(
        name=f"{model} {'top-p ' if top_p else ''}x{n}",
        about=f"{n} streams, {requests} requests each of {prompt}+{tokens} tokens",
        size=size,
        scripts=size.asks,
        raw_rate=lambda: raw.run(size).output_rate(size),
    )


def embeddings(model: str, work: EmbeddingWork) -> Scenario:
    """Clients that embed; the tokens of an answer are those that were embedded, its TTFT is its whole latency."""
    return Scenario(
        name=f"{model} embeddings {work.inputs}x{work.tokens} x{work.clients}",
        about=f"{work.clients} clients, {work.requests} requests each of {work.inputs} texts with {work.tokens} tokens",
        size=work,
        scripts=work.asks,
        raw_rate=lambda: work.all_tokens / embedding_work.run(work),
    )


def minilm(clients: int, requests: int, inputs: int, tokens: int) -> Scenario:
    path = str(embedding_model("minilm"))
    return embeddings(
        "minilm", EmbeddingWork(model=path, clients=clients, requests=requests, inputs=inputs, tokens=tokens)
    )


def chat_shaped(model: str, n: int, requests: int, longest: int) -> Scenario:
    """Lengths as chats have them: log-normal, most short, some long."""

    def length(rng: random.Random, median: float) -> int:
        return max(2, min(longest, round(rng.lognormvariate(0, 1) * median)))

    def scripts(run: int) -> Scripts:
        rng = draw("chat", run)
        return [
            [completion(ids(rng, length(rng, longest / 6)), length(rng, longest / 6)) for _ in range(requests)]
            for _ in range(n)
        ]

    return Scenario(
        name=f"{model} chat lengths x{n}",
        about=f"prompts and answers of up to {longest} tokens, log-normal",
        size=sized(model, n, longest, longest),
        scripts=scripts,
    )


def shared_prefix(model: str, n: int, prefix: int, suffix: int, tokens: int) -> Scenario:
    """``n`` clients at once behind one system prompt nobody has sent before."""

    def scripts(run: int) -> Scripts:
        shared = ids(draw("prefix", run), prefix)
        return [[completion(shared + ids(draw("suffix", run, k), suffix), tokens)] for k in range(n)]

    return Scenario(
        name=f"{model} shared {prefix} x{n}",
        about=f"a prefix of {prefix} tokens, {suffix} of one's own, {tokens} generated",
        size=sized(model, n, prefix + suffix, tokens),
        scripts=scripts,
    )


def turns(model: str, n: int, n_turns: int, words: int, tokens: int) -> Scenario:
    """Conversations: each request repeats all that was said and adds to it."""

    def scripts(run: int) -> Scripts:
        def turn(rng: random.Random) -> Ask:
            text = "\nuser: " + " ".join(rng.choices(WORDS, k=words)) + "\nassistant:"
            body = {"prompt": text, "max_tokens": tokens, "ignore_eos": True, **GREEDY}
            return Ask(body=body, tokens=tokens, follows=True)

        return [[turn(draw("turn", run, client, k)) for k in range(n_turns)] for client in range(n)]

    return Scenario(
        name=f"{model} turns x{n}",
        about=f"{n_turns} turns of {words} words and {tokens} tokens, history growing",
        size=sized(model, n, n_turns * (3 * words + tokens + 16), tokens),
        scripts=scripts,
    )


def long_prompt(model: str, n: int, tokens: int, prompt: int, after_s: float) -> Scenario:
    """Decoding streams, and a long prompt that comes in between; the streams' latencies are measured."""

    def scripts(run: int) -> Scripts:
        load = [[completion(ids(draw("stream", run, k), 16), tokens)] for k in range(n)]
        return [*load, [completion(ids(draw("long", run), prompt), 8, at=after_s, measured=False)]]

    return Scenario(
        name=f"{model} long prompt beside x{n}",
        about=f"{n} streams of {tokens} tokens, a prompt of {prompt} after {after_s} s",
        size=sized(model, n + 1, prompt, tokens),
        scripts=scripts,
        timed=True,
    )


def leaving(model: str, n: int, requests: int, tokens: int) -> Scenario:
    """A quarter of the clients hang up in mid-answer."""

    def scripts(run: int) -> Scripts:
        rng = draw("leave", run)

        def ask() -> Ask:
            events = rng.randrange(1, tokens // 2) if rng.random() < 0.25 else None
            return completion(ids(rng, 32), tokens, leave_after=events)

        return [[ask() for _ in range(requests)] for _ in range(n)]

    return Scenario(
        name=f"{model} leaving x{n}",
        about=f"{n} streams of {tokens} tokens, a quarter of the answers are left",
        size=sized(model, n, 32, tokens),
        scripts=scripts,
    )


def slow_readers(model: str, n: int, requests: int, tokens: int) -> Scenario:
    """A quarter of the clients read only every 50 ms; the others' latencies are measured."""

    def scripts(run: int) -> Scripts:
        def ask(client: int, request: int) -> Ask:
            slow = client % 4 == 0
            prompt = ids(draw("slow", run, client, request), 32)
            return completion(prompt, tokens, pause_s=0.05 if slow else 0.0, measured=not slow)

        return [[ask(client, request) for request in range(requests)] for client in range(n)]

    return Scenario(
        name=f"{model} slow readers x{n}",
        about=f"{n} streams of {tokens} tokens, a quarter read every 50 ms",
        size=sized(model, n, 32, tokens),
        scripts=scripts,
    )


def poisson(model: str, rate: float, requests: int, prompt: int, tokens: int) -> Scenario:
    """An open loop: requests come when they come, whether the server keeps up or not."""

    def scripts(run: int) -> Scripts:
        rng = draw("poisson", run)
        times = accumulate(rng.expovariate(rate) for _ in range(requests))
        return [[completion(ids(rng, prompt), tokens, at=at)] for at in times]

    return Scenario(
        name=f"{model} poisson {rate:g}/s",
        about=f"{requests} requests of {prompt}+{tokens} tokens at {rate:g} a second",
        size=sized(model, 32, prompt, tokens),
        scripts=scripts,
        timed=True,
    )


def constrained(model: str, n: int, requests: int, *, tools: bool) -> Scenario:
    """Answers that must follow a schema, or be calls of a tool."""
    schema = {"name": "person", "schema": PERSON, "strict": True}
    calls = {"tools": [WEATHER], "tool_choice": "required"}
    body = calls if tools else {"response_format": {"type": "json_schema", "json_schema": schema}}

    def scripts(run: int) -> Scripts:
        def ask(*key: int) -> Ask:
            question = "Tell me about " + " ".join(draw("json", run, *key).choices(WORDS, k=8))
            messages = [{"role": "user", "content": question}]
            return Ask(path="/v1/chat/completions", body={"messages": messages, "max_tokens": 64, **GREEDY, **body})

        return [[ask(client, request) for request in range(requests)] for client in range(n)]

    return Scenario(
        name=f"{model} {'tools' if tools else 'json'} x{n}",
        about=f"{n} streams of {'forced tool calls' if tools else 'JSON after a schema'}",
        size=sized(model, n, 512, 64),
        scripts=scripts,
    )


def short_set() -> Iterator[Scenario]:
    """What ``make bench`` runs: under ten minutes with three servers on two cores."""
    yield streams("tiny-llama-chain", 1, 4)
    yield streams("tiny-llama-chain", 16, 3)
    yield streams("tiny-llama-v152k", 16, 1, top_p=True)
    yield streams("smollm2", 8, 1, prompt=60, tokens=32)
    yield shared_prefix("smollm2", 8, 256, 16, 8)
    yield poisson("tiny-llama-chain", 6, 40, 64, 64)
    yield minilm(16, 4, 1, 64)


def long_set() -> Iterator[Scenario]:
    yield from short_set()
    for n in (2, 4, 8, 32, 64):
        yield streams("tiny-llama-chain", n, 3)
    yield streams("tiny-llama-v152k", 16, 1)
    for n in (1, 2, 4, 16, 32):
        yield streams("smollm2", n, 1, prompt=60, tokens=32)
    yield chat_shaped("tiny-llama-chain", 16, 6, 600)
    yield shared_prefix("smollm2", 8, 650, 16, 16)
    yield turns("smollm2", 3, 4, 30, 16)
    yield long_prompt("tiny-llama-chain", 16, 1500, 4000, 0.5)
    yield leaving("tiny-llama-chain", 16, 8, 200)
    yield slow_readers("tiny-llama-chain", 16, 4, 200)
    yield constrained("smollm2", 4, 2, tools=False)
    yield constrained("smollm2", 4, 2, tools=True)
    yield minilm(1, 4, 32, 64)
    yield minilm(64, 2, 1, 16)
    yield minilm(4, 4, 1, 256)


def real_set() -> Iterator[Scenario]:
    """Real models: what products with weights cost, at 1 to 32 streams and in a prompt. ``make bench-real``."""
    for model in ("smollm2", "gemma3-270m"):
        for n in (1, 4, 8, 16, 32):
            yield streams(model, n, 1, prompt=60, tokens=32)
        yield msgspec.structs.replace(streams(model, 1, 2, prompt=512, tokens=2), name=f"{model} prompt 512")


SETS: dict[str, Callable[[], Iterator[Scenario]]] = {"short": short_set, "long": long_set, "real": real_set}
