"""From exchanges to figures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

import pytest
from support.streamed_answers import ASK, DONE, GOOD, event, usage

from llamafast.bench.ask import Ask
from llamafast.bench.figures import Exchange, Failure, Goal, Load, percentile, read_answer, spoken, summarize


def exchange(times: Iterable[float], events: Iterable[bytes] = GOOD, sent: float = 10.0) -> Exchange:
    stamped = [(sent + after, event) for after, event in zip(times, events, strict=True)]
    return Exchange(ASK, sent=sent, events=stamped, ended=stamped[-1][0])


def test_summary() -> None:
    exchanges = [exchange([0.1, 0.3, 0.3, 0.3]), exchange([0.2, 0.25, 0.25, 0.4], sent=10.1)]
    run = summarize(Load(exchanges, 0.01), 0.002, Goal(ttft=0.15, tpot=1))
    assert run.wall_s == pytest.approx(0.5)
    assert run.tokens == 4
    assert run.text_events == 4
    assert run.output_rate == pytest.approx(8)
    assert (run.ttft_p50, run.ttft_p99) == pytest.approx((0.1, 0.2))
    assert (run.itl_p50, run.itl_p99) == pytest.approx((0.05, 0.2))
    assert run.server_cpu_per_1000 == pytest.approx(0.5)
    assert run.cached_tokens == 0
    assert (run.e2el_p50, run.e2el_p99) == pytest.approx((0.3, 0.4))
    assert (run.tpot_p50, run.tpot_p99) == pytest.approx((0.2, 0.2))
    assert run.goodput == pytest.approx(2)
    assert run.request_rate == pytest.approx(4)


def test_a_comment_and_an_event_without_text_are_no_tokens() -> None:
    events = [b": ping", event(), *GOOD]
    assert read_answer(exchange([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], events)).times == pytest.approx([0.3, 0.4])


def test_cached_tokens_are_told() -> None:
    events = [event("a"), event("b", "length"), usage(3, 2, cached=1), DONE]
    assert read_answer(exchange([1, 2, 3, 4], events)).cached_tokens == 1


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        (GOOD[:3], "DONE"),
        ([DONE], "usage|says None"),
        ([event("a"), event("b", "stop"), DONE], "says None"),
        ([*GOOD[:2], usage(3, 1), DONE], "completion_tokens=1"),
        ([*GOOD[:2], usage(4, 2), DONE], "prompt_tokens=4"),
        ([event("a"), event("b", "stop"), usage(3, 2), DONE], "stop"),
        ([event("a"), b'data: {"error": {"message": "boom"}}', DONE], "boom"),
        ([b"data: {", DONE], "truncated"),
    ],
)
def test_an_answer_that_is_not_what_was_asked_for_fails(events: list[bytes], reason: str) -> None:
    with pytest.raises(Failure, match=reason):
        read_answer(exchange(range(len(events)), events))


def test_a_server_without_usage_is_believed_at_the_limit() -> None:
    answer = read_answer(exchange([1, 2, 3], [*GOOD[:2], DONE]))
    assert (answer.tokens, answer.cached_tokens) == (2, 0)


def test_an_answer_without_text_has_tokens_and_no_latencies() -> None:
    silent = exchange([1, 2, 3, 4], [event(), event("", "length"), usage(3, 2), DONE])
    run = summarize(Load([silent], 0.0), None, Goal(ttft=5, tpot=1))
    assert (run.tokens, run.silent, run.good, run.failures) == (2, 1, 1, [])
    assert math.isnan(run.ttft_p50)


def test_of_an_open_answer_usage_tells_the_length() -> None:
    open_ended = Exchange(Ask(body={}), sent=0, ended=4)
    open_ended.events = list(enumerate([event("a"), event("b", "stop"), usage(9, 5), DONE], start=1))
    assert read_answer(open_ended).tokens == 5


def test_of_an_open_answer_without_usage_the_events_are_counted() -> None:
    whole = Exchange(Ask(body={}), sent=0, ended=4)
    whole.events = list(enumerate([event("a"), event("b"), event("", "stop"), DONE], start=1))
    assert read_answer(whole).tokens == 2
    cut = Exchange(Ask(body={}), sent=0, ended=3, events=list(enumerate([event("a"), event("b"), DONE], start=1)))
    with pytest.raises(Failure, match="says None"):
        read_answer(cut)


def test_chat_chunks_count_what_they_say() -> None:
    deltas = [{"role": "assistant", "content": None}, {"reasoning_content": "r"}, {"content": "c"},
              {"tool_calls": [{"index": 0}]}]  # fmt: skip
    chunks = [b"data: " + json.dumps({"choices": [{"delta": delta}]}).encode() for delta in deltas]
    chat = Exchange(Ask(body={}), sent=0, ended=6, events=list(enumerate([*chunks, usage(1, 3), DONE], start=1)))
    assert spoken(chat) == "rc{"
    with pytest.raises(Failure, match="None"):
        read_answer(Exchange(ASK, sent=0, ended=6, events=chat.events))
    assert read_answer(chat).times == [2, 3, 4]


def test_a_run_without_one_good_answer_has_no_times() -> None:
    run = summarize(Load([exchange([0.1], [DONE])], 0.0), 0.1)
    assert run.tokens == 0
    assert len(run.failures) == 1
    assert math.isnan(run.ttft_p50)
    assert run.server_cpu_per_1000 is None


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (1, 1), (50, 50), (99, 99), (100, 100)])
def test_percentile_is_the_nearest_rank(percent: float, value: float) -> None:
    assert percentile(list(range(100, 0, -1)), percent) == value
