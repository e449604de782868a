"""``llamafast batch`` from its command line, with an engine of its own and against a server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from benchmarks.server import Server
from serve.conftest import model_config


def batch(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llamafast", "batch", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def written(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def results(path: Path) -> dict[str, Any]:
    told = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["custom_id"] for line in told}) == len(told)
    return {line["custom_id"]: line for line in told}


def ask(custom_id: str, trigger: str = "text", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"<|s_{trigger}|>"}]
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"messages": messages, **body},
    }


TEXT = "Hello there, this reply is fixed."


def said(line: dict[str, Any]) -> str:
    return str(line["response"]["body"]["choices"][0]["message"]["content"])


@pytest.fixture(params=["gguf", *(pytest.param(how, marks=pytest.mark.heavy) for how in ("config", "url"))])
def engine(request: pytest.FixtureRequest, tiny_model: Any, tmp_path: Path) -> list[object]:
    """How the command is told what answers."""
    path = tiny_model("tiny-scripted")
    if request.param == "gguf":
        return [path]
    if request.param == "config":
        return [written(tmp_path / "cfg.json", model_config(path, 0, alias="scripted"))]
    server: Server = request.getfixturevalue("scripted_server")
    return ["--url", f"http://127.0.0.1:{server.port}"]


def test_each_line_has_its_result(engine: list[object], tmp_path: Path) -> None:
    given = written(
        tmp_path / "in", *(ask(f"r{i}") for i in range(20)), ask("bad", n=0),
        {"custom_id": "m", "url": "/v1/messages", "body": {"max_tokens": 30, "messages": ask("")["body"]["messages"]}},
        {"custom_id": "nowhere", "url": "/v1/none", "body": {}},
    )  # fmt: skip
    done = batch(*engine, given, tmp_path / "out")
    assert done.returncode == 1, done.stderr
    told = results(tmp_path / "out")
    assert [said(told[f"r{i}"]) for i in range(20)] == [TEXT] * 20
    assert told["m"]["response"]["body"]["content"][0]["text"] == TEXT
    statuses = [told[name]["response"]["status_code"] for name in ("bad", "nowhere")]
    assert statuses == [400, 404]
    assert told["bad"]["response"]["body"]["error"]["param"] == "n"
    failures = f"llamafast: {tmp_path}/out: 2 of its answers failed; each says why\n"
    assert done.stderr.endswith(failures)
    # again: nothing is left, and the failures are not forgotten
    before = (tmp_path / "out").read_bytes()
    again = batch(*engine, given, tmp_path / "out")
    assert (again.returncode, again.stderr) == (1, failures)
    assert (tmp_path / "out").read_bytes() == before


@pytest.mark.heavy
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interruption_costs_what_was_under_way_and_leaves_nobody_behind(
    tiny_model: Any, tmp_path: Path, end: signal.Signals
) -> None:
    given = written(tmp_path / "in", *(ask(f"r{i}", max_tokens=8) for i in range(400)))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "llamafast", "batch", str(tiny_model("tiny-scripted")), str(given), str(out)]
    folder = {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | folder) as process:
        until = time.monotonic() + 30
        while (not out.exists() or out.read_bytes().count(b"\n") < 20) and time.monotonic() < until:
            time.sleep(0.01)
        process.send_signal(end)
        process.wait(30)
    n_done = out.read_bytes().count(b"\n")
    assert 20 <= n_done < 400
    until = time.monotonic() + 30
    while (left := serving(tmp_path)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left
    assert (list(tmp_path.glob("llamafast-*")) == []) == (end != signal.SIGKILL)
    if end == signal.SIGTERM:
        assert batch(tiny_model("tiny-scripted"), given, out).returncode == 0
        assert results(out).keys() == {f"r{i}" for i in range(400)}


def serving(folder: Path) -> list[bytes]:
    """Servers whose config is below ``folder``."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(folder).encode() in (told := path.read_bytes()) and b"serve" in told:
                found.append(told)
    return found


@pytest.mark.heavy
def test_a_server_that_dies_ends_the_batch(tiny_model: Any, tmp_path: Path) -> None:
    path = written(tmp_path / "cfg.json", model_config(tiny_model("tiny-scripted"), 0, n_ctx=-1))
    given = written(tmp_path / "in", ask("a"))
    assert batch(path, given, tmp_path / "out").returncode == 1
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF nothing")
    done = batch(broken, given, tmp_path / "out")
    assert (done.returncode, "has ended" in done.stderr) == (1, True), done.stderr


@pytest.mark.heavy
def test_a_full_disk_is_told_and_the_batch_goes_on_later(scripted_server: Server, tmp_path: Path) -> None:
    given = written(tmp_path / "in", *(ask(f"r{i}") for i in range(60)))
    url, out = f"http://127.0.0.1:{scripted_server.port}", tmp_path / "out"
    command = [sys.executable, "-m", "llamafast", "batch", "--url", url, given, out]
    room = f"ulimit -f 8; exec {' '.join(map(str, command))}"  # KiB
    done = subprocess.run(["bash", "-c", room], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "out: File too large; the batch goes on from here when it is run again" in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert 0 < out.stat().st_size <= 8192
    n_done = len(results(out))
    assert 0 < n_done < 60
    assert batch("--url", url, given, out).returncode == 0
    assert results(out).keys() == {f"r{i}" for i in range(60)}


@pytest.mark.heavy
def test_what_cannot_be_run(tmp_path: Path) -> None:
    given = written(tmp_path / "in", ask("a"))
    for arguments, told in (
        ([tmp_path / "none.gguf", given, tmp_path / "out"], "none.gguf"),
        ([tmp_path / "none.json", given, tmp_path / "out"], "none.json"),
        (["--url", "nowhere", given, tmp_path / "out"], "no address"),
        ([given, tmp_path / "out"], "which model?"),
    ):
        done = batch(*arguments)
        assert (done.returncode, told in done.stderr) == (1, True), done.stderr
    assert batch("--url", "http://x", tmp_path / "cfg.json", given, tmp_path / "out").returncode == 2
