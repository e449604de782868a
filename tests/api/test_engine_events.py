"""GET /engine/events: one snapshot for all who watch, and what is in it."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from types import SimpleNamespace

import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_engine import FakeEngine

from llamafast.api import engine_events, engine_view, http
from llamafast.api.engine_events import MOST_OF_KEY, MOST_WATCHERS, EngineEvents
from llamafast.api.engine_view import EngineView, quantile
from llamafast.api.keys import Keys
from llamafast.engine.activity import DECODE, PROMPT, Activity, SeenSequence, SeenStep, StepPart

COUNTERS = {
    "running": 2, "waiting": 1, "free_sequences": 5, "used_cells": 300, "reserved_cells": 700, "total_cells": 1000,
    "prompt_tokens": 50, "generated_tokens": 20, "steps": 10, "prefix_hits": 90, "prefix_hits_running": 40,
    "prefix_hits_ram": 50, "prefix_hits_disk": 20, "cache_bytes": 5000, "cache_max_bytes": 9000,
}  # fmt: skip
BOUNDS = (0.01, 0.02, 0.04)


@pytest.fixture
def engine(monkeypatch) -> FakeEngine:
    monkeypatch.setattr(engine_events, "SECONDS", 0.01)
    engine = FakeEngine()
    engine.series = dict(COUNTERS)
    engine.distributions = {"inter_token_seconds": (BOUNDS, [5, 0, 0, 0], 0.02)}
    engine.seen = Activity(
        10,
        [SeenStep(0.0025, [StepPart(0, 7, DECODE, 4, 3), StepPart(1, 8, PROMPT, 16, 0)])],
        [SeenSequence(8, 1, "prefilling", 100, 100, 60, 164, 40, 7, 0, 0, 0, 1.5)],
        [SeenSequence(9, -1, "waiting", 10, 10, 0, 20, 0, 0, 0, 0, 0, 0.5)],
    )
    return engine


def told(connection) -> list[dict]:
    return [json.loads(write.decode().removeprefix("data: ")) for write in connection.response.writes if write]


async def test_a_snapshot_has_numbers_and_no_text(engine):
    async with AsgiClient(make_app(engine)).open("GET", "/engine/events", [b""]) as connection:
        await connection.until_writes(1)
    assert connection.response.headers["content-type"] == "text/event-stream; charset=utf-8"
    snapshot = told(connection)[0]
    assert snapshot.pop("time") > 0
    assert snapshot == {
        "model": "org/fake-model",
        "running": 2, "waiting": 1, "slots": 8,
        "cells": {"total": 1000, "used": 300, "reserved": 700, "free": 700},
        "tiers": {
            "running": {"bytes": 0, "max_bytes": 0, "hit_tokens": 40},
            "ram": {"bytes": 5000, "max_bytes": 9000, "hit_tokens": 30},
            "disk": None,
        },
        "rates": {"prompt": 0, "generated": 0, "embedded": 0, "steps": 0},
        "gap_seconds": None,
        "totals": snapshot["totals"],
        "n_steps": 10,
        "steps": [[2.5, [0, 7, 0, 4, 3], [1, 8, 1, 16, 0]]],
        "sequences": [[8, 1, "prefilling", 100, 100, 60, 164, 40, 7, 0, 0, 0, 1.5]],
        "queue": [[9, -1, "waiting", 10, 10, 0, 20, 0, 0, 0, 0, 0, 0.5]],
    }  # fmt: skip
    assert snapshot["totals"]["prompt_tokens"] == 50
    assert all(isinstance(value, (int, float)) for value in snapshot["totals"].values())


def test_rates_and_gaps_are_of_the_time_between_snapshots(engine, monkeypatch):
    clock = iter([100.0, 102.0, 103.0, 120.0])
    monkeypatch.setattr(engine_view, "time", SimpleNamespace(monotonic=lambda: next(clock), time=time.time))
    view = EngineView(engine)
    view.snapshot()
    engine.series = COUNTERS | {"prompt_tokens": 250, "generated_tokens": 21, "steps": 14}
    engine.distributions = {"inter_token_seconds": (BOUNDS, [5, 98, 2, 0], 1.0)}
    later = view.snapshot()
    assert (later.rates.prompt, later.rates.generated, later.rates.steps) == (100.0, 0.5, 2.0)
    assert later.gap_seconds is not None
    assert 0.015 < later.gap_seconds.p50 < 0.0152
    assert later.gap_seconds.p99 == pytest.approx(0.03)
    # gaps of the last seconds still, rates of this one
    last = view.snapshot()
    assert (last.rates.prompt, last.gap_seconds) == (0.0, later.gap_seconds)
    assert view.snapshot().gap_seconds is None


def test_of_a_disk_tier_bytes_and_tokens_are_told(engine):
    engine.series |= {"disk_bytes": 70, "disk_max_bytes": 100}
    disk = EngineView(engine).snapshot().tiers.disk
    assert disk is not None
    assert (disk.bytes, disk.max_bytes, disk.hit_tokens) == (70, 100, 20)


@pytest.mark.parametrize(("counts", "share", "value"), [
    ([0, 4, 0, 0], 0.5, 0.015), ([1, 0, 0, 0], 1.0, 0.01), ([0, 0, 0, 3], 0.5, 0.04), ([2, 2, 0, 0], 0.5, 0.01),
])  # fmt: skip
def test_quantiles_are_spread_within_a_bucket(counts, share, value):
    assert quantile(BOUNDS, counts, share) == pytest.approx(value)


async def test_all_watchers_get_the_same_snapshots_and_nobody_costs_nothing(engine):
    asked = []
    counters = engine.counters
    engine.counters = lambda: asked.append(1) or counters()
    client = AsgiClient(make_app(engine))
    async with (
        client.open("GET", "/engine/events", [b""]) as first,
        client.open("GET", "/engine/events", [b""]) as second,
    ):
        await second.until_writes(3)
    n_asked = len(asked)
    assert n_asked <= len(first.response.writes) + 1
    times = [{one["time"] for one in told(connection)} for connection in (first, second)]
    assert len(times[0] & times[1]) >= 2
    await asyncio.sleep(0.05)
    assert len(asked) == n_asked


async def test_one_more_than_may_watch_is_told_to_come_later(engine):
    events = EngineEvents(engine, 15.0)
    events._watchers = {engine_events._Watcher() for _ in range(MOST_WATCHERS)}
    app = make_app(engine)
    app._engine_events._watchers |= events._watchers
    refused = await AsgiClient(app).get("/engine/events")
    assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
    assert "retry-after" in refused.headers


async def test_a_drain_ends_the_streams(engine):
    app = make_app(engine)
    async with AsgiClient(app).open("GET", "/engine/events", [b""]) as connection:
        await connection.until_writes(1)
        app.drain()
        await asyncio.wait_for(connection.task, 30)
        assert connection.response.complete
    late = await AsgiClient(app).get("/engine/events")
    assert (late.status, late.complete) == (200, True)


async def test_a_snapshot_that_fails_ends_the_streams_and_is_logged(engine, caplog):
    client = AsgiClient(make_app(engine))
    del engine.series["used_cells"]
    assert (await client.get("/engine/events")).complete
    assert "cannot be watched" in caplog.text
    engine.series = dict(COUNTERS)
    async with client.open("GET", "/engine/events", [b""]) as connection:
        await connection.until_writes(1)


async def test_who_reads_slowly_gets_the_newest(engine):
    watcher = engine_events._Watcher()
    for told in (b"1", b"2", b"3"):
        watcher.tell(told)
    assert await watcher.next() == b"3"
    watcher.end()
    assert await watcher.next() == b""


async def test_who_comes_while_somebody_has_not_read_of_a_fault_is_told_of_the_engine(engine):
    app = make_app(engine)
    app._engine_events._watchers.add(engine_events._Watcher())  # one that takes nothing
    del engine.series["used_cells"]
    assert (await AsgiClient(app).get("/engine/events")).complete
    engine.series = dict(COUNTERS)
    async with AsgiClient(app).open("GET", "/engine/events", [b""]) as connection:
        await asyncio.wait_for(connection.until_writes(1), 30)


async def test_whose_key_is_taken_away_watches_no_more(engine, monkeypatch, tmp_path):
    monkeypatch.setattr(http, "RECHECK_SECONDS", 0.01)
    file = tmp_path / "keys"
    file.write_text("one name=one\nother name=other\n")
    file.chmod(0o600)
    keys = Keys(file)
    client = AsgiClient(make_app(engine, keys=keys))
    async with (
        client.open("GET", "/engine/events", [b""], {"authorization": "Bearer one"}) as stays,
        client.open("GET", "/engine/events", [b""], {"authorization": "Bearer other"}) as goes,
    ):
        await goes.until_writes(3)
        file.write_text("one name=one\n")
        keys.reload()
        await asyncio.wait_for(goes.task, 30)
        n_writes = len(stays.response.writes)
        await stays.until_writes(n_writes + 3)
        assert not stays.task.done()


async def test_one_key_does_not_keep_the_others_from_watching(engine, tmp_path):
    file = tmp_path / "keys"
    file.write_text("one name=one\ntwo name=one\nother\n")
    file.chmod(0o600)
    client = AsgiClient(make_app(engine, keys=Keys(file)))
    async with AsyncExitStack() as watching:
        for n in range(MOST_OF_KEY):
            key = {"authorization": f"Bearer {'one' if n % 2 else 'two'}"}
            connection = await watching.enter_async_context(client.open("GET", "/engine/events", [b""], key))
            await connection.until_writes(1)
        refused = await client.get("/engine/events", authorization="Bearer one")
        assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
        assert "4 clients with this key watch already" in refused.error["message"]
        other = {"authorization": "Bearer other"}
        connection = await watching.enter_async_context(client.open("GET", "/engine/events", [b""], other))
        await connection.until_writes(2)
