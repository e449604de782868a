"""A Unix socket in place of an address."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
import openai
import pytest
from support.server_process import Process

from serve.conftest import model_config


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "llamafast.sock"


@pytest.fixture
def start(tiny_model: Callable[[str], Path], tmp_path: Path, place: Path) -> Callable[..., object]:
    @contextmanager
    def started(name: str, limits: str = "true") -> Iterator[Process]:
        config = model_config(tiny_model("tiny-scripted"), 0, alias="scripted")
        config["server"] = {"uds": str(place), "drain_seconds": 1}
        (tmp_path / name).mkdir()
        with Process(tmp_path / name, config, limits=limits) as process:
            try:
                yield process
            finally:
                process.kill()

    return started


def models(place: Path) -> list[str]:
    """What OpenAI's client is told over the socket."""
    transport = httpx.Client(transport=httpx.HTTPTransport(uds=str(place)), timeout=60)
    with openai.OpenAI(base_url="http://localhost/v1", api_key="none", max_retries=0, http_client=transport) as client:
        return [model.id for model in client.models.list().data]


def test_a_life_of_a_socket(start: Callable[..., object], place: Path) -> None:
    serving = re.compile(rf"serving  http\+unix://{quote(str(place), safe='')}/v1\n")
    with start("first", limits="umask 007") as first:
        first.until_told(serving)
        assert stat.S_IMODE(place.stat().st_mode) == 0o770  # the umask alone decides
        assert models(place) == ["scripted"]
        with start("second") as second:
            second.ended(30)
            assert second.returncode == 1
            assert "server.uds: a server listens on" in second.log
        assert models(place) == ["scripted"]
        first.kill()
        first.wait(30)
    assert place.is_socket()  # left behind
    with start("third") as third:
        third.until_told(serving)
        assert models(place) == ["scripted"]
        third.terminate()
        third.ended(30)
        assert third.returncode == 0
        assert not place.exists()
        assert "Traceback" not in third.log
