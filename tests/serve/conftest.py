"""Real servers in subprocesses, one per model for the whole run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.server import Server, serving


def model_config(path, port: int, **model) -> dict[str, object]:
    """A config that decodes on one thread, and whose logits do not depend on how steps are cut, but for the rounding of
    steps of one row: that takes 32-bit keys and values and no flash attention."""
    settings = {
        "path": str(path), "n_ctx": 4096, "n_batch": 256, "n_ubatch": 256, "n_seq_max": 16, "threads": 1,
        "flash_attn": False, "type_k": 0, "type_v": 0,
    }  # fmt: skip
    return {"server": {"port": port}, "model": settings | model}


@pytest.fixture(scope="session")
def tiny_server(tiny_model) -> Iterator[Server]:
    """tiny-llama, random weights."""
    path = tiny_model("tiny-llama")
    with serving(lambda port: model_config(path, port, alias="tiny/llama"), None) as server:
        yield server


@pytest.fixture(scope="session")
def scripted_server(tiny_model) -> Iterator[Server]:
    """A model with fixed answers, chosen by the last user message."""
    path = tiny_model("tiny-scripted")
    with serving(lambda port: model_config(path, port, alias="scripted"), None) as server:
        yield server


@pytest.fixture(scope="session")
def smollm2_server(smollm2) -> Iterator[Server]:
    with serving(lambda port: model_config(smollm2, port, alias="smollm2-135m"), None) as server:
        yield server
