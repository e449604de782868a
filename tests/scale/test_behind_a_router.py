"""What comes of two workers behind a router: tokens that are computed, and requests while workers come and go."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import zmq
from scale.cluster import NAME, Cluster, cluster, until
from support.event_reader import replayed

pytestmark = pytest.mark.scale

KEY = "sk-of-the-router"
N_PREFIXES, N_TURNS = 8, 6


@pytest.fixture
def model(tiny_model: Callable[[str], Path]) -> dict[str, Any]:
    return {"path": str(tiny_model("tiny-llama"))}


def system(k: int) -> str:
    chance = random.Random(k)
    return f"{k} " + " ".join(chance.choice(("sun", "moon", "river", "stone", "bread", "clock")) for _ in range(150))


def converse(running: Cluster, key: str | None = None, **fields: Any) -> float:
    """All conversations, a turn of this one and a turn of that, four at a time; prompt tokens that were computed."""
    before = sum(worker.computed for worker in running.workers)
    said = [[{"role": "system", "content": system(k)}] for k in range(N_PREFIXES)]

    def turn(k: int) -> None:
        messages = said[k]
        messages.append({"role": "user", "content": f"question {len(messages)}"})
        answer = running.ask({"messages": messages, "max_tokens": 6, "temperature": 0, **fields}, key)
        messages.append(answer["choices"][0]["message"] | {"role": "assistant"})

    chance = random.Random(1)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(N_TURNS):
            list(pool.map(turn, chance.sample(range(N_PREFIXES), N_PREFIXES)))
            # events are told within 50 ms
            time.sleep(0.2)
    return sum(worker.computed for worker in running.workers) - before


def test_what_a_worker_has_is_computed_once(model: dict[str, Any], tmp_path: Path) -> None:
    computed = {}
    for name, policy, n in (
        ("one", "round_robin", 1),
        ("evenly", "round_robin", 2),
        ("aware", "kv_aware", 2),
        ("by text", "smg", 2),
    ):
        folder = tmp_path / name
        folder.mkdir()
        with cluster(folder, model, policy=policy, keys=f"{KEY}\n", n=n) as running:
            computed[name] = converse(running, KEY)
            if policy == "kv_aware":
                assert running.lookups("hit") >= N_PREFIXES * (N_TURNS - 1)
    print(computed)
    assert computed["aware"] <= 1.1 * computed["one"]
    assert computed["by text"] <= 1.1 * computed["one"]
    assert 1.5 * computed["one"] <= computed["evenly"]


def test_tenants_with_names_are_kept_apart(model: dict[str, Any], tmp_path: Path) -> None:
    with cluster(tmp_path, model, keys="sk-a name=alice\nsk-b name=bob\n") as running:
        first = converse(running, "sk-a")
        second = converse(running, "sk-b")
        assert running.lookups("hit") == 0
        # nothing of hers spared him anything: he has what chance gives each of them of their own
        assert second >= 0.75 * first
        body = {"messages": [{"role": "system", "content": system(0)}, {"role": "user", "content": "question 1"}]}
        for worker in running.workers:
            with httpx.Client(base_url=worker.url, headers={"authorization": "Bearer sk-c"}, timeout=60) as stranger:
                assert stranger.post("/v1/chat/completions", json=body).status_code == 401


def test_salted_requests_leave_no_event(model: dict[str, Any], tmp_path: Path) -> None:
    context: zmq.Context[Any] = zmq.Context()
    with cluster(tmp_path, model, keys=f"{KEY}\n", disk=False) as running:

        def told() -> int:
            return sum(len(replayed(context, worker.replay_source, 0)) for worker in running.workers)

        converse(running, KEY)
        before = -1
        while before != (before := told()):
            time.sleep(1)
        converse(running, KEY, cache_salt="of a tenant")
        time.sleep(1)
        assert told() == before
    context.destroy(linger=0)


class Load:
    """Requests of four clients until it is stopped, streamed and not; what came of them."""

    def __init__(self, running: Cluster) -> None:
        self.good = self.good_streams = 0
        self.bad: list[str] = []
        self.cut: list[str] = []
        self._stopping = False
        self._threads = [threading.Thread(target=self._run, args=(running, i)) for i in range(4)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping = True
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _run(self, running: Cluster, i: int) -> None:
        n = 0
        while not self._stopping:
            n += 1
            body = {"messages": [{"role": "user", "content": f"{i} {n} {system(n % 5)}"}], "max_tokens": 40}
            if i:
                try:
                    running.ask({**body, "ignore_eos": True})
                    self.good += 1
                except (AssertionError, httpx.HTTPError) as error:
                    self.bad.append(repr(error))
            else:
                self._stream(running, body)

    def _stream(self, running: Cluster, body: dict[str, Any]) -> None:
        """It ends as streams do, or with an error that is one."""
        text = ""
        try:
            asked = {"model": NAME, "stream": True, **body}
            with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=asked, timeout=60) as answer:
                for piece in answer.iter_text():
                    text += piece
        except httpx.HTTPError as error:
            text += repr(error)
        if text.rstrip().endswith("data: [DONE]"):
            self.good_streams += 1
        else:
            self.cut.append(text[-300:])


@pytest.mark.parametrize("policy", ["kv_aware", "smg"])
def test_a_worker_that_is_killed_costs_only_its_streams(model: dict[str, Any], tmp_path: Path, policy: str) -> None:
    with cluster(tmp_path, model, policy=policy) as running:
        load = Load(running)
        time.sleep(2)
        victim = running.workers[1]
        victim.process.kill()
        victim.process.wait()
        time.sleep(3)
        load.stop()
        assert load.bad == []
        assert load.good > 20
        assert len(load.cut) <= 1, load.cut
        assert load.good_streams > 2


@pytest.mark.parametrize("policy", ["kv_aware", "smg"])
def test_a_worker_that_is_told_to_stop_fails_nobody(model: dict[str, Any], tmp_path: Path, policy: str) -> None:
    with cluster(tmp_path, model, policy=policy, drain_delay_seconds=5, drain_seconds=20) as running:
        load = Load(running)
        time.sleep(2)
        victim = running.workers[1]
        victim.process.terminate()
        victim.process.wait(30)
        time.sleep(1)
        load.stop()
        assert victim.process.returncode == 0, victim.process.log
        assert (load.bad, load.cut) == ([], [])
        assert load.good > 20


def test_the_index_follows_a_restart_of_a_worker_and_of_the_router(model: dict[str, Any], tmp_path: Path) -> None:
    with cluster(tmp_path, model) as running:
        body = {"messages": [{"role": "user", "content": system(1)}], "max_tokens": 4, "temperature": 0}
        for _ in range(2):  # what is used again is written
            running.ask(body)
            time.sleep(0.2)
        (holder,) = (worker for worker in running.workers if worker.computed)
        until(lambda: holder.value("llamafast:disk_cache_entries") > 0)
        holder.process.terminate()
        holder.process.wait(30)
        holder.start()
        holder.until_ready()
        until(lambda: httpx.get(f"{running.url}/health", timeout=60).status_code == 200)
        time.sleep(2)
        hits = running.lookups("hit")
        running.ask(body)
        assert running.lookups("hit") == hits + 1
        assert holder.value("llamafast:prefix_cache_hits_disk_total") > 100
        running.end()
        running.start()
        time.sleep(2)
        running.ask(body)
        assert running.lookups("hit") == 1


@pytest.mark.parametrize("policy", ["chart", "smg"])
def test_clients_are_served_through_it_as_we_say_it_is_started(
    tiny_model: Callable[[str], Path], tmp_path: Path, policy: str
) -> None:
    scripted = {"path": str(tiny_model("tiny-scripted"))}
    with (
        cluster(tmp_path, scripted, policy=policy, keys=f"{KEY}\n") as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        asked: Any = {"model": NAME, "messages": [{"role": "user", "content": "hello"}], "temperature": 0}
        whole = client.chat.completions.create(**asked)
        pieces = client.chat.completions.create(stream=True, **asked)
        assert "".join(one.choices[0].delta.content or "" for one in pieces) == whole.choices[0].message.content
        tool: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
        called = client.chat.completions.create(tools=[tool], tool_choice="required", max_tokens=60, **asked)
        assert called.choices[0].message.tool_calls[0].function.name == "weather"
        formed = (
            client.chat.completions.create(extra_body={"structured_outputs": {"choice": ["yes", "no"]}}, **asked)
            .choices[0]
            .message.content
        )
        assert formed in ("yes", "no")
        assert client.completions.create(model=NAME, prompt="a", max_tokens=3).usage.completion_tokens == 3
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(**{**asked, "temperature": 9})
        assert client.models.list().data[0].id == NAME
        if policy == "smg":
            text = whole.choices[0].message.content
            salted = client.chat.completions.create(max_tokens=8, extra_body={"cache_salt": "a", "top_k": 1}, **asked)
            assert salted.usage.prompt_tokens_details.cached_tokens == 0
            told = client.responses.create(model=NAME, input="hello", temperature=0, max_output_tokens=16)
            assert text.startswith(told.output_text)
            said = {"messages": asked["messages"], "max_tokens": 16, "temperature": 0}
            answer = running.ask(said, KEY, "/v1/messages")
            assert text.startswith(answer["content"][0]["text"])
