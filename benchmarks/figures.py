"""From exchanges to figures.

TTFT: send → first content event. ITL: every gap between content events of a request, pooled over requests. Token counts
are the server's ``usage``; a request whose count is not what was asked for is a failure. A server may merge tokens into
one event: ``text_events`` tells how far ITL is from a time per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import ceil

import msgspec

from benchmarks.client import Exchange, Load
from benchmarks.workload import Workload


class Failure(Exception):
    """A request that did not give what was asked for."""


class Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None


class PromptDetails(msgspec.Struct):
    cached_tokens: int = 0


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptDetails | None = None


class Chunk(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: dict[str, object] | None = None


class Answer(msgspec.Struct, frozen=True):
    """One good exchange. ``times`` are those of its events with text, in seconds after the request was sent."""

    times: list[float]
    cached_tokens: int


class ServedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run through the server. ``failures`` holds the reason of every failed request; times are seconds."""

    wall_s: float
    tokens: int
    text_events: int
    cached_tokens: int
    failures: list[str]
    ttft_p50: float
    ttft_p99: float
    itl_p50: float
    itl_p99: float
    client_cpu_s: float
    server_cpu_s: float | None

    @property
    def output_rate(self) -> float:
        return self.tokens / self.wall_s

    @property
    def server_cpu_per_1000(self) -> float | None:
        """Server CPU seconds (user and system) per 1,000 generated tokens."""
        return None if self.server_cpu_s is None or not self.tokens else 1000 * self.server_cpu_s / self.tokens


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile; nan without values."""
    if not values:
        return float("nan")
    return sorted(values)[max(0, ceil(len(values) * percent / 100) - 1)]


def read_answer(exchange: Exchange, work: Workload) -> Answer:
    """Check one exchange against what was asked for. Raises Failure."""
    if exchange.error is not None:
        raise Failure(exchange.error)
    if not exchange.events or exchange.events[-1][1] != b"data: [DONE]":
        raise Failure("the stream ended without [DONE]")
    times: list[float] = []
    usage, reason = None, None
    for now, event in exchange.events[:-1]:
        # a comment keeps the connection alive and says nothing
        if event.startswith(b":"):
            continue
        try:
            chunk = msgspec.json.decode(event.removeprefix(b"data: "), type=Chunk)
        except msgspec.DecodeError as error:
            raise Failure(f"{error}: {event[:200]!r}") from None
        if chunk.error is not None:
            raise Failure(f"error event: {chunk.error}")
        if any(choice.text for choice in chunk.choices):
            times.append(now - exchange.sent)
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
        usage = chunk.usage or usage
    expected = (work.prompt_tokens, work.tokens, "length")
    if usage is None or (usage.prompt_tokens, usage.completion_tokens, reason) != expected:
        raise Failure(f"expected prompt tokens, tokens, reason {expected}; the server says {usage}, {reason}")
    if not times:
        raise Failure("no event had text")
    return Answer(times, usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0)


def summarize(load: Load, work: Workload, server_cpu_s: float | None) -> ServedRun:
    answers: list[Answer] = []
    failures: list[str] = []
    for exchange in load.exchanges:
        try:
            answers.append(read_answer(exchange, work))
        except Failure as failure:
            failures.append(str(failure))
    first = [answer.times[0] for answer in answers]
    gaps = [after - before for answer in answers for before, after in pairwise(answer.times)]
    return ServedRun(
        wall_s=max(e.ended for e in load.exchanges) - min(e.sent for e in load.exchanges),
        tokens=len(answers) * work.tokens,
        text_events=sum(len(answer.times) for answer in answers),
        cached_tokens=sum(answer.cached_tokens for answer in answers),
        failures=failures,
        ttft_p50=percentile(first, 50),
        ttft_p99=percentile(first, 99),
        itl_p50=percentile(gaps, 50),
        itl_p99=percentile(gaps, 99),
        client_cpu_s=load.client_cpu_s,
        server_cpu_s=server_cpu_s,
    )
