"""Requests that are almost right: no 5xx, no traceback, no internal exception dressed as a 4xx.

``make test-faults`` sends 10,000.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import FakeEngine
from support.fuzzing import Fuzzer, fault

from serve import fuzz


@pytest.mark.parametrize("n", [200, pytest.param(600, marks=pytest.mark.heavy)])
async def test_bodies_without_a_model(caplog: pytest.LogCaptureFixture, n: int) -> None:
    caplog.set_level(logging.ERROR)
    client, statuses = AsgiClient(make_app(FakeEngine(), max_body_bytes=1 << 20)), []
    for seed in range(n):
        path, body = Fuzzer(seed).request()
        response = await asyncio.wait_for(client.post(path, body), 30)
        assert fault(response.status, response.body) is None, (seed, path, body)
        statuses.append(response.status)
    assert not caplog.records
    assert statuses.count(200) > n // 10
    assert statuses.count(400) > n // 10


def test_requests_over_sockets(tmp_path: Path) -> None:
    found, statuses = fuzz.run(tmp_path, 300, seed=20_000)
    assert not found, "\n".join(found)
    assert {200, 400} <= statuses.keys()
