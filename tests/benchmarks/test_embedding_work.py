"""Embeddings: what is asked, what counts as an answer, and the bare loop beside it."""

from __future__ import annotations

import asyncio
import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
from support.answering import answering

from benchmarks import embeddings
from benchmarks.embedding_work import EmbeddingWork
from benchmarks.report import Journal
from llamafast.bench.address import loopback
from llamafast.bench.client import play_all
from llamafast.bench.figures import Exchange, Failure, Load, read_answer, summarize

EMBED = EmbeddingWork(model="m.gguf", clients=1, requests=2, inputs=2, tokens=3).asks(1)


@pytest.mark.heavy
def test_embeddings_are_measured_against_the_bare_loop(tiny_encoder: Callable[[str], Path], tmp_path: Path) -> None:
    options = Namespace(
        model=str(tiny_encoder("tiny-bert")), clients=[1, 2], inputs=3, tokens=[16], requests=2, threads=1, pairs=2,
        pin="none", timeout=30,
    )  # fmt: skip
    rows, failed = embeddings.measure(options, ["llamafast"], Journal(tmp_path / "out"))
    assert failed == []
    assert [(row["clients"], row["inputs x tokens"], row["server"], row["failed"]) for row in rows] == [
        ("1", "3x16", "raw loop", ""),
        ("1", "3x16", "llamafast", "0"),
        ("2", "3x16", "raw loop", ""),
        ("2", "3x16", "llamafast", "0"),
    ]
    assert all(float(row["of raw"].split()[0]) > 0 for row in rows[1::2])
    records = [json.loads(line)["record"] for line in (tmp_path / "out").read_text().splitlines()]
    # each is first in every other pair
    assert records == ["served", "raw", "raw", "served", "memory"] * 2


def test_the_shapes_are_those_of_the_command_line() -> None:
    nothing = Namespace(clients=None, inputs=None, tokens=None)
    assert {shape[2] for shape in embeddings.shapes(nothing)} == {16, 64, 256}
    assert {shape[0] for shape in embeddings.shapes(nothing)} == {1, 8, 32, 64}
    assert embeddings.shapes(Namespace(clients=[1, 4], inputs=None, tokens=None)) == [(1, 32, 64), (4, 32, 64)]
    assert embeddings.shapes(Namespace(clients=None, inputs=1, tokens=[5, 6])) == [(1, 1, 5), (1, 1, 6)]


async def test_vectors_are_counted_and_checked() -> None:
    bodies: list[dict[str, object]] = []

    async def reply(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
        bodies.append(body)
        data = [{"index": i, "embedding": "AAAAAA=="} for i in range(3 - len(bodies))]
        content = json.dumps({"data": data, "usage": {"prompt_tokens": 6, "total_tokens": 6}}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))

    async with answering(reply) as port:
        run = summarize(Load(await play_all(loopback(port), EMBED, 5), 0.0), None)
    assert run.failures == ["expected vectors, tokens (2, 6); got 1, 6"]
    assert (run.requests, run.tokens) == (1, 6)
    assert run.ttft_p50 == run.e2el_p50 > 0
    assert [set(body) for body in bodies] == [{"model", "input", "encoding_format"}] * 2


@pytest.mark.parametrize("body", [b"{", b'{"data": []}', b'{"error": {"message": "full"}}'])
def test_what_is_no_list_of_vectors_fails(body: bytes) -> None:
    with pytest.raises(Failure):
        read_answer(Exchange(EMBED[0][0], sent=0.0, ended=1.0, events=[(1.0, body)]))
