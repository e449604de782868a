"""The application over a scripted engine, called without a socket."""

from __future__ import annotations

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import FakeEngine

MAX_BODY_BYTES = 1 << 20
STALL_SECONDS = 5.0


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(engine: FakeEngine) -> AsgiClient:
    return AsgiClient(make_app(engine, max_body_bytes=MAX_BODY_BYTES, stall_seconds=STALL_SECONDS))
