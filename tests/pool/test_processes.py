"""Children that die, are killed, come and go, in numbers: stubs without a model, under a real parent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from msgspec import Raw
from pool.processes import Server, alive, said, started

from llamafast.pool.children import COMMAND
from llamafast.pool.wire import Begin, line

TWO = {"models": [{"alias": name, "path": "m", "load": "on_demand"} for name in ("a", "b")]}
PROMPT = {"prompt": "hi", "max_tokens": 3}


def test_answers_that_a_death_cuts_say_so(folder: Path) -> None:
    with started(folder, TWO, stubs=True) as server:
        ask = server.client.post
        # nothing has come of it yet
        stuck = threading.Thread(target=lambda: kill_soon(server), daemon=True)
        stuck.start()
        answer = ask("/v1/completions", json={**PROMPT, "model": "a", "prompt": "stay"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "model_died")
        server.until(lambda: server.states()["a"] != "loaded")
        # some of it has: a stream's last event is the error, without the mark of a good end
        dying = {"model": "a", "prompt": "die", "max_tokens": 10}
        answer = ask("/v1/completions", json={**dying, "stream": True})
        assert answer.status_code == 200
        assert answer.text.count("[DONE]") == 0
        assert answer.text.endswith("}\n\n")
        *_, last = answer.text.rstrip().split("\n\n")
        assert '"code":"model_died"' in last
        assert len(answer.text.split("data: {")) >= 5
        # and anything else breaks off
        server.until(lambda: server.states()["a"] != "loaded")
        server.load("a")
        with pytest.raises(httpx.RemoteProtocolError):
            ask("/v1/completions", json=dying)
        server.until(lambda: server.process.log.count("ended by signal 9") >= 3)
        assert "Traceback" not in server.process.log


def test_a_process_that_hangs_is_started_again_and_costs_its_own_requests(folder: Path) -> None:
    config = {**TWO, "pool": {"stall_seconds": 4.0}}
    with started(folder, config, stubs=True) as server:
        ask = server.client.post
        beside = ask("/v1/completions", json={**PROMPT, "model": "b"}).json()["pid"]
        first = ask("/v1/completions", json={**PROMPT, "model": "a"}).json()["pid"]
        lost = ask("/v1/completions", json={**PROMPT, "model": "a", "prompt": "hang"})
        assert (lost.status_code, lost.json()["error"]["code"]) == (502, "model_died")
        again = ask("/v1/completions", json={**PROMPT, "model": "a"})
        assert again.status_code == 200
        assert again.json()["pid"] not in (first, beside)
        assert not alive(first)
        assert ask("/v1/completions", json={**PROMPT, "model": "b"}).json()["pid"] == beside
        assert "a has failed: it has not answered for" in server.process.log
        assert "b has failed" not in server.process.log


def test_what_is_not_installed_is_told(tmp_path: Path) -> None:
    (tmp_path / "cfg.json").write_text('{"model": {"path": "m.gguf", "ttl_seconds": 5}, "server": {"port": 0}}')
    code = "import sys; sys.modules['websockets'] = None; from llamafast.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "serve", str(tmp_path / "cfg.json")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "need the package websockets" in run.stderr
    assert "pip install 'llamafast[pool]'" in run.stderr


def kill_soon(server: Server) -> None:
    server.until(lambda: "stays" in server.process.log)
    for pid in server.children():
        os.kill(pid, signal.SIGKILL)


def test_a_parent_that_is_killed_leaves_no_process_and_the_next_one_no_file(folder: Path) -> None:
    config = {"models": [{"alias": "a", "path": "m"}, {"alias": "b", "path": "m"}]}
    with started(folder, config, stubs=True) as server:
        children = server.children()
        assert len(children) == 2
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(30)
        server.until_dead(children)
    left = list((folder / "tmp").iterdir())
    assert [one.name.startswith("llamafast-pool-") for one in left] == [True]
    with started(folder, config, stubs=True) as server:
        assert [one for one in (folder / "tmp").iterdir() if one in left] == []
        server.process.terminate()
        assert server.process.wait(30) == 0
    assert list((folder / "tmp").iterdir()) == []


@pytest.mark.scale
def test_a_child_whose_parent_is_gone_before_it_can_be_told_ends_without_a_word() -> None:
    begin = Begin(Raw(b'{"model": {"path": "m"}, "server": {"uds": "s"}}'), "", verbose=False, max_bytes=1, n_models=1)
    for told in (b"", line(begin)):
        ours, its = socket.socketpair()
        with its:
            command = [*COMMAND, str(its.fileno())]
            process = subprocess.Popen(command, pass_fds=[its.fileno()], stderr=subprocess.PIPE)
        with process:
            ours.sendall(told)
            ours.close()
            assert process.wait(30) == 1
            assert process.stderr is not None
            assert b"Traceback" not in process.stderr.read()


@pytest.mark.scale
def test_twenty_first_requests_start_one_process(folder: Path) -> None:
    with started(folder, TWO, stubs=True) as server:
        answers: list[int] = []

        def ask() -> None:
            answer = httpx.post(
                f"{server.base_url}/v1/completions",
                json={**PROMPT, "model": "a"},
                headers={"x-api-key": "secret-b"},
                timeout=60,
            )
            answers.append(answer.json()["pid"])

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(answers) == 20
        assert set(answers) == set(server.children())
        assert server.process.log.count("a is loaded") == 1


@pytest.mark.scale
def test_a_signal_lets_streams_end_and_takes_the_children_along(folder: Path) -> None:
    with started(folder, TWO, stubs=True) as server:
        body = {**PROMPT, "model": "a", "stream": True, "max_tokens": 100}
        with server.client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            children = server.children()
            server.process.terminate()
            rest = list(lines)
        assert rest[-2:] == ["data: [DONE]", ""]
        assert server.process.wait(30) == 0
        assert not any(map(alive, children))


@pytest.mark.scale
def test_the_end_waits_for_no_child_that_hangs_and_no_client_that_does_not_read(folder: Path) -> None:
    with started(folder, {**TWO, "server": {"drain_seconds": 0.5}}, stubs=True) as server, socket.socket() as client:
        for name in ("a", "b"):
            server.load(name)
            server.until_state(name, "loaded")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.process.port))
        body = json.dumps({**PROMPT, "model": "a", "stream": True, "max_tokens": 10**6}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-api-key: secret-a\r\ncontent-length: {len(body)}"
        client.sendall(head.encode() + b"\r\n\r\n" + body)
        children = server.children()
        time.sleep(1)
        os.kill(children[1], signal.SIGSTOP)
        began = time.monotonic()
        server.process.terminate()
        server.process.wait(30)
        assert time.monotonic() - began < 0.5 + 5 + 10
        server.until_dead(children)
    assert list((folder / "tmp").iterdir()) == []


@pytest.mark.scale
def test_a_hundred_kills_lose_only_the_requests_of_the_killed(folder: Path) -> None:
    """With a stream of each model open all the time: those of the one that nobody kills never notice."""
    config = {"models": [{"alias": "victim", "path": "m"}, {"alias": "other", "path": "m"}]}
    ends: list[str] = []
    faults: list[str] = []
    done = threading.Event()
    with started(folder, config, stubs=True) as server:

        def listen(model: str, number: int) -> None:
            with httpx.Client(base_url=server.base_url, headers={"x-api-key": "secret-a"}, timeout=60) as client:
                while not done.is_set():
                    body = {**PROMPT, "model": model, "stream": True, "max_tokens": 40}
                    text = client.post("/v1/completions", json=body).text
                    if model == "other":
                        told = [event["choices"][0]["text"] for event in said(text)]
                        if told != [f"{i} " for i in range(40)] or not text.endswith("[DONE]\n\n"):
                            faults.append(text)
                    else:
                        ends.append("whole" if text.endswith("[DONE]\n\n") else "lost" if "model_" in text else text)

        listeners = [
            threading.Thread(target=listen, args=(model, i)) for model in ("victim", "other") for i in range(3)
        ]
        for thread in listeners:
            thread.start()
        (other,) = {pid for pid in server.children() if _serves(server, pid, "other")}
        descriptors = server.n_descriptors()
        for _ in range(100):
            server.until(lambda: server.states()["victim"] == "loaded")
            for pid in server.children():
                if pid != other:
                    os.kill(pid, signal.SIGKILL)
            server.until(lambda: server.states()["victim"] != "loaded")
            server.load("victim")  # an administrator does not wait
        done.set()
        for thread in listeners:
            thread.join()
        assert faults == []
        assert set(ends) <= {"whole", "lost"}
        assert ends.count("lost") >= 20
        assert other in server.children()
        assert server.n_descriptors() <= descriptors + 8
        assert "Traceback" not in server.process.log


def _serves(server: Server, pid: int, name: str) -> bool:
    return server.client.post("/v1/completions", json={**PROMPT, "model": name}).json()["pid"] == pid


@pytest.mark.scale
def test_fifty_loads_and_unloads_leave_nothing_behind(folder: Path) -> None:
    with started(folder, TWO, stubs=True) as server:
        sockets = folder / "tmp"

        def once() -> None:
            assert server.client.post("/v1/completions", json={**PROMPT, "model": "a"}).json()["model"] == "a"
            server.unload("a")
            server.until_state("a", "unloaded")

        def kept() -> tuple[int, int, list[str]]:
            files = sorted(one.name for one in sockets.rglob("*"))[1:]
            return server.n_descriptors(), server.n_threads(), files

        for _ in range(10):
            once()
        server.until(lambda: not server.children())
        resident, before = server.resident_kb(), kept()
        for _ in range(50):
            once()
        server.until(lambda: not server.children())
        assert server.resident_kb() - resident < 512
        after = kept()
        assert after[0] <= before[0] + 1
        assert after[1] <= before[1]
        assert after[2] == before[2]
