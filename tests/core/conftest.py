"""In debug and sanitizer builds every module of these tests must leave no C memory behind."""

from __future__ import annotations

import gc

import pytest

from llamafast._core.balance import living


@pytest.fixture(autouse=True, scope="module")
def balanced():
    """What lived before lives after. Module fixtures are torn down before this one: it was set up first."""
    gc.collect()
    before = living()
    yield
    gc.collect()
    assert living() == before
