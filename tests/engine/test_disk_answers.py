"""Engines over a disk tier: what one has computed another reads after it, and the answers stay the same."""

from __future__ import annotations

import asyncio
import threading
from array import array
from contextlib import asynccontextmanager, suppress

import pytest
from support.engines import GREEDY, settled

from engine.test_memory_kinds import KIND_PARAMS, TEXTS, answer, start
from llamafast.config import DiskCacheConfig
from llamafast.engine.types import Plan

pytestmark = pytest.mark.usefixtures("patience")


@asynccontextmanager
async def disk_engine(tiny_model, kind, folder, max_bytes=10**9, min_tokens=16, **settings):
    disk = DiskCacheConfig(path=str(folder), max_bytes=max_bytes, min_tokens=min_tokens)
    engine = start(tiny_model, kind, 10**8, disk_cache=disk, **settings)
    try:
        yield engine
    finally:
        await engine.close(10.0)


async def until(engine, **counters):
    async with asyncio.timeout(30):
        while any(engine.counters()[name] < n for name, n in counters.items()):
            await asyncio.sleep(0.01)


def entries(folder):
    return sorted(folder.glob("*/*.safetensors"))


@pytest.mark.parametrize("kind", KIND_PARAMS)
async def test_a_conversation_goes_on_after_a_restart(tiny_model, tmp_path, kind):
    folder = tmp_path / "disk"
    first, second = TEXTS[0][:300], [*TEXTS[0][:300], *TEXTS[1][:30]]
    alone = start(tiny_model, kind, 0)
    truths = [(await answer(alone, prompt))[0] for prompt in (first, second)]
    await alone.close()
    async with disk_engine(tiny_model, kind, folder) as engine:
        assert (await answer(engine, first))[0] == truths[0]
    assert entries(folder)
    async with disk_engine(tiny_model, kind, folder) as engine:
        await until(engine, disk_entries=1)
        text, cached = await answer(engine, second)
        assert text == truths[1]
        assert cached >= 290
        assert engine.counters()["prefix_hits_disk"] >= 290
        await settled(engine)
        assert (await answer(engine, second))[0] == truths[1]


async def tokens_and_logprobs(engine, prompt):
    generation = engine.submit(
        Plan(prompts=(array("i", prompt),), sampling=GREEDY, ignore_eos=True, max_tokens=12, top_logprobs=3)
    )
    found = []
    async for events in generation:
        for event in events:
            found += [(entry.token, entry.logprob) for entry in event.logprobs or ()]
    await settled(engine)
    return [token for token, _ in found], [logprob for _, logprob in found]


@pytest.mark.parametrize("kind", KIND_PARAMS)
async def test_tokens_and_probabilities_are_those_without_a_cache(tiny_model, tmp_path, kind):
    prompt = [*TEXTS[0][:300], *TEXTS[1][:50]]
    alone = start(tiny_model, kind, 0)
    tokens, logprobs = await tokens_and_logprobs(alone, prompt)
    await alone.close()
    assert len(tokens) >= 11  # one may be hidden
    answers = []
    async with disk_engine(tiny_model, kind, tmp_path / "disk") as engine:
        await answer(engine, TEXTS[0][:300])
        await settled(engine)
        answers.append(await tokens_and_logprobs(engine, prompt))  # from RAM
    async with disk_engine(tiny_model, kind, tmp_path / "disk") as engine:
        await until(engine, disk_entries=1)
        answers.append(await tokens_and_logprobs(engine, prompt))
        assert engine.counters()["prefix_hits_disk"] >= 290
    for found, probabilities in answers:
        assert found == tokens
        assert probabilities == pytest.approx(logprobs, abs=1e-3)


async def test_a_prompt_that_leaves_the_middle_of_a_part_takes_what_is_in_common(tiny_model, tmp_path):
    branch = [*TEXTS[0][:200], *TEXTS[2][:50]]
    alone = start(tiny_model, "unified", 0)
    truth, _ = await answer(alone, branch)
    await alone.close()
    async with disk_engine(tiny_model, "unified", tmp_path / "disk") as engine:
        await answer(engine, TEXTS[0])
    async with disk_engine(tiny_model, "unified", tmp_path / "disk") as engine:
        await until(engine, disk_entries=1)
        assert await answer(engine, branch) == (truth, 200)


