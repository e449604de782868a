"""The load client, against a loopback server that plays scripted answers."""

from __future__ import annotations

import asyncio
import json
from time import perf_counter

import msgspec
from support.answering import answering
from support.streamed_answers import ASK, GOOD, HEAD, WORK, answer, event

from llamafast.bench.address import loopback
from llamafast.bench.ask import Ask
from llamafast.bench.client import load, play_all
from llamafast.bench.figures import Load, read_answer, summarize


async def test_every_stream_sends_its_requests_on_one_connection() -> None:
    bodies: list[dict[str, object]] = []
    writers = set()

    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        bodies.append(body)
        writers.add(writer)
        writer.write(answer(GOOD))

    async with answering(reply) as port:
        exchanges = await play_all(loopback(port), WORK.asks(1), 30)
    assert [exchange.error for exchange in exchanges] == [None] * 4
    assert [[event for _, event in exchange.events] for exchange in exchanges] == [GOOD] * 4
    assert len(writers) == 2
    assert sorted(json.dumps(body.pop("prompt")) for body in bodies) == sorted(
        json.dumps(WORK.prompt(1, stream, request)) for stream in range(2) for request in range(2)
    )
    assert bodies == 4 * [
        {"model": "benchmark", "max_tokens": 2, "ignore_eos": True, "stream": True, "temperature": 0.0,
         "stream_options": {"include_usage": True}}
    ]  # fmt: skip


async def test_times_are_those_of_arrival() -> None:
    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        wire = answer(GOOD)
        second = wire.index(GOOD[1]) + 10
        await asyncio.sleep(0.05)
        writer.write(wire[:second])
        await asyncio.sleep(0.1)
        writer.write(wire[second:])

    work = msgspec.structs.replace(WORK, streams=1, requests=1)
    async with answering(reply) as port:
        (exchange,) = await play_all(loopback(port), work.asks(1), 30)
    first, second = read_answer(exchange).times
    assert first >= 0.05
    assert second >= 0.15
    assert first < second <= exchange.ended - exchange.sent


async def test_failures_are_counted_and_the_stream_goes_on() -> None:
    replies = iter(["refuse", "drop", "silence", "good"])

    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        match next(replies):
            case "refuse":
                writer.write(b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n")
            case "drop":
                writer.write(answer(GOOD)[:150])
                writer.close()
            case "silence":
                writer.write(HEAD)
            case "good":
                writer.write(answer(GOOD))

    work = msgspec.structs.replace(WORK, streams=1, requests=4)
    async with answering(reply) as port:
        exchanges = await play_all(loopback(port), work.asks(1), 3.0)
    run = summarize(Load(exchanges, 0.0), None)
    assert len(run.failures) == 3
    assert "429" in run.failures[0]
    assert "connection lost" in run.failures[1]
    assert "no complete answer after 3 s" in run.failures[2]
    assert run.tokens == 2


async def test_a_server_that_is_gone_is_a_failure() -> None:
    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        listening.close()
        writer.close()

    work = msgspec.structs.replace(WORK, streams=1, requests=2)
    listening = await asyncio.start_server(lambda _, writer: reply({}, writer), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening:
        exchanges = await play_all(loopback(port), work.asks(1), 30)
    assert "connection lost" in str(exchanges[0].error)
    assert "cannot connect" in str(exchanges[1].error)
    exchanges = await play_all(loopback(port), WORK.asks(1), 30)
    assert ["cannot connect" in str(exchange.error) for exchange in exchanges] == [True] * 4


async def test_load_runs_outside_of_an_event_loop() -> None:
    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        writer.write(answer(GOOD))

    async with answering(reply) as port:
        result = await asyncio.to_thread(load, WORK.asks(1), loopback(port), 30)
    assert summarize(result, None).failures == []
    assert result.client_cpu_s > 0


async def test_a_client_leaves_where_it_is_told_to() -> None:
    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        writer.write(answer([event("x")] * 3)[:-5])

    leaver = msgspec.structs.replace(ASK, leave_after=2)
    async with answering(reply) as port:
        exchanges = await play_all(loopback(port), [[leaver, leaver]], 30)
    assert [exchange.left for exchange in exchanges] == [True, True]
    run = summarize(Load(exchanges, 0), None)
    assert (run.left, run.requests, run.failures) == (2, 0, [])


async def test_a_slow_reader_reads_late() -> None:
    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        wire = answer(GOOD)
        for start in range(0, len(wire), 200):
            writer.write(wire[start : start + 200])
            await asyncio.sleep(0.005)

    async with answering(reply) as port:
        (slow,) = await play_all(loopback(port), [[msgspec.structs.replace(ASK, pause_s=0.1)]], 30)
    assert slow.error is None
    assert slow.ended - slow.sent >= 0.1


async def test_an_open_loop_sends_at_its_times() -> None:
    both = asyncio.Barrier(2)

    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        await both.wait()
        writer.write(answer(GOOD))

    asks = [[msgspec.structs.replace(ASK, at=at)] for at in (0.0, 0.1)]
    began = perf_counter()
    async with answering(reply) as port:
        first, second = await play_all(loopback(port), asks, 30, timed=True)
    assert first.error is None is second.error
    assert second.sent - began >= 0.1
    assert second.sent < first.ended


async def test_a_follower_repeats_what_was_said() -> None:
    prompts = []

    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        prompts.append(body["prompt"])
        writer.write(answer(GOOD))

    turn = Ask(body={"prompt": "q"}, tokens=2, follows=True)
    async with answering(reply) as port:
        await play_all(loopback(port), [[turn, turn]], 30)
    assert prompts == ["q", "qabq"]


async def test_a_stale_connection_is_replaced() -> None:
    replies = iter([True, False, True])

    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        if next(replies):
            writer.write(answer(GOOD))
        else:
            writer.close()

    async with answering(reply) as port:
        exchanges = await play_all(loopback(port), [[ASK, ASK]], 30)
    assert [exchange.error for exchange in exchanges] == [None, None]
