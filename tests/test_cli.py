"""The commands of ``llamafast`` that need no model."""

from __future__ import annotations

import json
import subprocess
import sys


def test_the_grammar_checker_answers_line_by_line():
    command = [sys.executable, "-m", "llamafast", "grammar", "check"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for line, result in (('{"schema": {"type": "integer"}, "data": 3}', "accepted"), ("nonsense", "uncompilable")):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["result"] == result
        process.stdin.close()
        assert process.wait(10) == 0
