"""The view of the engine in a real browser: what it draws, and that it is what the server counts."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from http.client import HTTPConnection

import pytest
from support.apps import make_app
from support.fake_engine import FakeEngine
from support.pooled_apps import pooled

from benchmarks.server import Server, serving
from llamafast.engine.activity import DECODE, MEDIA, PROMPT, Activity, SeenSequence, SeenStep, StepPart

pytestmark = pytest.mark.page

COUNTERS = {
    "running": 2, "waiting": 3, "free_sequences": 6, "used_cells": 300, "reserved_cells": 700, "total_cells": 1000,
    "prompt_tokens": 50, "generated_tokens": 20, "steps": 10, "prefix_hits": 90, "prefix_hits_running": 40,
    "prefix_hits_ram": 50, "prefix_hits_disk": 20, "cache_bytes": 5000, "cache_max_bytes": 9000, "disk_bytes": 70,
    "disk_max_bytes": 100,
}  # fmt: skip


@pytest.fixture
def engine() -> FakeEngine:
    engine = FakeEngine()
    engine.series = dict(COUNTERS)
    engine.distributions = {"inter_token_seconds": ((0.01, 0.02), [5, 0, 0], 0.02)}
    engine.seen = Activity(
        2,
        [
            SeenStep(0.002, [StepPart(0, 7, DECODE, 1, 0), StepPart(1, 8, PROMPT, 16, 0)]),
            SeenStep(0.004, [StepPart(0, 7, DECODE, 4, 3), StepPart(1, 8, MEDIA, 9, 0)]),
        ],
        [
            SeenSequence(7, 0, "decoding", 40, 52, 51, 100, 0, 0, 30, 9, 6, 2.5),
            SeenSequence(8, 1, "following", 100, 100, 0, 164, 0, 7, 0, 0, 0, 1.5),
        ],
        [SeenSequence(9, -1, "waiting", 10, 10, 0, 20, 0, 0, 0, 0, 0, 0.5)],
    )
    return engine


def text(told: str) -> str:
    return re.sub(r"\s+", " ", told)


async def test_steps_sequences_and_memory_are_drawn(open_page, engine):
    one = await (await open_page(make_app(engine), "#engine")).ready()
    page = one.page
    await page.wait_for_selector("#steps svg")
    label = await page.locator("#steps svg").get_attribute("aria-label")
    assert label == "The last step took 4.0 milliseconds for 13 rows of 2 sequences"
    drawn = await page.evaluate(
        "[...document.querySelectorAll('#steps .fill')].filter((p) => p.getAttribute('d')).length"
    )
    assert drawn == 4  # every kind of row
    rows = [text(row) for row in await page.locator("#sequences tr").all_inner_texts()]
    assert rows == [
        "7 answers 40 30 kept 12 6/9 drafts 2.50 s",
        "8 follows 7 100 \u2013 0 1.50 s",
        "9 waits 10 \u2013 0 500 ms",
        "and 2 more that wait",
    ]
    bars = await page.locator("#sequences tr:first-child .track i").evaluate_all("(all) => all.map((i) => i.title)")
    assert bars == ["restored: 30", "computed: 10", "answer: 12"]
    memory = text(await page.locator("#memory").inner_text())
    assert "300 used · 700 reserved · 700 free" in memory
    assert "RAM 5.0 KB of 9.0 KB · 30 prompt tokens from here, 33 % of all reused" in memory
    assert "Disk 70 B of 100 B · 20" in memory
    assert text(await page.locator("#running-now").inner_text()) == "2 of 8 slots, 3 wait"
    assert not any("<" in row for row in rows)


async def test_the_view_ends_its_stream_when_it_is_not_looked_at_and_comes_back(open_page, engine):
    app = make_app(engine)
    one = await (await open_page(app, "#engine")).ready()
    await one.page.wait_for_selector("#steps svg")
    await one.page.click("#tab-chat")
    async with asyncio.timeout(30):
        while app._engine_events._watchers:
            await asyncio.sleep(0.02)
    engine.series["steps"] = 4321
    await one.page.keyboard.press("Alt+2")
    await one.until("document.querySelector('[data-value=steps]').innerText.endsWith('321')")


async def test_of_several_models_the_chosen_one_is_asked_and_watched(open_page, tmp_path):
    models = ({"alias": "a"}, {"alias": "b"}, {"alias": "c", "load": "on_demand"})
    async with pooled(tmp_path, *models) as pool:
        for engine in pool.engines.values():
            engine.series = dict(COUNTERS)
            engine.distributions = {"inter_token_seconds": ((0.01,), [0, 0], 0.0)}
        pool.engines["b"].series["steps"] = 77
        one = await (await open_page(pool.app)).ready()
        one.may_fail.append("503")
        await one.page.select_option("#model", "b")
        await one.ask("Hi")
        assert await one.answered() == "Hello world"
        assert (len(pool.engines["a"].generations), len(pool.engines["b"].generations)) == (0, 1)
        await one.page.click("#tab-engine")
        await one.until("document.querySelector('[data-value=steps]')?.innerText === '77'")
        await one.page.select_option("#model", "c")
        await one.until("document.querySelector('#engine-status').innerText.includes('not loaded')")
        assert pool.children["c"] == []


def metrics(server: Server) -> dict[str, float]:
    connection = HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[:1] != "#")}


def asks(server: Server, n: int, max_tokens: int) -> list[threading.Thread]:
    def ask(i: int) -> None:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=60)
        words = " ".join(["shared"] * 60 + [str(i)] * i)
        body = {"prompt": words, "max_tokens": max_tokens, "ignore_eos": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        assert connection.getresponse().status == 200
        connection.close()

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    return threads


@pytest.fixture(scope="module")
def server(smollm2):
    def config(port: int) -> dict[str, object]:
        model = {"path": str(smollm2), "n_ctx": 4096, "n_seq_max": 8, "threads": 1}
        return {"server": {"port": port}, "model": model}

    with serving(config, None) as server:
        yield server


SERIES = {
    "steps": "llamacpp:n_decode_total",
    "prompt_tokens": "llamacpp:prompt_tokens_total",
    "generated_tokens": "llamacpp:tokens_predicted_total",
    "prefix_hits": "llamafast:prefix_cache_hits_total",
    "completed": "batch_server:requests_completed_total",
    "cancelled": "batch_server:requests_cancelled_total",
    "used": "llamafast:kv_cells_used",
    "reserved": "llamafast:kv_cells_reserved",
    "free": "llamafast:kv_cells_free",
}


async def test_under_load_it_moves_and_at_rest_it_equals_the_metrics(open_page, server):
    one = await (await open_page(f"http://127.0.0.1:{server.port}", "#engine")).ready()
    page = one.page
    await page.wait_for_selector("#memory [data-value]")

    async def shown() -> dict[str, float]:
        values = await page.evaluate(
            "[...document.querySelectorAll('[data-value]')].map((e) => [e.dataset.value, e.innerText])"
        )
        return {name: float(value.replace("\u202f", "")) for name, value in values if name in SERIES}

    async def until_equal() -> dict[str, float]:
        async with asyncio.timeout(30):
            while True:
                told = await asyncio.to_thread(metrics, server)
                if (now := await shown()) == {name: told[series] for name, series in SERIES.items()}:
                    return now
                await asyncio.sleep(0.2)

    before = await until_equal()
    threads = asks(server, 12, 150)
    await one.until("document.querySelectorAll('#sequences tr.decoding').length >= 2")
    await one.until("parseFloat(document.querySelector('#generated-now').innerText) > 0")
    assert "ms" in await page.locator("#gap-now").inner_text()
    await one.until("document.querySelectorAll('#steps .number').length > 0")
    lent = await page.evaluate("[...document.querySelectorAll('#sequences td:nth-child(5)')].map((e) => e.innerText)")
    assert any("of" in one for one in lent)
    for thread in threads:
        await asyncio.to_thread(thread.join)
    after = await until_equal()
    assert after["completed"] == before["completed"] + 12
    assert after["prefix_hits"] > before["prefix_hits"]


async def test_a_stopped_answer_is_cancelled_in_the_engine(open_page, server):
    before = metrics(server)["batch_server:requests_cancelled_total"]
    one = await (await open_page(f"http://127.0.0.1:{server.port}")).ready()
    await one.page.click("#open-settings")
    await one.page.fill("#set-max_tokens", "3000")
    # one that may not end before
    await one.page.fill("#set-schema", json.dumps({"type": "string", "minLength": 10_000}))
    await one.page.click("#settings .primary")
    await one.ask("Tell a very long story about the sea, with many chapters.")
    await one.page.wait_for_selector(".message.assistant .cost [data-fact]")
    await one.page.click("#stop")
    async with asyncio.timeout(30):
        while metrics(server)["batch_server:requests_cancelled_total"] == before:
            await asyncio.sleep(0.05)