async def test_salts_are_kept_apart_and_not_told_on_the_disk(tiny_model, tmp_path):
    prompt = TEXTS[0][:300]
    async with disk_engine(tiny_model, "unified", tmp_path / "disk") as engine:
        await answer(engine, prompt, cache_salt="wonderful secret")
    (entry,) = entries(tmp_path / "disk")
    assert b"wonderful" not in entry.read_bytes()
    async with disk_engine(tiny_model, "unified", tmp_path / "disk") as engine:
        await until(engine, disk_entries=1)
        assert (await answer(engine, prompt))[1] == 0
        assert (await answer(engine, prompt, cache_salt="another"))[1] == 0
        assert (await answer(engine, prompt, cache_salt="wonderful secret"))[1] == 299


async def test_scored_and_short_prompts_leave_no_file(tiny_model, tmp_path):
    async with disk_engine(tiny_model, "unified", tmp_path / "disk", min_tokens=128) as engine:
        await answer(engine, TEXTS[0][:300], top_logprobs=1, prompt_logprobs=True)
        await answer(engine, TEXTS[1][:100])
        await settled(engine)
    assert not entries(tmp_path / "disk")


async def test_another_model_or_another_cache_type_reads_nothing(tiny_model, tmp_path):
    prompt = TEXTS[0][:300]
    async with disk_engine(tiny_model, "unified", tmp_path / "disk") as engine:
        await answer(engine, prompt)
    others = [("unified", {"type_k": 1, "type_v": 1}), ("window", {}), ("unified", {"rope_freq_scale": 0.5})]
    for kind, settings in others:
        async with disk_engine(tiny_model, kind, tmp_path / "disk", **settings) as engine:
            assert (await answer(engine, prompt))[1] == 0
    async with disk_engine(tiny_model, "unified", tmp_path / "disk", n_ctx=4096, n_seq_max=2) as engine:
        await until(engine, disk_entries=1)
        assert (await answer(engine, prompt))[1] == 299


async def test_forgetting_the_cache_empties_the_folder(tiny_model, tmp_path):
    async with disk_engine(tiny_model, "unified", tmp_path / "disk") as engine:
        await answer(engine, TEXTS[0][:300])
    async with disk_engine(tiny_model, "unified", tmp_path / "disk") as engine:
        await until(engine, disk_entries=1)
        await engine.reset_prefix_cache()
        async with asyncio.timeout(30):
            while entries(tmp_path / "disk"):
                await asyncio.sleep(0.01)
        assert (await answer(engine, TEXTS[0][:300]))[1] == 0
        assert engine.counters()["disk_entries"] == 0


async def test_what_nobody_asks_for_again_is_written_only_while_nobody_computes(tiny_model, tmp_path):
    async with disk_engine(tiny_model, "unified", tmp_path / "disk") as engine:
        busy = engine.submit(Plan(prompts=(array("i", [40, 41]),), sampling=GREEDY, ignore_eos=True, max_tokens=8000))
        await answer(engine, TEXTS[0][:300])
        assert engine.counters()["disk_save_requests"] == 0
        await answer(engine, TEXTS[0][:300])  # a second use
        await until(engine, disk_entries=1)
        await answer(engine, TEXTS[1][:300])
        busy.cancel()
        await until(engine, disk_entries=2)  # the first second without anybody


async def test_the_folder_never_holds_more_than_it_may(tiny_model, tmp_path):
    async with disk_engine(tiny_model, "unified", tmp_path / "disk", max_bytes=10**9) as engine:
        await answer(engine, TEXTS[0][:300])
    n_bytes = entries(tmp_path / "disk")[0].stat().st_blocks * 512
    for k in range(6):
        async with disk_engine(tiny_model, "unified", tmp_path / "disk", max_bytes=3 * n_bytes) as engine:
            await answer(engine, [50 + k, *TEXTS[0][:299]])
        assert 1 <= len(entries(tmp_path / "disk")) <= 3
    async with disk_engine(tiny_model, "unified", tmp_path / "disk", max_bytes=0) as engine:
        await answer(engine, TEXTS[2][:300])
    assert not entries(tmp_path / "disk")


