"""deploy/ray_serve.py under a real Ray on loopback: replicas that stream, are found again, die, come and go."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.server import free_port

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
# of an environment of its own, which `make test-ray` makes
RAY = ROOT / ".cache" / "ray" / "bin" / "python"
NAME, KEY = "tiny", "sk-of-ray"
SECONDS = 120.0


def until(holds: Callable[[], bool]) -> float:
    """How long it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() < began + SECONDS
        time.sleep(0.05)
    return time.monotonic() - began


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


class Cluster:
    """Two or three replicas of a server of one config."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.disk = folder / "disk"
        self._config = folder / "cfg.json"
        self._log = folder / "log"
        keys = folder / "keys"
        keys.write_text(KEY)
        keys.chmod(0o600)
        sizes = {"n_ctx": 32768, "n_batch": 256, "n_ubatch": 256, "n_seq_max": 8}
        self._config.write_text(
            json.dumps(
                {
                    "model": {"path": str(model), "alias": NAME, **sizes},
                    "server": {"api_key_file": str(keys), "drain_delay_seconds": 30},
                    "disk_cache": {"path": str(folder), "max_bytes": 10**8, "min_tokens": 32},
                }
            )
        )
        arguments = {
            "config": str(self._config),
            "command": str(Path(sys.executable).with_name("llamafast")),
            "disk": str(self.disk),
            "cpus": 1,
            "min_replicas": 2,
            "max_replicas": 3,
            "requests_per_replica": 2,
            "upscale_delay_seconds": 1,
            "downscale_delay_seconds": 1,
        }
        # a folder with a short name: there are sockets in it
        self._home = tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True)
        told = {
            "HOME": self._home.name,
            "RAY_TMPDIR": self._home.name,
            "RAY_USAGE_STATS_ENABLED": "0",
            # or a node of Ray's has another address than the loopback's
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        with self._log.open("wb") as log:
            self._ray = subprocess.Popen(
                [RAY, ROOT / "tests" / "support" / "ray_cluster.py", str(self.port), json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **told},
                text=True,
            )
        try:
            self.until_told("serving")
        except BaseException:
            self._ray.kill()
            self._ray.communicate()
            self._home.cleanup()
            raise

    def tell(self, word: str) -> None:
        assert self._ray.stdin is not None
        print(word, file=self._ray.stdin, flush=True)

    def until_told(self, word: str) -> None:
        """Ray writes there too."""
        assert self._ray.stdout is not None
        while (said := self._ray.stdout.readline()) != f"{word}\n":
            assert said, self._log.read_text()[-5000:]

    def end(self) -> None:
        self._ray.communicate(timeout=60)
        assert self._ray.returncode == 0, self._log.read_text()[-5000:]
        self._home.cleanup()

    @property
    def servers(self) -> dict[int, int]:
        """The processes of `llamafast serve`, each with its replica's."""
        found = {}
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and str(self._config).encode() in (folder / "cmdline").read_bytes().split(
                    b"\0"
                ):
                    found[int(folder.name)] = parent_of(int(folder.name))
            except OSError:  # it has ended
                continue
        return found

    def until_whole(self, n: int = 2) -> set[int]:
        """As many servers as that, and each session finds one that answers."""

        def is_whole() -> bool:
            return len(self.servers) == n and all(self.get("/v1/models", f"s{i}").status_code == 200 for i in range(20))

        until(is_whole)
        return set(self.servers)

    def get(self, path: str, session: str) -> httpx.Response:
        headers = {"x-session-id": session, "authorization": f"Bearer {KEY}"}
        return httpx.get(f"{self.url}{path}", headers=headers, timeout=SECONDS)

    def value(self, name: str, session: str) -> float:
        """Of a series of the metrics of a session's replica."""
        lines = self.get("/metrics", session).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def ask(self, session: str, messages: list[dict[str, str]], **fields: Any) -> httpx.Response:
        body = {"model": NAME, "messages": messages, "temperature": 0, **fields}
        headers = {"x-session-id": session, "authorization": f"Bearer {KEY}"}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=SECONDS)

    def apart(self, n: int = 1) -> tuple[list[str], list[str]]:
        """So many sessions of one replica, and of another."""
        counted = "llamacpp:tokens_predicted_total"
        here, there = ["first"], []
        for k in range(100):
            session = f"session {k}"
            before = self.value(counted, session)
            self.ask("first", [{"role": "user", "content": "hello"}], max_tokens=1)
            (there if self.value(counted, session) == before else here).append(session)
            if min(len(here), len(there)) >= n:
                return here[:n], there[:n]
        raise AssertionError("all sessions are at one replica")

    def stream(self, session: str, n_tokens: int = 6000) -> Iterator[bytes]:
        """A long answer, piece by piece."""
        said = [{"role": "user", "content": f"of {session}"}]
        body = {"model": NAME, "messages": said, "max_tokens": n_tokens, "ignore_eos": True, "stream": True}
        body["stream_options"] = {"include_usage": True}
        headers = {"x-session-id": session, "authorization": f"Bearer {KEY}"}
        with httpx.stream(
            "POST", f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=SECONDS
        ) as answer:
            assert answer.status_code == 200
            yield from answer.iter_raw()


