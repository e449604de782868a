"""``llamafast bench``: what is asked, what is told of it, and where it says no."""

from __future__ import annotations

import asyncio
import json
import signal
import ssl
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.answering import answering
from support.streamed_answers import DONE, answer, event, usage

from llamafast import cli
from llamafast.bench.address import read_address
from llamafast.bench.ask import Ask
from llamafast.bench.figures import Answer, Exchange
from llamafast.bench.load import Measured, Supply, Wanted
from llamafast.bench.prompts import Length, measured
from llamafast.bench.summary import Spread, summed_up


class Server:
    """Answers as a server with a token a word, and a template of five; ``refuses`` says with what."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.refuses = b""

    async def __call__(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.bodies.append(body)
        text = body["messages"][0]["content"] if "messages" in body else body["prompt"]
        prompt, tokens = len(text.split()) + 5, body["max_tokens"]
        if self.refuses and len(self.bodies) > 2:
            writer.write(self.refuses)
        elif body.get("stream"):
            events = [event("x") for _ in range(tokens - 1)]
            writer.write(answer([*events, event("x", "length"), usage(prompt, tokens, 2), DONE]))
        else:
            counts = {"prompt_tokens": prompt, "completion_tokens": tokens}
            whole = json.dumps({"choices": [{"message": {}}], "usage": counts}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(whole), whole))


async def bench(server: Server, *arguments: str) -> int:
    async with answering(server) as port:
        command = ["bench", f"http://127.0.0.1:{port}/v1", "--model", "m", *arguments]
        return await asyncio.to_thread(cli.main, command)


async def test_what_is_asked_is_what_was_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()
    sizes = (
        "--clients",
        "3",
        "--requests",
        "12",
        "--prompt-tokens",
        "40",
        "--shared-tokens",
        "20",
        "--answer-tokens",
        "6",
    )
    assert await bench(server, *sizes, "--fields", '{"temperature": 0}', "--json") == 0
    told = json.loads(capsys.readouterr().out)
    # two by which lengths are learned, one of each client to warm up
    asked = server.bodies[5:]
    assert (told["answers"], told["failed"], len(asked)) == (12, 0, 12)
    assert (told["prompt_tokens"], told["answer_tokens"], told["cached_tokens"]) == (40, 6, 2)
    assert told["ttft"]["n"] == told["whole"]["n"] == 12
    assert told["gaps"]["n"] == 12 * 5
    assert 0 < told["ttft"]["p50"] <= told["ttft"]["p90"] <= told["ttft"]["p99"] == told["ttft"]["longest"]
    assert told["busy_s"] <= told["seconds"]
    texts = [body["messages"][0]["content"] for body in asked]
    assert len(set(texts)) == 12
    assert len({tuple(text.split()[:15]) for text in texts}) == 1
    assert {json.dumps({name: body[name] for name in body if name != "messages"}) for body in asked} == {
        '{"model": "m", "stream": true, "stream_options": {"include_usage": true}, "max_tokens": 6, '
        '"ignore_eos": true, "temperature": 0}'
    }


async def test_whole_answers_have_no_first_token(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()
    arguments = (
        "--requests",
        "4",
        "--clients",
        "2",
        "--no-stream",
        "--may-end",
        "--api",
        "completions",
        "--no-warm-up",
    )
    assert await bench(server, *arguments) == 0
    page = capsys.readouterr().out
    assert "not streamed" in page
    assert [line.split() for line in page.splitlines() if line.startswith("first token")] == [
        ["first", "token", "-", "-", "-", "-", "0"]
    ]
    assert "p99 of 4 answers is the longest" in page
    assert all("ignore_eos" not in body and "stream" not in body for body in server.bodies)


async def test_requests_may_come_at_times_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()
    arguments = ("--rate", "50", "--duration", "0.2", "--no-warm-up", "--answer-tokens", "2", "--json", "--seed", "3")
    assert await bench(server, *arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert (
        told["answers"] == len(server.bodies) - 2 == len(Supply(Wanted(rate=50, seconds=0.2, seed=3), WORD).arrivals())
    )
    assert told["busy_s"] is None


@pytest.mark.heavy
async def test_an_interrupt_asks_for_what_was_measured() -> None:
    server = Server()
    async with answering(server) as port:
        command = [sys.executable, "-m", "llamafast", "bench", f"http://127.0.0.1:{port}", "--model", "m", "--json"]
        process = await asyncio.create_subprocess_exec(*command, "--duration", "600", stdout=asyncio.subprocess.PIPE)
        while len(server.bodies) < 100:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGINT)
        told, _ = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 0
    assert json.loads(told)["answers"] == len(server.bodies) - 10


async def test_what_went_wrong_is_told_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()
    server.refuses = b'HTTP/1.1 429 Too Many Requests\r\ncontent-length: 8\r\n\r\n{"full"}'
    assert await bench(server, "--requests", "3", "--clients", "1", "--no-warm-up", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["answers"], told["failed"]) == (0, 3)
    assert told["errors"] == {'429 Too Many Requests: {"full"}': 3}
    assert told["ttft"] == {"n": 0, "p50": None, "p90": None, "p99": None, "longest": None}


async def test_a_server_that_wants_something_else_is_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    async def refuse(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(b'HTTP/1.1 401 Unauthorized\r\ncontent-length: 9\r\n\r\n{"a key"}')

    async with answering(refuse) as port:
        assert await asyncio.to_thread(cli.main, ["bench", f"http://127.0.0.1:{port}", "--model", "m"]) == 1
    assert '401 Unauthorized: {"a key"}' in capsys.readouterr().err
    assert cli.main(["bench", "http://127.0.0.1:1"]) == 1
    assert "127.0.0.1:1: no server answers" in capsys.readouterr().err


async def test_a_key_is_sent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMAFAST_API_KEY", "sk-1")
    assert b"Authorization: Bearer sk-1\r\n" in Ask(body={}).message(read_address("http://h", "sk-1"))
    heads: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        assert await asyncio.to_thread(cli.main, ["bench", f"http://127.0.0.1:{port}"]) == 1
    assert b"Authorization: Bearer sk-1\r\n" in heads[0]
    assert "GET /v1/models is answered with 403" in capsys.readouterr().err


@pytest.mark.heavy
async def test_a_server_may_speak_tls(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server = Server()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await server(json.loads(await reader.readexactly(length)), writer)
                await writer.drain()
        writer.close()

    listening = await asyncio.start_server(converse, "localhost", 0, ssl=context)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        command = ["bench", f"https://localhost:{port}", "--model", "m", "--requests", "2", "--clients", "1", "--json"]
        command += ["--answer-tokens", "2", "--no-warm-up"]
        with authority.cert_pem.tempfile() as trusted:
            monkeypatch.setenv("SSL_CERT_FILE", trusted)
            assert await asyncio.to_thread(cli.main, command) == 0
        assert json.loads(capsys.readouterr().out)["answers"] == 2
        monkeypatch.delenv("SSL_CERT_FILE")
        assert await asyncio.to_thread(cli.main, command) == 1
    assert "certificate" in capsys.readouterr().err.lower()


@pytest.mark.parametrize(
    ("url", "authority", "prefix"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", ""),
        ("http://[::1]:8000/v1/", "[::1]:8000", ""),
        ("https://example.org/llm/v1", "example.org:443", "/llm"),
    ],
)
def test_an_address_may_have_the_path_of_the_api(url: str, authority: str, prefix: str) -> None:
    address = read_address(url)
    assert (address.url.authority, address.url.prefix) == (authority, prefix)
    assert (address.tls is None) == url.startswith("http:")


@pytest.mark.parametrize(
    "arguments", [["--clients", "0"], ["--duration", "-1"], ["--fields", "[]"], ["--fields", "{"], ["--rate", "nan"]]
)
def test_numbers_out_of_range_are_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["bench", "http://h", *arguments])


def test_every_option_is_on_its_page() -> None:
    (commands,) = (action for action in cli.parser()._actions if action.dest == "command")
    page = (Path(__file__).parents[2] / "docs" / "bench.md").read_text()
    for action in commands.choices["bench"]._actions:
        for name in set(action.option_strings) - {"-h", "--help"}:
            assert f"`{name}`" in page, name


WORD = Length(5, 1)


def test_lengths_are_what_two_answers_say() -> None:
    assert measured((16, 21), (80, 85)) == WORD
    assert WORD.words(40) == 35
    assert WORD.words(1) == 1


def exchange(sent: float, *times: float, ended: float) -> Exchange:
    events = [(time, event("x")) for time in times]
    return Exchange(
        Ask(body={}), sent, [*events, (ended, event("", "stop")), (ended, usage(4, len(times))), (ended, DONE)], ended
    )


def test_rates_are_those_of_the_time_in_which_all_clients_were_busy() -> None:
    """One client asks twice, the other once; nothing was left at 2.0, and half of the last answer came after."""
    exchanges = [
        exchange(0.0, 0.5, 1.0, ended=1.0), exchange(1.0, 1.5, 2.5, ended=2.5), exchange(0.0, 1.0, 2.0, ended=2.0),
    ]  # fmt: skip
    summary = summed_up("u", Wanted(clients=2, requests=3), Measured(exchanges, 2.0))
    assert (summary.seconds, summary.busy_s) == (2.5, 2.0)
    assert summary.output_tokens_per_s == (2 + 1 + 2) / 2.0
    assert summary.requests_per_s == (1 + 0.5 + 1) / 2.0
    assert summary.ttft.p50 == 0.5
    assert summary.gaps.longest == 1.0


def test_percentiles_are_times_that_were_measured() -> None:
    assert Spread.of([]) == Spread(0)
    hundred = Spread.of([k / 100 for k in range(1, 101)])
    assert (hundred.p50, hundred.p90, hundred.p99, hundred.longest) == (0.5, 0.9, 0.99, 1.0)
    assert Spread.of([3.0]) == Spread(1, 3.0, 3.0, 3.0, 3.0)


def test_a_supply_ends_after_so_many_requests() -> None:
    supply = Supply(Wanted(requests=4, seconds=None), WORD)
    two = zip(supply, supply, strict=False)
    assert len(list(two)) == 2
    assert supply.dry_at is not None
    assert Counter(len(list(iter(supply))) for _ in range(2)) == {0: 2}


def test_an_answer_in_one_piece_counts_by_the_time_it_took() -> None:
    whole = Exchange(
        Ask(body={}, stream=False), 1.0, [(3.0, b'{"usage": {"prompt_tokens": 3, "completion_tokens": 8}}')], 3.0
    )
    summary = summed_up("u", Wanted(stream=False), Measured([whole], 2.0))
    assert summary.output_tokens_per_s == 4.0
    assert summary.events_per_token is None
    assert summary.whole.p50 == 2.0
    assert Answer([], 8, 0, 2.0, 3).tpot is None
