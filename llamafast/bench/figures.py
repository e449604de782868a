"""From exchanges to figures.

TTFT: send → first content event. ITL: every gap between content events of a request, pooled over requests. E2EL: send →
end of the answer. TPOT: (E2EL - TTFT) / (tokens - 1) of a request. Token counts are the server's ``usage``; a request
whose count is not what was asked for is a failure. A server may merge tokens into one event: ``text_events`` tells how
far ITL is from a time per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec
import numpy as np

from llamafast.bench.ask import Ask


class Failure(Exception):
    """A request that did not give what was asked for."""


@dataclass(eq=False)
class Exchange:
    """One request on the wire: when it was sent, what arrived when, how it broke, or that the client left as meant.

    A ``stale`` one broke before it was answered, on a connection that had been used before: it may be sent again.
    """

    ask: Ask
    sent: float
    events: list[tuple[float, bytes]] = field(default_factory=list)
    ended: float = 0.0
    error: str | None = None
    left: bool = False
    stale: bool = False


@dataclass(frozen=True, eq=False)
class Load:
    """All exchanges of one run, and the CPU seconds the client spent on them."""

    exchanges: list[Exchange]
    client_cpu_s: float


class Delta(msgspec.Struct):
    """``reasoning`` is what some servers call ``reasoning_content``."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class Choice(msgspec.Struct):
    text: str | None = None
    delta: Delta | None = None
    finish_reason: str | None = None

    @property
    def said(self) -> str:
        """The event's text; a piece of a tool call counts as some."""
        if self.delta is None:
            return self.text or ""
        thought = self.delta.reasoning_content or self.delta.reasoning or ""
        return thought + (self.delta.content or ("{" if self.delta.tool_calls else ""))


class PromptDetails(msgspec.Struct):
    cached_tokens: int = 0


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    prompt_tokens_details: PromptDetails | None = None


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int


class Chunk(msgspec.Struct):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: dict[str, object] | None = None


class Vectors(msgspec.Struct):
    """The answer of /v1/embeddings."""

    data: list[msgspec.Raw]
    usage: EmbeddingUsage


class Answer(msgspec.Struct, frozen=True):
    """One good exchange. ``times`` are those of its events with text, in seconds after the request was sent.

    A model may well say nothing that is text, control tokens for one: such an answer has tokens and no latencies, and
    so has one that came in one piece.
    """

    times: list[float]
    tokens: int
    cached_tokens: int
    seconds: float
    prompt_tokens: int = 0

    @property
    def tpot(self) -> float | None:
        """Seconds per token after the first; None for a single token or none with text."""
        return (self.seconds - self.times[0]) / (self.tokens - 1) if self.times and self.tokens > 1 else None


class Goal(msgspec.Struct, frozen=True):
    """A service level, in seconds: a request is good when it meets both."""

    ttft: float
    tpot: float

    def met_by(self, answer: Answer) -> bool:
        return (answer.times or [answer.seconds])[0] <= self.ttft and (answer.tpot or 0.0) <= self.tpot


