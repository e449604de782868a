"""The load client and its arithmetic, against a loopback server that plays scripted answers."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from argparse import Namespace
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import embeddings, raw, server
from benchmarks.ask import Ask
from benchmarks.client import load, play_all
from benchmarks.embedding_work import EmbeddingWork
from benchmarks.event_stream import BadAnswer, EventStream, WholeBody
from benchmarks.figures import Exchange, Failure, Goal, Load, percentile, read_answer, spoken, summarize
from benchmarks.micro import reply as reply_benchmark
from benchmarks.report import Journal, print_table, spread
from benchmarks.workload import Workload, resolve_model

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WORK = Workload(model="m.gguf", streams=2, requests=2, prompt_tokens=3, tokens=2, sampling="greedy", threads=1,
                partitioned=False)  # fmt: skip
ASK = WORK.asks(1)[0][0]


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def event(text: str = "", reason: str | None = None) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "text": text, "finish_reason": reason}]}).encode()


def usage(prompt: int, completion: int, cached: int = 0) -> bytes:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
              "prompt_tokens_details": {"cached_tokens": cached}}  # fmt: skip
    return b"data: " + json.dumps({"choices": [], "usage": counts}).encode()


DONE = b"data: [DONE]"
GOOD = [event("a"), event("b", "length"), usage(3, 2), DONE]


def answer(events: Iterable[bytes]) -> bytes:
    return HEAD + b"".join(chunk(event + b"\n\n") for event in events) + b"0\r\n\r\n"


def pieces(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({cut % (len(data) + 1) for cut in cuts}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


# the wire


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1), max_size=6),
    chunk_cuts=st.lists(st.integers(0, 10_000), max_size=8),
    read_cuts=st.lists(st.integers(0, 10_000), max_size=12),
)
def test_events_do_not_depend_on_how_the_bytes_are_cut(
    texts: list[str], chunk_cuts: list[int], read_cuts: list[int]
) -> None:
    events = [b"data: " + text.encode() for text in texts]
    body = b"".join(event + b"\n\n" for event in events)
    wire = HEAD + b"".join(chunk(piece) for piece in pieces(body, chunk_cuts) if piece) + b"0\r\n\r\n"
    stream = EventStream()
    seen = []
    for piece in pieces(wire, read_cuts):
        assert not stream.finished or not piece
        seen += stream.feed(piece)
    assert seen == events
    assert stream.finished


def test_byte_by_byte() -> None:
    stream = EventStream()
    assert [event for byte in answer(GOOD) for event in stream.feed(bytes([byte]))] == GOOD
    assert stream.finished


@pytest.mark.parametrize(
    "wire",
    [
        b'HTTP/1.1 429 Too Many Requests\r\ntransfer-encoding: chunked\r\n\r\n{"error": {"message": "full"}}',
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        HEAD + b"zz\r\n",
        HEAD + b"0\r\n\r\nmore",
    ],
    ids=["status", "not chunked", "chunk size", "bytes after the end"],
)
def test_other_answers_are_bad(wire: bytes) -> None:
    with pytest.raises(BadAnswer):
        EventStream().feed(wire)


def test_a_whole_body_comes_in_any_pieces() -> None:
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\r\n\r\n"
    body = WholeBody()
    assert [event for byte in wire for event in body.feed(bytes([byte]))] == [b"\r\n\r\n"]
    assert body.finished
    assert WholeBody().feed(wire) == [b"\r\n\r\n"]


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}more",
    ],
    ids=["status", "chunked", "more bytes"],
)
def test_other_answers_are_no_whole_body(wire: bytes) -> None:
    with pytest.raises(BadAnswer):
        WholeBody().feed(wire)


def test_a_refusal_is_quoted() -> None:
    with pytest.raises(BadAnswer, match=r"(?s)429.*full"):
        EventStream().feed(b'HTTP/1.1 429 Too Many Requests\r\ncontent-length: 8\r\n\r\n{"full"}')


# the client

Answerer = Callable[[dict[str, object], asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(reply: Answerer) -> AsyncIterator[int]:
    """A server that reads requests off keep-alive connections and lets ``reply`` answer; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reply(json.loads(await reader.readexactly(length)), writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1]


async def test_every_stream_sends_its_requests_on_one_connection() -> None:
    bodies: list[dict[str, object]] = []
    writers = set()

    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        bodies.append(body)
        writers.add(writer)
        writer.write(answer(GOOD))

    async with answering(reply) as port:
        exchanges = await play_all(port, WORK.asks(1), 5)
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
        (exchange,) = await play_all(port, work.asks(1), 5)
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
        exchanges = await play_all(port, work.asks(1), 0.5)
    run = summarize(Load(exchanges, 0.0), None)
    assert len(run.failures) == 3
    assert "429" in run.failures[0]
    assert "connection lost" in run.failures[1]
    assert "no complete answer after 0.5 s" in run.failures[2]
    assert run.tokens == 2


