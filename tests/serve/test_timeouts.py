"""Requests that wait or take longer than the config allows, over a real connection."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from benchmarks.server import Server, serving
from serve.conftest import model_config

LONG = {"model": "m", "prompt": "x", "max_tokens": 8000, "n": 4, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def server(tiny_model) -> Iterator[Server]:
    """One sequence at a time."""

    def config(port: int) -> dict[str, object]:
        settings = model_config(tiny_model("tiny-llama"), port, alias="m", n_ctx=8192, n_seq_max=1)
        return settings | {"server": {"port": port, "queue_seconds": 1.0, "request_seconds": 2.0}}

    with serving(config, None) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_who_waits_too_long_gets_503_and_who_takes_too_long_an_error_in_its_stream(client: openai.OpenAI) -> None:
    stream = client.completions.create(**LONG, stream=True)
    next(stream)
    with pytest.raises(openai.InternalServerError) as waited:
        client.completions.create(**LONG)
    assert (waited.value.status_code, waited.value.code, waited.value.type) == (503, "queue_timeout", "server_error")
    assert int(waited.value.response.headers["retry-after"]) >= 1
    with pytest.raises(openai.APIError) as took:
        list(stream)
    assert (took.value.code, took.value.type) == ("request_timeout", "server_error")


def test_an_answer_that_takes_too_long_is_504(client: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError) as took:
        client.completions.create(**LONG)
    assert (took.value.status_code, took.value.code) == (504, "request_timeout")
    assert client.completions.create(model="m", prompt="x", max_tokens=3).choices[0].finish_reason == "length"
