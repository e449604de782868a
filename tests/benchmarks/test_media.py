"""What pictures beside text are said to cost."""

from __future__ import annotations

import argparse

import pytest

from benchmarks.media import WITH, WITHOUT, chosen, interval, ratios, told

ROUND = {
    "llamafast": {"first": 1.0, "second": 0.01, "other question": 0.1},
    "llama-server": {"first": 2.0, "second": 0.02, "other question": 0.1},
}


def test_what_was_not_measured_is_in_no_ratio():
    assert ratios(ROUND) == {
        "second ÷ first": 0.01,
        "first ÷ llama-server's": 0.5,
        "second ÷ llama-server's": 0.5,
        "other question ÷ llama-server's": 1.0,
    }
    assert ratios({"llamafast": {"eight at once": 2.0}}) == {}


def test_a_server_that_takes_more_cpu_time_is_the_slower_one():
    found = {WITH: {"rate": 90.0, "CPU": 4.0}, WITHOUT: {"rate": 100.0, "CPU": 2.0}}
    assert list(ratios(found).values()) == [0.9, 0.5]


def test_a_median_is_known_once_there_are_enough_values():
    """By binomial chances: five may all lie on one side of it, and of ten the outer two do not count."""
    assert interval([1.0] * 5) == ""
    assert interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == ", 95 %: 1.000-6.000"
    assert interval([float(n) for n in range(10)]) == ", 95 %: 1.000-8.000"


def test_a_round_is_told_before_the_next_one_begins(capsys):
    def rounds():
        for n in range(2):
            assert capsys.readouterr().out.count("second ÷ first") == n
            yield ROUND

    told(rounds())
    assert "llama-server: first  2.0000 (2.0000-2.0000)" in capsys.readouterr().out


def test_only_what_can_be_measured_is_asked_for():
    assert chosen("text,looks") == ["text", "looks"]
    with pytest.raises(argparse.ArgumentTypeError, match="video: none of looks, burst, beside, text"):
        chosen("looks,video")