async def test_a_server_that_is_gone_is_a_failure() -> None:
    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        listening.close()
        writer.close()

    work = msgspec.structs.replace(WORK, streams=1, requests=2)
    async with answering(reply) as port:
        pass
    listening = await asyncio.start_server(lambda _, writer: reply({}, writer), "127.0.0.1", port)
    async with listening:
        exchanges = await play_all(port, work.asks(1), 5)
    assert "connection lost" in str(exchanges[0].error)
    assert "cannot connect" in str(exchanges[1].error)
    exchanges = await play_all(port, WORK.asks(1), 5)
    assert ["cannot connect" in str(exchange.error) for exchange in exchanges] == [True] * 4


async def test_load_runs_outside_of_an_event_loop() -> None:
    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        writer.write(answer(GOOD))

    async with answering(reply) as port:
        result = await asyncio.to_thread(load, WORK.asks(1), port, 5)
    assert summarize(result, None).failures == []
    assert result.client_cpu_s > 0


async def test_a_client_leaves_where_it_is_told_to() -> None:
    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        writer.write(answer([event("x")] * 3)[:-5])

    leaver = msgspec.structs.replace(ASK, leave_after=2)
    async with answering(reply) as port:
        exchanges = await play_all(port, [[leaver, leaver]], 5)
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
        (slow,) = await play_all(port, [[msgspec.structs.replace(ASK, pause_s=0.1)]], 5)
    assert slow.error is None
    assert slow.ended - slow.sent >= 0.1


async def test_an_open_loop_sends_at_its_times() -> None:
    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(answer(GOOD))

    asks = [[msgspec.structs.replace(ASK, at=at)] for at in (0.0, 0.1)]
    async with answering(reply) as port:
        first, second = await play_all(port, asks, 5, timed=True)
    assert first.error is None is second.error
    assert second.sent - first.sent == pytest.approx(0.1, abs=0.05)
    assert second.sent < first.ended


async def test_a_follower_repeats_what_was_said() -> None:
    prompts = []

    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        prompts.append(body["prompt"])
        writer.write(answer(GOOD))

    turn = Ask(body={"prompt": "q"}, tokens=2, follows=True)
    async with answering(reply) as port:
        await play_all(port, [[turn, turn]], 5)
    assert prompts == ["q", "qabq"]


async def test_a_stale_connection_is_replaced() -> None:
    replies = iter([True, False, True])

    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        if next(replies):
            writer.write(answer(GOOD))
        else:
            writer.close()

    async with answering(reply) as port:
        exchanges = await play_all(port, [[ASK, ASK]], 5)
    assert [exchange.error for exchange in exchanges] == [None, None]


# the figures


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


def test_raw_rates_count_what_they_say() -> None:
    run = raw.RawRun(prefill_s=1.0, decode_s=2.0, wall_s=4.0)
    assert run.decode_rate(WORK) == 2 * 2 * 1 / 2
    assert run.output_rate(WORK) == 2 * 2 * 2 / 4
    assert run.all_rate(WORK) == 2 * 2 * 5 / 4


# the two sides


def test_both_sides_get_the_same_context() -> None:
    work = msgspec.structs.replace(WORK, streams=40, prompt_tokens=200, tokens=100, threads=2)
    config = work.server_config(8123)
    assert config == {
        "server": {"host": "127.0.0.1", "port": 8123},
        "model": {"path": "m.gguf", "alias": "benchmark", "n_ctx": 20_480, "n_batch": 512, "n_ubatch": 512,
                  "n_seq_max": 40, "kv_unified": True, "threads": 2, "threads_batch": 2},
    }  # fmt: skip
    assert work.context_settings()["n_threads"] == 2
    assert "threads" not in work.context_settings()


def test_no_prompt_comes_twice() -> None:
    work = msgspec.structs.replace(WORK, prompt_tokens=16)
    prompts = [
        tuple(work.prompt(*key)) for key in ((run, s, r) for run in range(3) for s in range(8) for r in range(8))
    ]
    assert len(set(prompts)) == len(prompts)
    assert work.prompt(1, 2, 3) == work.prompt(1, 2, 3)


def test_models_are_found_by_name_or_path(tmp_path: Path) -> None:
    assert resolve_model("tiny-llama-chain")[0].is_file()
    own = tmp_path / "own.gguf"
    own.touch()
    assert resolve_model(str(own))[0] == own
    with pytest.raises(FileNotFoundError, match="tiny-llama-chain"):
        resolve_model("no-such-model")


def test_the_raw_loop_does_the_work() -> None:
    work = msgspec.structs.replace(WORK, model=str(resolve_model("tiny-llama")[0]), prompt_tokens=300, tokens=4)
    run = raw.run(work)
    assert 0 < run.prefill_s + run.decode_s <= run.wall_s


