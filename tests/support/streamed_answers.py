"""Answers as servers stream them, byte for byte, and the request that they answer."""

from __future__ import annotations

import json
from collections.abc import Iterable

from benchmarks.workload import Workload

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
