"""``llamafast bench`` on a server of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llamafast import cli


def test_a_real_server_is_measured(tiny_server: Any, capsys: pytest.CaptureFixture[str]) -> None:
    # of few words, which have some tokens each: other ones may be a quarter longer
    arguments = ["--clients", "4", "--requests", "8", "--prompt-tokens", "60", "--answer-tokens", "8"]
    assert cli.main(["bench", f"http://127.0.0.1:{tiny_server.port}", *arguments, "--seed", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["answers"], told["answer_tokens"], told["errors"]) == ("tiny/llama", 8, 8, {})
    assert abs(told["prompt_tokens"] - 60) < 10
    assert told["output_tokens_per_s"] > 0