def test_the_raw_loop_says_why_it_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ModelLoadError"):
        raw.run(msgspec.structs.replace(WORK, model=str(tmp_path / "none.gguf")))


def test_a_server_that_dies_at_start_is_reported(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("no such model")
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(server.ServerFailure, match=r"(?s)exited with 3.*no such model"):
        server.wait_until_healthy(process, server.free_port(), "/healthz", log)


def test_a_server_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STOP_SECONDS", 0.5)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    with process.stdout as output:
        output.readline()
        server.stop(process)
    assert process.returncode == -9


def test_server_cpu_counts_children() -> None:
    child = "import time\nwhile time.process_time() < 0.1: pass\nprint(flush=True); input()"
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]).wait()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin as stdin, process.stdout as stdout:
        stdout.readline()
        seconds = server.Server(0, process.pid).cpu_seconds()
        stdin.write(b"\n")
    process.wait(10)
    assert seconds is None or seconds >= 0.09


# the report


def test_spread() -> None:
    assert spread([3.0, 1.0, 2.0], ".1f") == "2.0 (1.0-3.0)"
    assert spread([1234.5], ",.0f") == "1,234"


def test_table_lines_up(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"a": "1", "rate": "10"}, {"a": "16", "rate": "9"}])
    assert capsys.readouterr().out == " a  rate\n 1    10\n16     9\n"


def test_journal_appends_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.jsonl")
    journal.write("raw", wall_s=1.5)
    journal.write("serve", ttft_p50=float("nan"))
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        {"record": "raw", "wall_s": 1.5},
        {"record": "serve", "ttft_p50": None},
    ]
    Journal(None).write("raw")


def test_embeddings_are_measured_against_the_bare_loop(tiny_encoder: Callable[[str], Path]) -> None:
    options = Namespace(
        model=str(tiny_encoder("tiny-bert")), clients=[1, 2], inputs=3, tokens=[16], requests=2, threads=1, pairs=1,
        pin="none", timeout=30,
    )  # fmt: skip
    rows, failed = embeddings.measure(options, ["llamafast"], Journal(None))
    assert failed == []
    assert [(row["clients"], row["inputs x tokens"], row["server"], row["failed"]) for row in rows] == [
        ("1", "3x16", "raw loop", ""),
        ("1", "3x16", "llamafast", "0"),
        ("2", "3x16", "raw loop", ""),
        ("2", "3x16", "llamafast", "0"),
    ]
    assert all(float(row["of raw"]) > 0 for row in rows[1::2])


def test_the_shapes_are_those_of_the_command_line() -> None:
    nothing = Namespace(clients=None, inputs=None, tokens=None)
    assert {shape[2] for shape in embeddings.shapes(nothing)} == {16, 64, 256}
    assert {shape[0] for shape in embeddings.shapes(nothing)} == {1, 8, 32, 64}
    assert embeddings.shapes(Namespace(clients=[1, 4], inputs=None, tokens=None)) == [(1, 32, 64), (4, 32, 64)]
    assert embeddings.shapes(Namespace(clients=None, inputs=1, tokens=[5, 6])) == [(1, 1, 5), (1, 1, 6)]


EMBED = EmbeddingWork(model="m.gguf", clients=1, requests=2, inputs=2, tokens=3).asks(1)


async def test_vectors_are_counted_and_checked() -> None:
    bodies: list[dict[str, object]] = []

    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        bodies.append(body)
        data = [{"index": i, "embedding": "AAAAAA=="} for i in range(3 - len(bodies))]
        content = json.dumps({"data": data, "usage": {"prompt_tokens": 6, "total_tokens": 6}}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))

    async with answering(reply) as port:
        run = summarize(Load(await play_all(port, EMBED, 5), 0.0), None)
    assert run.failures == ["expected vectors, tokens (2, 6); got 1, 6"]
    assert (run.requests, run.tokens) == (1, 6)
    assert run.ttft_p50 == run.e2el_p50 > 0
    assert [set(body) for body in bodies] == [{"model", "input", "encoding_format"}] * 2


@pytest.mark.parametrize("body", [b"{", b'{"data": []}', b'{"error": {"message": "full"}}'])
def test_what_is_no_list_of_vectors_fails(body: bytes) -> None:
    with pytest.raises(Failure):
        read_answer(Exchange(EMBED[0][0], sent=0.0, ended=1.0, events=[(1.0, body)]))


@pytest.mark.parametrize(
    "arguments", [[], ["raw", "--tokens", "1"], ["serve", "--pairs", "0"], ["raw", "--pin", "none"]]
)
def test_the_command_line_refuses_what_makes_no_sense(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=server.ROOT, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert b"usage" in done.stderr


def test_the_reply_benchmark_measures_every_case(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["reply", "--tokens", "10", "--rounds", "1"])
    reply_benchmark.main()
    assert [line[:46].rstrip() for line in capsys.readouterr().out.splitlines()[1:]] == list(reply_benchmark.CASES)
