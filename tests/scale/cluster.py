"""Two workers behind a real router, vllm-router or smg, as docs/deploy.md has them, on ports that are free."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml
from support.helm_subset import Chart
from support.server_process import PATIENT, Process

from benchmarks.server import free_port

SECONDS = 60.0
NAME = "tiny"
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
# A start is looked for more often than is worth it elsewhere.
SOON = ("--worker-startup-check-interval=1",)
SIZES = {"n_ctx": 8192, "n_batch": 256, "n_ubatch": 256, "n_seq_max": 8, "threads": 1}


def compose_arguments() -> list[str]:
    arguments: list[str] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["router"]["command"]
    return arguments


def chart_arguments() -> list[str]:
    objects = Chart(DEPLOY / "helm", "llm").objects()
    router = next(one for one in objects if one["kind"] == "Deployment")
    arguments: list[str] = router["spec"]["template"]["spec"]["containers"][0]["args"]
    return arguments


def smg_arguments() -> list[str]:
    """What docs/deploy.md says, without the key and the workers."""
    text = (ROOT / "docs" / "deploy.md").read_text()
    (command,) = re.findall(r"^smg launch ((?:.*\\\n)*.*)$", text, re.MULTILINE)
    words = shlex.split(command.replace("\\\n", " "))
    at = words.index("--api-key")
    return [*words[:at], *words[at + 2 : words.index("--worker-urls")]]


ARGUMENTS = {"kv_aware": compose_arguments, "chart": chart_arguments}


def router_command(name: str) -> str:
    """Where `make test-scale` has installed it."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found is not None, f"run `make test-scale`, which installs {name}"
    return found


def until(holds: Callable[[], bool], seconds: float = SECONDS) -> float:
    """How long it took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() < began + seconds
        time.sleep(0.02)
    return time.monotonic() - began


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


class Worker:
    """One at its own port and endpoints, which may be started again."""

    def __init__(self, folder: Path, model: dict[str, Any], key_file: Path | None, disk: bool, **server: Any) -> None:
        folder.mkdir()
        self.folder = folder
        self.port, self.events, self.replays = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        events = {"endpoint": self.source, "replay_endpoint": self.replay_source}
        self.config: dict[str, Any] = {
            "server": {"port": self.port, "kv_events": events, "metrics_public": True, **server},
            "model": {"alias": NAME, **SIZES, **model},
            "disk_cache": {"path": str(folder / "disk"), "max_bytes": 10**8, "min_tokens": 32} if disk else None,
        }  # fmt: skip
        if key_file is not None:
            self.config["server"]["api_key_file"] = str(key_file)
        self.start()

    @property
    def source(self) -> str:
        return f"tcp://127.0.0.1:{self.events}"

    @property
    def replay_source(self) -> str:
        return f"tcp://127.0.0.1:{self.replays}"

    def start(self) -> None:
        self.process = Process(self.folder, self.config, port=self.port, program=PATIENT)

    def until_ready(self) -> None:
        until(lambda: self.process.poll() is not None or answers(f"{self.url}/ready"))
        assert self.process.poll() is None, self.process.log

    def value(self, name: str) -> float:
        """The sum of a series of its metrics."""
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    @property
    def computed(self) -> float:
        """Prompt tokens."""
        return self.value("llamacpp:prompt_tokens_total")

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Cluster:
    """Its router, which may be started again, and its workers."""

    def __init__(self, folder: Path, policy: str, workers: Sequence[Worker], key: str | None = None) -> None:
        self.workers = workers
        self._folder = folder
        self._policy = policy
        self._key = key
        self._port, self._metrics_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()

    def command(self) -> list[str]:
        """That of deploy/compose.yaml, of deploy/helm or one that knows nothing of events, with addresses of here.
        "smg" is another router's."""
        if self._policy == "smg":
            return self._smg_command()
        command = [router_command("vllm-router"), "--port", str(self._port)]
        command += ["--prometheus-port", str(self._metrics_port)]
        if self._policy == "round_robin":
            health = ["--health-check-interval-secs=1", "--health-failure-threshold=1", "--health-success-threshold=1"]
            return [*command, *SOON, *health, "--policy=round_robin", "--worker-urls", *(w.url for w in self.workers)]
        return [*command, *SOON, *(self._here(word) for word in ARGUMENTS[self._policy]())]

    def _smg_command(self) -> list[str]:
        here = ["--port", str(self._port), "--prometheus-host", "127.0.0.1"]
        here += ["--prometheus-port", str(self._metrics_port)]
        here += [] if self._key is None else ["--api-key", self._key]
        urls = ["--worker-urls", *(worker.url for worker in self.workers)]
        return [router_command("smg"), "launch", *smg_arguments(), *SOON, *here, *urls]

    def _here(self, word: str) -> str:
        for i, worker in enumerate(self.workers):
            for host in (f"worker-{i}", f"llm-worker-{i}.llm-workers"):
                for there, here in ((8000, worker.port), (5557, worker.events), (5558, worker.replays)):
                    word = word.replace(f"//{host}:{there}", f"//127.0.0.1:{here}")
        return word.replace("--kv-event-model=chat", f"--kv-event-model={NAME}")

    def start(self) -> None:
        with (self._folder / "router.log").open("ab") as log:
            self._router = subprocess.Popen(self.command(), stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        # smg is healthy without workers too
        url = f"{self.url}/{'readiness' if self._policy == 'smg' else 'health'}"

        def is_ready() -> bool:
            assert self._router.poll() is None, self.log
            return answers(url)

        try:
            until(is_ready)
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        self._router.terminate()
        try:
            self._router.wait(10)
        except subprocess.TimeoutExpired:
            self._router.kill()
            self._router.wait()

    @property
    def log(self) -> str:
        return (self._folder / "router.log").read_text()

    def lookups(self, result: str) -> float:
        """How many prompts it looked for, and found at a worker ("hit") or not ("miss")."""
        text = httpx.get(f"http://127.0.0.1:{self._metrics_port}/metrics", timeout=10).text
        name = f'vllm_router_kv_placement_lookups_total{{result="{result}"}}'
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    def ask(self, body: dict[str, Any], key: str | None = None, path: str = "/v1/chat/completions") -> dict[str, Any]:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        answer = httpx.post(f"{self.url}{path}", json={"model": NAME, **body}, headers=headers, timeout=60)
        assert answer.status_code == 200, (answer.status_code, answer.text)
        told: dict[str, Any] = json.loads(answer.text)
        return told


@contextmanager
def cluster(
    folder: Path,
    model: dict[str, Any],
    *,
    policy: str = "kv_aware",
    keys: str | None = None,
    n: int = 2,
    disk: bool = True,
    **server: Any,
) -> Iterator[Cluster]:
    key_file = None
    if keys is not None:
        key_file = folder / "worker-key"
        key_file.write_text(keys)
        key_file.chmod(0o600)
    with ExitStack() as stack:
        workers = []
        for i in range(n):
            workers.append(Worker(folder / f"worker{i}", model, key_file, disk, **server))
            stack.callback(workers[-1].end)
        for worker in workers:
            worker.until_ready()
        running = Cluster(folder, policy, workers, None if keys is None else keys.split()[0])
        stack.callback(lambda: running.end())
        yield running
