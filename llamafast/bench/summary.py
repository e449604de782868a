"""What a measurement says: rates while all clients were busy, and percentiles that are times which were measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

from llamafast.bench.figures import Answer, Exchange, percentile
from llamafast.bench.load import Measured, Wanted, answers_of

_WORST_ERRORS = 5


class Spread(Struct, frozen=True):
    """Nearest-rank percentiles, in seconds: each is a time that was measured. Of fewer than 100 times p99 is the
    longest. None without times."""

    n: int
    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    longest: float | None = None

    @classmethod
    def of(cls, times: Sequence[float]) -> Spread:
        if not times:
            return cls(0)
        p50, p90, p99 = (percentile(times, percent) for percent in (50, 90, 99))
        return cls(len(times), p50, p90, p99, max(times))


class Summary(Struct, frozen=True, kw_only=True):
    """Rates are per second. ``busy_s`` is how long every client had a request under way, None in an open loop: rates
    are of that time, and of the whole (``seconds``, to the last answer's end) where there is none. ``ttft`` is from
    sending a request to its first event with text, ``gaps`` are those between two such events, ``whole`` is from
    sending to the end of the answer. ``errors`` are what failed requests met, and how many each."""

    url: str
    model: str
    clients: int
    rate: float | None
    stream: bool
    seed: int
    seconds: float
    busy_s: float | None
    answers: int
    failed: int
    prompt_tokens: float | None
    cached_tokens: float | None
    answer_tokens: float | None
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    requests_per_s: float
    events_per_token: float | None
    ttft: Spread
    gaps: Spread
    whole: Spread
    errors: dict[str, int]


def summed_up(url: str, wanted: Wanted, measured: Measured) -> Summary:
    """``measured`` in figures; there is at least one exchange."""
    exchanges = measured.exchanges
    answers, failures = answers_of(exchanges)
    began = min(exchange.sent for exchange in exchanges)
    ended = max(exchange.ended for exchange in exchanges)
    until = ended if measured.dry_at is None else min(ended, measured.dry_at)
    span = max(1e-9, until - began)
    shares = [_share(exchange, answer, until) for exchange, answer in answers]
    got = [answer for _, answer in answers]
    tokens = sum(answer.tokens for answer in got)
    events = sum(len(answer.times) for answer in got)
    return Summary(
        url=url,
        model=wanted.model,
        clients=wanted.clients,
        rate=wanted.rate,
        stream=wanted.stream,
        seed=wanted.seed,
        seconds=ended - began,
        busy_s=None if measured.dry_at is None else until - began,
        answers=len(got),
        failed=len(failures),
        prompt_tokens=_mean([answer.prompt_tokens for answer in got]),
        cached_tokens=_mean([answer.cached_tokens for answer in got]),
        answer_tokens=_mean([answer.tokens for answer in got]),
        output_tokens_per_s=sum(share * answer.tokens for share, answer in zip(shares, got, strict=True)) / span,
        prompt_tokens_per_s=sum(share * answer.prompt_tokens for share, answer in zip(shares, got, strict=True)) / span,
        requests_per_s=sum(shares) / span,
        events_per_token=events / tokens if events and tokens else None,
        ttft=Spread.of([answer.times[0] for answer in got if answer.times]),
        gaps=Spread.of([after - before for answer in got for before, after in pairwise(answer.times)]),
        whole=Spread.of([answer.seconds for answer in got]),
        errors=dict(Counter(failures).most_common(_WORST_ERRORS)),
    )


def _share(exchange: Exchange, answer: Answer, until: float) -> float:
    """How much of an answer came before ``until``: by its events, or of one in one piece by the time it took."""
    if exchange.ended <= until:
        return 1.0
    if answer.times:
        return sum(exchange.sent + time <= until for time in answer.times) / len(answer.times)
    return max(0.0, until - exchange.sent) / answer.seconds


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None


def page(summary: Summary, wanted: Wanted) -> str:
    """For people."""
    loop = f"{summary.rate:g} requests a second" if summary.rate else f"{summary.clients} clients"
    cached = f"{_number(summary.prompt_tokens)}   tokens, of which cached {_number(summary.cached_tokens, 1)}"
    lines = [
        f"{summary.url}  {summary.model}  {loop}, {'streamed' if summary.stream else 'not streamed'}, "
        f"{summary.seconds:.1f} s",
        f"answers        {summary.answers:>9}   failed {summary.failed}",
        f"prompt         {cached}",
        f"answer         {_number(summary.answer_tokens)}   tokens{_shorter(summary, wanted)}",
        f"output         {summary.output_tokens_per_s:>9.1f}   tokens/s{_of_the_busy_time(summary)}",
        f"prompts        {summary.prompt_tokens_per_s:>9.1f}   tokens/s",
        f"requests       {summary.requests_per_s:>9.2f}   1/s",
        "",
        f"milliseconds   {'p50':>9} {'p90':>9} {'p99':>9} {'longest':>9} {'of':>9}",
    ]
    for name, spread in (("first token", summary.ttft), ("gaps", summary.gaps), ("whole answer", summary.whole)):
        times = (spread.p50, spread.p90, spread.p99, spread.longest)
        lines.append(f"{name:<14} " + " ".join(_milliseconds(time) for time in times) + f" {spread.n:>9}")
    if summary.events_per_token is not None and summary.events_per_token < 0.95:
        lines.append(f"an event has {1 / summary.events_per_token:.1f} tokens: gaps are between events")
    if 0 < summary.whole.n < 100:
        lines.append(f"p99 of {summary.whole.n} answers is the longest: --requests 100 or more")
    lines += [f"failed {n} times: {reason}" for reason, n in summary.errors.items()]
    return "\n".join(lines)


def _number(value: float | None, digits: int = 0) -> str:
    return f"{'-' if value is None else format(value, f'.{digits}f'):>9}"


def _milliseconds(seconds: float | None) -> str:
    return f"{'-' if seconds is None else format(1000 * seconds, '.1f'):>9}"


def _shorter(summary: Summary, wanted: Wanted) -> str:
    if wanted.may_end or summary.answer_tokens is None or summary.answer_tokens > 0.99 * wanted.answer_tokens:
        return ""
    return f" ({wanted.answer_tokens} were asked for: does the server know `ignore_eos`?)"


def _of_the_busy_time(summary: Summary) -> str:
    if summary.busy_s is None or summary.seconds - summary.busy_s < 0.01 * summary.seconds:
        return ""
    return f" in the {summary.busy_s:.1f} s in which all clients were busy"
