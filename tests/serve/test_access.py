"""A server with keys, as clients and browsers meet it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest
import websockets.sync.client as sockets
from support.server_process import Process
from websockets.exceptions import InvalidStatus

from serve.conftest import model_config

KEYS = "secret-a name=alice\nsecret-b name=bob\nsecret-root name=root admin\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


def write_keys(folder: Path, text: str) -> Path:
    path = folder / "keys"
    path.write_text(text)
    path.chmod(0o600)
    return path


@pytest.fixture(scope="module")
def process(tiny_model: Callable[[str], Path], folder: Path) -> Iterator[Process]:
    config = model_config(tiny_model("tiny-llama"), 0, alias="tiny")
    config["server"] = {
        "port": 0,
        "api_key_file": str(write_keys(folder, KEYS)),
        "cors_origins": ["https://chat.example"],
    }
    with Process(folder, config) as process:
        try:
            process.until_serving()
            yield process
        finally:
            process.kill()


@contextmanager
def client(process: Process, key: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{process.port}/v1", api_key=key, max_retries=0) as opened:
        yield opened


def may_ask(process: Process, key: str) -> bool:
    with client(process, key) as asking:
        try:
            return asking.models.list().data[0].id == "tiny"
        except openai.AuthenticationError:
            return False


def cached(process: Process, key: str, prompt: list[int], **options: object) -> int | None:
    with client(process, key) as asking:
        answer = asking.completions.create(model="tiny", prompt=prompt, max_tokens=1, temperature=0, extra_body=options)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    return answer.usage.prompt_tokens_details.cached_tokens


def test_a_client_needs_a_key(process: Process) -> None:
    assert may_ask(process, "secret-a")
    assert not may_ask(process, "secret-c")
    url = f"http://127.0.0.1:{process.port}"
    assert httpx.get(f"{url}/healthz", timeout=60).status_code == 200
    assert httpx.get(f"{url}/metrics", timeout=60).status_code == 401
    assert httpx.get(f"{url}/metrics", headers={"x-api-key": "secret-b"}, timeout=60).status_code == 200


def test_a_socket_needs_one_too(process: Process) -> None:
    url = f"ws://127.0.0.1:{process.port}/v1/responses"
    for headers in ({}, {"authorization": "Bearer secret-c"}):
        with pytest.raises(InvalidStatus) as refused:
            sockets.connect(url, additional_headers=headers)
        assert refused.value.response.status_code == 401
        assert b"API key" in refused.value.response.body
    for headers in ({"authorization": "Bearer secret-a"}, {"x-api-key": "secret-a"}):
        with sockets.connect(url, additional_headers=headers) as socket:
            socket.send('{"type":"response.create","input":"Hi","max_output_tokens":16}')
            assert '"response.created"' in str(socket.recv(5))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "https://chat.example"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"host": "evil.example"}, 403),
        ({"host": "localhost"}, 200),
    ],
)
def test_browsers_are_told_apart(process: Process, headers: dict[str, str], status: int) -> None:
    url = f"http://127.0.0.1:{process.port}/v1/models"
    reply = httpx.get(url, headers={"authorization": "Bearer secret-a", **headers}, timeout=60)
    assert reply.status_code == status
    readable = reply.headers.get("access-control-allow-origin")
    assert readable == ("https://chat.example" if "chat" in headers.get("origin", "") else None)


def test_a_key_finds_only_what_it_left_in_the_cache(process: Process) -> None:
    prompt = [40 + k % 200 for k in range(600)]
    assert cached(process, "secret-a", prompt) == 0
    assert cached(process, "secret-a", prompt) == 599
    for salt in ("alice", "5:alice", "5:alice5:alice"):
        assert cached(process, "secret-b", prompt, cache_salt=salt) == 0
    assert cached(process, "secret-b", prompt) == 0
    assert cached(process, "secret-b", prompt) == 599


def test_nor_beside_a_request_that_runs(process: Process) -> None:
    prompt = [41 + k % 190 for k in range(600)]
    with client(process, "secret-a") as asking:
        stream = asking.completions.create(
            model="tiny", prompt=prompt, max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        assert cached(process, "secret-a", prompt) == 599
        assert cached(process, "secret-b", prompt) == 0


def test_an_administrator_resets_the_cache(process: Process) -> None:
    prompt = [42 + k % 180 for k in range(600)]
    assert cached(process, "secret-a", prompt) == 0
    url = f"http://127.0.0.1:{process.port}/reset_prefix_cache"
    assert httpx.post(url, headers={"x-api-key": "secret-a"}, timeout=60).status_code == 403
    reply = httpx.post(url, headers={"x-api-key": "secret-root"}, timeout=60)
    assert reply.status_code == 200
    assert reply.json()["freed_bytes"] > 0
    assert cached(process, "secret-a", prompt) == 0


def until(process: Process, text: str) -> None:
    deadline = time.monotonic() + 30
    while text not in process.log:
        assert time.monotonic() < deadline, process.log
        time.sleep(0.01)


def test_a_hangup_reads_the_keys_again(process: Process, folder: Path) -> None:
    write_keys(folder, KEYS.replace("secret-b", "secret-b2"))
    process.send_signal(signal.SIGHUP)
    until(process, "after reading")
    assert may_ask(process, "secret-b2")
    assert not may_ask(process, "secret-b")
    write_keys(folder, "secret-x nonsense\n")
    process.send_signal(signal.SIGHUP)
    until(process, "not read again")
    assert may_ask(process, "secret-b2")
    assert "key=alice" in process.log
    assert "secret" not in process.log
