"""The commands."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks import server
from benchmarks.micro import reply as reply_benchmark


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
