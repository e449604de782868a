"""Kills of real children under load: what they cost, and whom."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from pool.processes import ASK, Server, answered, said, started
from websockets.sync.client import connect

pytestmark = pytest.mark.scale

N_KILLS = 100


class Listeners:
    """Threads that have streams open all the time: one of ``chat``, which says ``text``, and two of ``other``."""

    def __init__(self, server: Server, text: str) -> None:
        self.ends: list[str] = []
        self.faults: list[str] = []
        self.begun = threading.Event()
        self._server = server
        self._text = text
        self._done = threading.Event()
        self._threads = [threading.Thread(target=one) for one in (self._hear, self._lose, self._lose)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _hear(self) -> None:
        with self._client() as client:
            while not self._done.is_set():
                text = client.post("/v1/chat/completions", json={**ASK, "model": "chat", "stream": True}).text
                whole = "".join(one["choices"][0]["delta"].get("content") or "" for one in said(text))
                if whole != self._text or not text.endswith("[DONE]\n\n"):
                    self.faults.append(text)
                time.sleep(0.02)  # a child that starts needs a CPU too

    def _lose(self) -> None:
        body = {"model": "other", "prompt": "x", "max_tokens": 900, "stream": True, "ignore_eos": True}
        with self._client() as client:
            while not self._done.is_set():
                with client.stream("POST", "/v1/completions", json=body) as answer:
                    last = ""
                    for line in answer.iter_lines():
                        last = line or last
                        if answer.status_code == 200:
                            self.begun.set()
                known = "whole" if last == "data: [DONE]" else "lost" if '"code":"model_' in last else last
                self.ends.append(known)

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self._server.base_url, headers={"x-api-key": "secret-a"}, timeout=60)


def test_a_hundred_kills_of_a_real_child_lose_only_its_own_requests(
    folder: Path, chat: dict[str, Any], other: dict[str, Any]
) -> None:
    with started(folder, {"models": [chat, other]}) as server:
        (bystander,) = server.children()
        alone = server.client.post("/v1/chat/completions", json={**ASK, "model": "chat"}).json()
        listeners = Listeners(server, alone["choices"][0]["message"]["content"])
        server.until_state("other", "loaded")
        descriptors = server.n_descriptors()
        for _ in range(N_KILLS):
            server.until_state("other", "loaded")
            listeners.begun.clear()
            server.until(listeners.begun.is_set)
            (victim,) = set(server.children()) - {bystander}
            os.kill(victim, signal.SIGKILL)
            server.until(lambda: server.states()["other"] != "loaded")
            server.load("other")  # an administrator does not wait
        listeners.stop()
        assert listeners.faults == []
        assert set(listeners.ends) <= {"whole", "lost"}
        assert listeners.ends.count("lost") >= N_KILLS // 2
        assert server.process.log.count("ended by signal 9") == N_KILLS
        assert bystander in server.children()
        assert server.n_descriptors() <= descriptors + 8
        assert "Traceback" not in server.process.log


def test_a_kill_over_a_socket_is_an_error_there_and_it_stays_open(
    folder: Path, chat: dict[str, Any], other: dict[str, Any]
) -> None:
    with started(folder, {"models": [chat, other]}) as server:
        (bystander,) = server.children()
        server.load("other")
        server.until_state("other", "loaded")
        (victim,) = set(server.children()) - {bystander}
        url = f"ws://127.0.0.1:{server.process.port}/v1/responses"
        with connect(url, additional_headers={"authorization": "Bearer secret-a"}) as socket:
            os.kill(victim, signal.SIGSTOP)
            socket.send(json.dumps({"type": "response.create", "model": "other", "input": "x", "stream_id": "s"}))
            assert answered(socket, model="chat", input="x", max_output_tokens=4)["model"] == "chat"
            os.kill(victim, signal.SIGKILL)
            event = json.loads(socket.recv(timeout=30))
            assert (event["type"], event["status"], event["stream_id"]) == ("error", 502, "s")
            assert event["error"]["code"] == "model_died"
            server.load("other")
            assert answered(socket, model="other", input="x", max_output_tokens=4)["model"] == "other"
        assert bystander in server.children()
        assert "Traceback" not in server.process.log
