"""Tables and JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.report import Journal, print_table, spread


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
