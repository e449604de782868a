"""In debug and sanitizer builds every module of these tests must leave no C memory behind."""

from __future__ import annotations

import gc

import pytest

from llamafast._core.leaks import living


@pytest.fixture(autouse=True, scope="module")
def balanced(request):
    """What lived before lives after. Module fixtures are torn down before this one: it was set up first."""
    gc.collect()
    before = living()
    yield
    for item in request.session.items:
        # pytest keeps what it gave to the last test
        if item.getparent(pytest.Module) is request.node and item.funcargs:
            item.funcargs.clear()
    gc.collect()
    assert living() == before
