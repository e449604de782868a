"""A server whose instruction sets are limited gives what one that uses all of them does."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai import OpenAI

from benchmarks.server import serving
from serve.conftest import model_config

PROSE = (Path(__file__).parents[1] / "support" / "prose.txt").read_text()[:600]


def mean_logprob(port: int, model: str) -> float:
    """Of a text's tokens."""
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    scored = client.completions.create(model=model, prompt=PROSE, echo=True, max_tokens=0, logprobs=0)
    assert scored.choices[0].logprobs is not None
    logprobs = [logprob for logprob in scored.choices[0].logprobs.token_logprobs or [] if logprob is not None]
    assert len(logprobs) > 100
    return sum(logprobs) / len(logprobs)


@pytest.mark.parametrize("name", ["baseline", pytest.param("avx2", marks=pytest.mark.heavy)])
def test_what_is_limited_serves_too(smollm2, smollm2_server, name: str) -> None:
    """Sums of floats differ in their last bits, and 8 bits of a few numbers with them."""
    with serving(lambda port: model_config(smollm2, port, alias="m"), None, {"LLAMAFAST_SIMD": name}) as server:
        assert mean_logprob(server.port, "m") == pytest.approx(
            mean_logprob(smollm2_server.port, "smollm2-135m"), abs=0.05
        )
