"""Thread counts and barrier spins, beside a neighbour."""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import monotonic, sleep

import pytest

from benchmarks.report import Journal
from benchmarks.server import Server, serving
from benchmarks.threads import busy_neighbour, measure_threads
from benchmarks.workload import Workload
from recipes import tiny_gguf


@pytest.mark.heavy
def test_every_setting_has_a_row(tmp_path: Path) -> None:
    work = Workload(
        model=str(tiny_gguf.build("tiny-llama")), streams=1, requests=1, prompt_tokens=4, tokens=4, sampling="greedy",
        threads=1, partitioned=False,
    )  # fmt: skip
    rows, failed = measure_threads(work, [0, 1], [20_000], 1, 30, Journal(tmp_path / "out"))
    assert [(row["threads"], row["spin"]) for row in rows] == [("chosen", "20,000"), ("1", "20,000")]
    assert rows[1]["÷ best fixed, quiet"] == "1.00"
    assert failed == []
    records = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert [record["place"] for record in records] == ["quiet", "quiet", "beside", "beside"]


def test_the_spin_reaches_the_process(tmp_path: Path) -> None:
    config = {"model": {"path": str(tiny_gguf.build("tiny-llama")), "threads": 1, "n_ctx": 256}}
    with serving(lambda port: config | {"server": {"port": port}}, None, {"GOMP_SPINCOUNT": "77"}) as server:
        environment = Path(f"/proc/{server.pid}/environ").read_bytes().split(b"\0")
    assert b"GOMP_SPINCOUNT=77" in environment


def test_a_neighbour_is_busy_and_goes_away() -> None:
    with busy_neighbour() as pid:
        start = monotonic()
        while (seconds := Server(0, pid).cpu_seconds()) is not None and seconds < 0.05:
            assert monotonic() < start + 60
            sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
