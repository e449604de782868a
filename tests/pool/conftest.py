"""Short paths, as that of a Unix socket has a hundred bytes, and fleets of fakes."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_child import MakePool, Pool

from llamafast.api.keys import Keys

SMALL = {"n_ctx": 1024, "n_seq_max": 8, "n_batch": 256, "n_ubatch": 256, "threads": 1}


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="lf-") as name:
        yield Path(name)


@pytest.fixture
async def make() -> AsyncIterator[MakePool]:
    """A function that makes a ``Pool``."""
    pools: list[Pool] = []

    def made(*arguments: Any, **options: Any) -> Pool:
        pools.append(Pool(*arguments, **options))
        return pools[-1]

    yield made
    for pool in pools:
        await pool.close()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    path = tmp_path / "keys"
    path.write_text("secret-a name=alice max_running=2 priority=-1\nsecret-b name=bob\nsecret-root name=root admin\n")
    path.chmod(0o600)
    return Keys(path)


@pytest.fixture
def chat(tiny_model: Callable[[str], Path]) -> dict[str, Any]:
    """The config of a model with fixed answers."""
    return {"alias": "chat", "path": str(tiny_model("tiny-scripted")), **SMALL}


@pytest.fixture
def other(tiny_model: Callable[[str], Path]) -> dict[str, Any]:
    """Of one with random weights, on demand."""
    return {"alias": "other", "path": str(tiny_model("tiny-llama")), "load": "on_demand", **SMALL}
