"""Servers with a disk_cache: what one has computed the next one finds, however the first one ended."""

from __future__ import annotations

import json
import re
import signal
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.server_process import PATIENT, Process

from llamafast.series import DISK_SERIES

PROMPT = [33 + (i * 7) % 250 for i in range(300)]


def start(tmp_path: Path, model: Path) -> Process:
    config = {
        "server": {"port": 0},
        "model": {"path": str(model), "alias": "tiny", "n_ctx": 4096, "threads": 1},
        "disk_cache": {"path": str(tmp_path / "disk"), "max_bytes": 10**9},
    }
    process = Process(tmp_path, config, program=PATIENT)
    process.until_serving()
    return process


def ask(process: Process, prompt: list[int]) -> dict[str, Any]:
    body = json.dumps({"model": "tiny", "prompt": prompt, "max_tokens": 8, "temperature": 0}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{process.port}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def cached(answer: dict[str, Any]) -> int:
    details: dict[str, int] = answer["usage"]["prompt_tokens_details"]
    return details["cached_tokens"]


def series(process: Process) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{process.port}/metrics", timeout=30) as response:
        return {name: float(value) for name, value in re.findall(r"^([^#\s]+) (\S+)$", response.read().decode(), re.M)}


def until(process: Process, name: str, least: float) -> None:
    end = time.monotonic() + 120
    while series(process)[name] < least:
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    "end", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.heavy)], ids=lambda end: end.name
)
def test_a_prompt_is_found_again_by_the_next_server(tmp_path: Path, tiny_model: Any, end: signal.Signals) -> None:
    process = start(tmp_path, tiny_model("tiny-llama"))
    first = ask(process, PROMPT)
    assert cached(first) == 0
    if end == signal.SIGKILL:
        until(process, "llamafast:disk_cache_entries", 1)  # nobody has asked for anything for a while
    process.send_signal(end)
    process.wait(30)
    process = start(tmp_path, tiny_model("tiny-llama"))
    try:
        until(process, "llamafast:disk_cache_entries", 1)
        again = ask(process, PROMPT)
        assert again["choices"][0]["text"] == first["choices"][0]["text"]
        assert cached(again) == len(PROMPT) - 1
        found = series(process)
        assert found["llamafast:prefix_cache_hits_disk_total"] == len(PROMPT) - 1
        assert found["batch_server:sequence_cache_hits_total"] == 1
        assert found['llamafast:disk_cache_reads_total{result="hit"}'] == 1
        assert found["llamafast:prefix_cache_hits_ram_total"] == 0
        names = {re.sub("(_bucket|_sum|_count)?({.*)?$", "", name) for name in found}
        assert {one.name for one in DISK_SERIES} <= names
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in process.log


@pytest.mark.heavy
def test_prompts_after_a_long_warm_up_are_found_as_the_first_ones_were(tmp_path: Path, tiny_model: Any) -> None:
    """More of them than there are sequence ids, ten times over."""
    model = tiny_model("tiny-llama")
    process = start(tmp_path, model)
    prompts = [[40 + k // 200, 40 + k % 200, *PROMPT] for k in range(640)]
    for prompt in prompts:
        ask(process, prompt)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    process = start(tmp_path, model)
    try:
        until(process, "llamafast:disk_cache_entries", 640)
        hits = [cached(ask(process, prompt)) for prompt in prompts]
        assert set(hits) == {len(PROMPT) + 1}
    finally:
        process.kill()
        process.wait()
