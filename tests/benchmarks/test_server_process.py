"""The server under test as a process: its start, its end, its CPU time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import server


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
    process.wait(30)
    assert seconds is None or seconds >= 0.09
