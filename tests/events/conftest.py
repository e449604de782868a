"""ZeroMQ for those who listen."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import pytest
import zmq

Context: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"


@pytest.fixture
def context() -> Iterator[Context]:
    with zmq.Context() as one:
        yield one
        one.destroy(linger=0)
