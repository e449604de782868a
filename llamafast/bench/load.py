"""What a measurement asks for, and how a server is put under it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from time import perf_counter
from typing import Any, Literal

from msgspec import Struct

from llamafast.bench.address import Address
from llamafast.bench.ask import Ask
from llamafast.bench.client import load
from llamafast.bench.figures import Answer, Exchange, Failure, read_answer
from llamafast.bench.prompts import Length, body, measured, words
from llamafast.errors import ConfigError

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
# Words of the two prompts by which a server's tokens are learned.
_FEW, _MANY = 16, 80
_WARM_UP_TOKENS = 16


class Wanted(Struct, frozen=True, kw_only=True):
    """``clients`` ask one request after another, or with ``rate`` so many a second arrive, at random times.

    Lengths are tokens; the first ``shared_tokens`` of all prompts are the same. It ends after ``requests``, or when no
    more are sent after ``seconds``. Answers have all their tokens unless they ``may_end``. ``fields`` are added to each
    request. One that takes longer than ``limit_s`` has failed.
    """

    clients: int = 8
    requests: int | None = None
    seconds: float | None = 30.0
    rate: float | None = None
    prompt_tokens: int = 128
    shared_tokens: int = 0
    answer_tokens: int = 128
    may_end: bool = False
    stream: bool = True
    api: Literal["chat", "completions"] = "chat"
    model: str = ""
    fields: dict[str, Any] = {}
    limit_s: float = 300.0
    seed: int = 0


class Supply:
    """The requests of all clients, one by one, until there are enough: ``dry_at`` tells when, by perf_counter."""

    def __init__(self, wanted: Wanted, length: Length) -> None:
        self._wanted = wanted
        self._shared = length.words(wanted.shared_tokens) if wanted.shared_tokens else 0
        self._own = max(1, length.words(wanted.prompt_tokens) - self._shared)
        self._n = 0
        self._ends_at: float | None = None
        self._stopped = False
        self.dry_at: float | None = None

    def __iter__(self) -> Iterator[Ask]:
        return self

    def __next__(self) -> Ask:
        now = perf_counter()
        if self._ends_at is None and self._wanted.seconds is not None:
            self._ends_at = now + self._wanted.seconds
        enough = self._wanted.requests is not None and self._n >= self._wanted.requests
        if self._stopped or enough or (self._ends_at is not None and now >= self._ends_at):
            self.dry_at = self.dry_at or now
            raise StopIteration
        return self.ask()

    def stop(self) -> None:
        """What was asked is answered, and nothing more is asked."""
        self._stopped = True

    def ask(self, at: float = 0.0) -> Ask:
        """One more, for the time ``at``."""
        self._n += 1
        shared = words(self._shared, f"{self._wanted.seed}/shared")
        own = words(self._own, f"{self._wanted.seed}/{self._n}")
        return ask(self._wanted, f"{shared} {own}".lstrip(), self._wanted.answer_tokens, at)

    def arrivals(self) -> list[list[Ask]]:
        """Those of an open loop: at the times of a Poisson process."""
        rate, at = self._wanted.rate or 1.0, 0.0
        draw = random.Random(self._wanted.seed)
        asks: list[list[Ask]] = []
        while (self._wanted.requests is None or len(asks) < self._wanted.requests) and (
            self._wanted.seconds is None or at < self._wanted.seconds
        ):
            asks.append([self.ask(at)])
            at += draw.expovariate(rate)
        return asks


class Measured(Struct, frozen=True):
    """``exchanges`` as they ended; all clients were busy until ``dry_at``, None in an open loop."""

    exchanges: list[Exchange]
    dry_at: float | None


def ask(wanted: Wanted, text: str, tokens: int, at: float = 0.0) -> Ask:
    """A request of ``wanted`` with this prompt, for so many tokens."""
    path = PATHS[wanted.api]
    forced = {} if wanted.may_end else {"ignore_eos": True}
    fields = {"model": wanted.model, "max_tokens": tokens, **forced, **wanted.fields}
    return Ask(body={**body(path, text), **fields}, path=path, stream=wanted.stream, at=at)


def learned(to: Address, wanted: Wanted) -> Length:
    """How many tokens words are. Raises ConfigError with what the server says where it does not answer well."""
    counts = []
    for n in (_FEW, _MANY):
        probe = ask(wanted, words(n, f"{wanted.seed}/probe {n}"), 1)
        (exchange,) = load([[probe]], to, wanted.limit_s).exchanges
        try:
            tokens = read_answer(exchange).prompt_tokens
        except Failure as failure:
            raise ConfigError(f"{to.url.authority}: {failure}") from failure
        if not tokens:
            raise ConfigError(f"{to.url.authority}: answers without `usage`, so that no length of a prompt is known")
        counts.append((n, tokens))
    return measured(*counts)


def warm_up(to: Address, wanted: Wanted, length: Length) -> None:
    """A request of each client, which nobody counts."""
    n = length.words(wanted.prompt_tokens)
    tokens = min(_WARM_UP_TOKENS, wanted.answer_tokens)
    load(
        [[ask(wanted, words(n, f"{wanted.seed}/warm {k}"), tokens)] for k in range(wanted.clients)], to, wanted.limit_s
    )


def measure(to: Address, wanted: Wanted, supply: Supply) -> Measured:
    """The load itself."""
    if wanted.rate is not None:
        return Measured(load(supply.arrivals(), to, wanted.limit_s, timed=True).exchanges, None)
    return Measured(load([supply] * wanted.clients, to, wanted.limit_s).exchanges, supply.dry_at)


def answers_of(exchanges: list[Exchange]) -> tuple[list[tuple[Exchange, Answer]], list[str]]:
    """The good ones, and why the others are none."""
    answers, failures = [], []
    for exchange in exchanges:
        try:
            answers.append((exchange, read_answer(exchange)))
        except Failure as failure:
            failures.append(str(failure))
    return answers, failures