@pytest.fixture(scope="module")
def cluster(tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    assert RAY.exists(), "run `make test-ray`, which installs Ray"
    running = Cluster(tmp_path_factory.mktemp("ray"), tiny_model("tiny-llama"))
    try:
        yield running
    finally:
        running.end()
    assert running.servers == {}


def test_requests_answers_and_faults_are_passed_on_as_they_are(cluster: Cluster) -> None:
    cluster.until_whole()
    assert httpx.get(f"{cluster.url}/v1/models", timeout=60).status_code == 401
    assert cluster.get("/v1/models", "a").json()["data"][0]["id"] == NAME
    assert "'a/b'" in cluster.get("/v1/models/a%2Fb?x=1", "a").json()["error"]["message"]
    whole = cluster.ask("a", [{"role": "user", "content": "hello"}], max_tokens=8)
    assert whole.json()["usage"]["completion_tokens"] == 8
    assert len(whole.headers.get_list("x-request-id")) == 1
    wrong = cluster.ask("a", [{"role": "user", "content": "hello"}], temperature=9)
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "temperature")
    page = httpx.get(cluster.url, headers={"origin": cluster.url}, timeout=60)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")


def test_streams_come_piece_by_piece(cluster: Cluster) -> None:
    cluster.until_whole()
    began = time.monotonic()
    pieces, times = [], []
    for piece in cluster.stream("a", 2000):
        pieces.append(piece)
        times.append(time.monotonic() - began)
    assert len(pieces) > 20
    assert times[0] < times[-1] / 2
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")


def test_a_conversation_stays_where_its_prefix_is(cluster: Cluster) -> None:
    cluster.until_whole()
    for session in chain(*cluster.apart(3)):
        said = [{"role": "system", "content": f"{session} " + "sun and moon " * 40}]
        cached = []
        for turn in range(4):
            said.append({"role": "user", "content": f"question {turn}"})
            answer = cluster.ask(session, said, max_tokens=4).json()
            said.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
            cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert cached == sorted(set(cached)), cached
    assert {place.name for place in cluster.disk.iterdir()} >= {"0", "1"}


def test_who_goes_away_is_computed_for_no_longer(cluster: Cluster) -> None:
    cluster.until_whole()
    before = cluster.value("llamacpp:tokens_predicted_total", "gone")
    stream = cluster.stream("gone", 8000)
    next(stream)
    assert cluster.value("llamacpp:requests_processing", "gone") == 1
    stream.close()
    until(lambda: cluster.value("llamacpp:requests_processing", "gone") == 0)
    assert cluster.value("llamacpp:tokens_predicted_total", "gone") < before + 8000


def test_a_server_that_is_killed_is_replaced(cluster: Cluster) -> None:
    before = cluster.until_whole()
    streams = [cluster.stream(session, 8000) for session in chain(*cluster.apart(2))]
    for stream in streams:
        next(stream)
    victim = min(before)
    os.kill(victim, signal.SIGKILL)
    ends = [b"".join(stream) for stream in streams]
    cut = [end for end in ends if not end.endswith(b"data: [DONE]\n\n")]
    assert len(cut) == 2
    for end in cut:
        event, data = end.rstrip().rpartition(b"\n\n")[2].split(b"\n")
        assert event == b"event: error"
        assert json.loads(data.removeprefix(b"data: "))["error"]["code"] == "worker_died"
    after = cluster.until_whole()
    assert victim not in after
    assert len(before & after) == 1


def test_a_replica_that_is_killed_takes_its_server_along(cluster: Cluster) -> None:
    before = cluster.until_whole()
    victim = min(before)
    os.kill(cluster.servers[victim], signal.SIGKILL)
    until(lambda: victim not in cluster.servers)
    assert len(before & cluster.until_whole()) == 1


def test_there_are_more_replicas_while_there_is_more_to_do(cluster: Cluster) -> None:
    cluster.until_whole()
    done: list[int] = []
    stopping = threading.Event()

    def load(k: int) -> None:
        n = 0
        while not stopping.is_set():
            n += 1
            said = [{"role": "user", "content": f"{k} {n}"}]
            done.append(cluster.ask(f"{k} {n}", said, max_tokens=1000, ignore_eos=True).status_code)

    threads = [threading.Thread(target=load, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(cluster.servers) == 3)
        cluster.until_whole(3)
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    # none fails either while one of them goes again
    n = 0
    while len(cluster.servers) == 3:
        done.append(cluster.ask(f"after {n}", [{"role": "user", "content": "hello"}], max_tokens=4).status_code)
        n += 1
        assert n < 10_000
    assert set(done) == {200}
    assert len(done) > 20


def test_the_end_waits_for_streams(cluster: Cluster) -> None:
    cluster.until_whole()
    stream = cluster.stream("last", 8000)
    next(stream)
    cluster.tell("delete")
    rest = b"".join(stream)
    assert rest.endswith(b"data: [DONE]\n\n")
    assert b'"completion_tokens":8000,' in rest
    cluster.until_told("deleted")
    assert cluster.servers == {}
