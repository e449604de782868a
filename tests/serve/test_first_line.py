"""Somebody who knows llama-server only: 8 slots, a key, 4,096 tokens of context and q8_0 keys."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.server_process import Process

from llamafast import cli

HABIT = ["-m", "MODEL", "-c", "4096", "-np", "8", "-ctk", "q8_0", "--api-key", "secret", "--port", "0"]


def test_the_first_error_names_the_command_that_works(capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        with pytest.raises(SystemExit, match="2"):
            cli.main(arguments)
        return capsys.readouterr().err

    line = " ".join(HABIT)
    assert said(*HABIT).endswith(f"did you mean `llamafast serve {line}`?\n")
    assert said("sevre", "m.gguf").endswith("did you mean `llamafast serve m.gguf`?\n")
    assert "-n: requests say max_tokens" in said("serve", *HABIT, "-n", "100")


@pytest.mark.heavy
def test_and_that_one_serves(tmp_path: Path, smollm2: Path) -> None:
    flags = " ".join(HABIT).replace("MODEL", str(smollm2))
    with Process(tmp_path, {"server": {}}, program=f"-m llamafast serve {flags} -t 1 -C") as process:
        process.until_serving()
        with process.connect(b"GET /v1/models HTTP/1.0\r\n\r\n") as connection:
            assert b" 401 " in connection.recv(65536).splitlines()[0]
        head = b"authorization: Bearer secret\r\n"
        with process.connect(b"GET /props HTTP/1.0\r\n" + head + b"\r\n") as connection:
            told = b"".join(iter(lambda: connection.recv(65536), b""))
        assert json.loads(told.partition(b"\r\n\r\n")[2])["total_slots"] == 8
        body = json.dumps({"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}).encode()
        request = b"POST /v1/chat/completions HTTP/1.0\r\n" + head + b"content-length: %d\r\n\r\n" % len(body) + body
        with process.connect(request) as connection:
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert b" 200 " in answer.splitlines()[0]
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["message"]["content"]
        process.terminate()
        process.ended(30)
    assert "context  4096 cells, 8 sequences" in process.log
    assert "cache    keys q8_0, values f16" in process.log
    assert "the process list shows --api-key" in process.log
    assert "memory   weights" in process.log
    assert "chat     template from GGUF; tool calls: " in process.log