class ServedRun(msgspec.Struct, frozen=True, kw_only=True):
    """One run through the server. ``failures`` holds the reason of every failed request; times are seconds."""

    wall_s: float
    requests: int
    left: int
    tokens: int
    text_events: int
    cached_tokens: int
    failures: list[str]
    silent: int
    good: int | None
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    tpot_p99: float
    itl_p50: float
    itl_p99: float
    e2el_p50: float
    e2el_p99: float
    client_cpu_s: float
    server_cpu_s: float | None

    @property
    def output_rate(self) -> float:
        return self.tokens / self.wall_s

    @property
    def request_rate(self) -> float:
        """Whole good answers per second."""
        return self.requests / self.wall_s

    @property
    def goodput(self) -> float | None:
        """Answers per second that met the goal."""
        return None if self.good is None else self.good / self.wall_s

    @property
    def server_cpu_per_1000(self) -> float | None:
        """Server CPU seconds (user and system) per 1,000 generated tokens."""
        return None if self.server_cpu_s is None or not self.tokens else 1000 * self.server_cpu_s / self.tokens


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile; nan without values."""
    return float(np.percentile(values, percent, method="inverted_cdf")) if values else float("nan")


def median(values: Iterable[float]) -> float:
    """The middle one, or the mean of the middle two; nan without values, and with one that is nan."""
    numbers = list(values)
    return float(np.median(numbers)) if numbers else float("nan")


def read_chunk(event: bytes) -> Chunk:
    """Raises Failure for what is no chunk of an OpenAI stream."""
    try:
        return msgspec.json.decode(event.removeprefix(b"data: "), type=Chunk)
    except msgspec.DecodeError as error:
        raise Failure(f"{error}: {event[:200]!r}") from None


def spoken(exchange: Exchange) -> str:
    """The text of an answer, whatever became of it."""
    chunks = [read_chunk(event) for _, event in exchange.events if event.startswith(b"data: {")]
    return "".join(choice.said for chunk in chunks for choice in chunk.choices)


def read_answer(exchange: Exchange) -> Answer:
    """Check one exchange against what was asked for. Raises Failure.

    A server that sends no usage is believed where the answer ended by its limit; of an answer of open length its
    events with text are counted.
    """
    if exchange.error is not None:
        raise Failure(exchange.error)
    if exchange.ask.vectors:
        return read_vectors(exchange)
    if not exchange.ask.streams:
        return read_whole(exchange)
    if not exchange.events or exchange.events[-1][1] != b"data: [DONE]":
        raise Failure("the stream ended without [DONE]")
    ask = exchange.ask
    times: list[float] = []
    usage, reason = None, None
    for now, event in exchange.events[:-1]:
        # a comment keeps the connection alive and says nothing
        if event.startswith(b":"):
            continue
        chunk = read_chunk(event)
        if chunk.error is not None:
            raise Failure(f"error event: {chunk.error}")
        if any(choice.said for choice in chunk.choices):
            times.append(now - exchange.sent)
        for choice in chunk.choices:
            reason = choice.finish_reason or reason
        usage = chunk.usage or usage
    if usage is None and reason == "length" and ask.tokens is not None:
        usage = Usage(ask.prompt_tokens or 0, ask.tokens)
    elif usage is None and reason is not None and ask.tokens is None:
        usage = Usage(0, len(times))
    expected = (ask.prompt_tokens, ask.tokens, None if ask.tokens is None else "length")
    told = None if usage is None else (usage.prompt_tokens, usage.completion_tokens, reason)
    if told is None or any(want not in (None, got) for want, got in zip(expected, told, strict=True)):
        raise Failure(f"expected prompt tokens, tokens, reason {expected}; the server says {usage}, {reason}")
    assert usage is not None
    cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
    return Answer(times, usage.completion_tokens, cached, exchange.ended - exchange.sent, usage.prompt_tokens)


def read_whole(exchange: Exchange) -> Answer:
    """An answer in one piece, by what its usage says. Raises Failure."""
    ((_, body),) = exchange.events
    chunk = read_chunk(body)
    if chunk.usage is None:
        raise Failure(f"expected an answer with its usage; got {body[:200]!r}")
    details = chunk.usage.prompt_tokens_details
    cached = details.cached_tokens if details else 0
    seconds = exchange.ended - exchange.sent
    return Answer([], chunk.usage.completion_tokens, cached, seconds, chunk.usage.prompt_tokens)


def read_vectors(exchange: Exchange) -> Answer:
    """The tokens that were embedded; all of the answer comes at once. Raises Failure."""
    ((_, body),) = exchange.events
    try:
        vectors = msgspec.json.decode(body, type=Vectors)
    except msgspec.DecodeError as error:
        raise Failure(f"{error}: {body[:200]!r}") from None
    expected = (exchange.ask.vectors, exchange.ask.prompt_tokens)
    if (len(vectors.data), vectors.usage.prompt_tokens) != expected:
        raise Failure(f"expected vectors, tokens {expected}; got {len(vectors.data)}, {vectors.usage.prompt_tokens}")
    seconds = exchange.ended - exchange.sent
    return Answer([seconds], vectors.usage.prompt_tokens, 0, seconds)


def summarize(load: Load, server_cpu_s: float | None, goal: Goal | None = None) -> ServedRun:
    answers: list[Answer] = []
    measured: list[Answer] = []
    failures: list[str] = []
    for exchange in load.exchanges:
        if exchange.left:
            continue
        try:
            answers.append(read_answer(exchange))
        except Failure as failure:
            failures.append(str(failure))
        else:
            if exchange.ask.measured:
                measured.append(answers[-1])
    first = [answer.times[0] for answer in measured if answer.times]
    whole = [answer.seconds for answer in measured]
    tpots = [answer.tpot for answer in measured if answer.tpot is not None]
    gaps = [after - before for answer in measured for before, after in pairwise(answer.times)]
    return ServedRun(
        wall_s=max(e.ended for e in load.exchanges) - min(e.sent for e in load.exchanges),
        requests=len(answers),
        left=sum(exchange.left for exchange in load.exchanges),
        tokens=sum(answer.tokens for answer in answers),
        text_events=sum(len(answer.times) for answer in answers),
        cached_tokens=sum(answer.cached_tokens for answer in answers),
        failures=failures,
        silent=sum(not answer.times for answer in answers),
        good=None if goal is None else sum(goal.met_by(answer) for answer in measured),
        ttft_p50=percentile(first, 50),
        ttft_p99=percentile(first, 99),
        tpot_p50=percentile(tpots, 50),
        tpot_p99=percentile(tpots, 99),
        itl_p50=percentile(gaps, 50),
        itl_p99=percentile(gaps, 99),
        e2el_p50=percentile(whole, 50),
        e2el_p99=percentile(whole, 99),
        client_cpu_s=load.client_cpu_s,
        server_cpu_s=server_cpu_s,
    )