async def test_a_second_server_reads_what_the_first_writes(tiny_model, tmp_path):
    prompt = TEXTS[0][:300]
    async with disk_engine(tiny_model, "unified", tmp_path / "disk") as first:
        await answer(first, prompt)
        await until(first, disk_entries=1)
        async with disk_engine(tiny_model, "unified", tmp_path / "disk") as second:
            await until(second, disk_entries=1)
            assert second.counters()["disk_writable"] == 0
            assert (await answer(second, prompt))[1] == 299
            await answer(second, TEXTS[1])
            await answer(second, TEXTS[1])
        assert len(entries(tmp_path / "disk")) == 1


@pytest.mark.parametrize("harm", ["cut", "flipped", "gone"])
async def test_a_file_that_is_not_as_it_was_costs_its_tokens_alone(tiny_model, tmp_path, harm):
    prompt = TEXTS[0][:300]
    async with disk_engine(tiny_model, "unified", tmp_path / "disk") as engine:
        truth, _ = await answer(engine, prompt)
    async with disk_engine(tiny_model, "unified", tmp_path / "disk") as engine:
        await until(engine, disk_entries=1)
        (entry,) = entries(tmp_path / "disk")
        data = bytearray(entry.read_bytes())
        entry.unlink()
        if harm == "cut":
            entry.write_bytes(data[:-1])
        elif harm == "flipped":
            data[-5000] ^= 1
            entry.write_bytes(data)
        assert await answer(engine, prompt) == (truth, 0)
        assert engine.counters()["disk_load_failures"] == 1
        await settled(engine)
        assert (await answer(engine, prompt))[1] == 299
    assert entry not in entries(tmp_path / "disk")


async def test_a_waiting_request_has_its_prefix_read_meanwhile(tiny_model, tmp_path):
    prompt = TEXTS[0][:300]
    async with disk_engine(tiny_model, "unified", tmp_path / "disk") as engine:
        await answer(engine, prompt)
    async with disk_engine(tiny_model, "unified", tmp_path / "disk", n_seq_max=1) as engine:
        await until(engine, disk_entries=1)
        busy = engine.submit(Plan(prompts=(array("i", [40, 41]),), sampling=GREEDY, ignore_eos=True, max_tokens=8000))
        waits = asyncio.create_task(answer(engine, prompt))
        await until(engine, disk_loads=1)
        assert engine.counters()["waiting"] == 1
        busy.cancel()
        assert (await waits)[1] == 299
        assert engine.counters()["disk_loads"] == 1


async def test_no_moment_sees_more_bytes_than_may_be_there(tiny_model, tmp_path):
    folder, most = tmp_path / "disk", 1_500_000
    seen, over = [], threading.Event()

    def look():
        while not over.wait(0.002):
            with suppress(FileNotFoundError):
                seen.append(sum(512 * file.stat().st_blocks for file in folder.rglob("*.*") if file.suffix != ".json"))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        async with disk_engine(tiny_model, "unified", folder, max_bytes=most) as engine:
            for k in range(40):
                prompt = [50 + k, *TEXTS[0][:299]]
                for _ in range(2):
                    await answer(engine, prompt)
                await settled(engine)
            counters = engine.counters()
    finally:
        over.set()
        looking.join()
    assert counters["disk_written_bytes"] > 2 * most
    assert counters["disk_evictions"] > 10
    assert 0 < max(seen) <= most


async def test_what_runs_when_the_server_ends_is_kept(tiny_model, tmp_path):
    prompt = TEXTS[0][:300]
    async with disk_engine(tiny_model, "unified", tmp_path / "disk") as engine:
        engine.submit(Plan(prompts=(array("i", prompt),), sampling=GREEDY, ignore_eos=True, max_tokens=7000))
        await until(engine, generated_tokens=20)
    async with disk_engine(tiny_model, "unified", tmp_path / "disk") as engine:
        await until(engine, disk_entries=1)
        assert (await answer(engine, prompt))[1] == 299
