"""The encoder and the loader over a process: rows are made once for all of a tenant who wait, and are kept."""

from __future__ import annotations

import asyncio
import base64
import threading

import pytest
from support.encoding import Opened, disk, kill, until
from support.media_prompts import png, wav

from llamafast.engine.media import MediaSource
from llamafast.errors import EngineFailure, InvalidMedia


async def test_the_same_bytes_are_encoded_once_for_a_salt(opened):
    first, second = await opened.medium(png(96, 80, 1)), await opened.medium(png(96, 80, 1))
    assert first.digest == second.digest
    rows = opened.encoded(first).rows(1)
    await until(lambda: opened.encoder.counts()["media_encodes"] == 1)
    assert opened.encoded(second).rows(1) is rows
    assert bytes(opened.encoded(first, b"another").rows(1)) == bytes(rows)
    await until(lambda: opened.encoder.counts()["media_encodes"] == 2)
    assert opened.encoder.counts()["media_hits_ram"] == 1


async def test_many_who_wait_wait_for_one(opened):
    medium = await opened.medium(wav(60, 440), "audio")
    news = threading.Semaphore(0)
    shares = [opened.encoder.encode(medium, b"", news.release) for _ in range(8)]
    for share in shares[1:4]:
        share.leave()
    while any(share.rows(chunk) is None for share in shares[4:] for chunk in (0, 1)):
        assert await asyncio.to_thread(news.acquire, timeout=30)
    assert opened.encoder.counts()["media_encodes"] <= 1
    assert opened.encoder.counts()["media_joined"] == 7


@pytest.mark.heavy
async def test_nothing_is_encoded_for_nobody(opened):
    long, short = await opened.medium(wav(300, 440), "audio"), await opened.medium(png(96, 80, 1))
    first = opened.encoder.encode(long, b"", lambda: None)
    second = opened.encoder.encode(short, b"", lambda: None)
    second.leave()
    opened.encoded(long)
    first.leave()
    await until(lambda: opened.encoder.counts()["media_encodes"])
    await asyncio.sleep(0.05)
    assert opened.encoder.counts()["media_encodes"] == 1
    opened.encoded(short)


async def test_the_cache_keeps_to_its_bytes():
    opened = Opened(cache_bytes=20_000)
    pictures = [await opened.medium(png(160, 160, seed)) for seed in range(12)]
    for medium in pictures:
        opened.encoded(medium)
        # beside those that are still being told
        assert opened.encoder.counts()["media_cache_bytes"] <= 20_000 + 4 * 64 * medium.chunks[1].n_rows
    await until(lambda: opened.encoder.counts()["media_encodes"] == len(pictures))
    assert opened.encoder.counts()["media_cache_bytes"] <= 20_000
    before = len(pictures)
    opened.encoded(pictures[-1])
    assert opened.encoder.counts()["media_encodes"] == before
    opened.encoded(pictures[0])
    await until(lambda: opened.encoder.counts()["media_encodes"] == before + 1)
    opened.encoder.close()


async def test_details_and_kinds_are_in_the_digest(opened):
    one = await opened.medium(png(1600, 800, 1))
    low = await opened.medium(png(1600, 800, 1), low_detail=True)
    assert one.digest != low.digest
    assert one.chunks[1].n_rows > low.chunks[1].n_rows


@pytest.mark.heavy
async def test_a_digest_that_kills_twice_is_refused(opened):
    medium = await opened.medium(wav(600, 440), "audio")
    for _ in range(2):
        share = opened.encoder.encode(medium, b"", lambda: None)
        assert kill(opened.process)
        await until(lambda share=share: share.error)
        assert isinstance(share.error, EngineFailure)
    share = opened.encoder.encode(medium, b"", lambda: None)
    assert isinstance(share.error, EngineFailure)
    share.leave()
    opened.encoded(await opened.medium(png(96, 80, 1)))


async def test_a_loader_names_the_one_at_fault(opened):
    good = f"data:image/png;base64,{base64.b64encode(png(96, 80, 1)).decode()}"
    sources = [
        MediaSource(kind="image", text=good, path="a"),
        MediaSource(kind="image", text="data:image/png;base64,AAAA", path="b"),
        MediaSource(kind="image", text="", path="c", is_url=False),
    ]
    with pytest.raises(InvalidMedia) as caught:
        await opened.loader.load(sources)
    assert caught.value.param == "b"
    with pytest.raises(InvalidMedia, match="empty") as caught:
        await opened.loader.load(sources[2:])
    assert caught.value.param == "c"
    with pytest.raises(InvalidMedia, match="at most 32 media") as caught:
        await opened.loader.load([*sources[:1] * 32, *sources[1:2]])
    assert caught.value.param == "b"


async def test_rows_outlive_the_server(tmp_path):
    first = Opened(files=disk(tmp_path / "rows"))
    medium = await first.medium(wav(40, 440), "audio")
    rows = [bytes(first.encoded(medium).rows(chunk)) for chunk in (0, 1)]
    first.encoder.close()
    assert first.encoder.counts()["media_disk_writes"] == 2
    second = Opened(files=disk(tmp_path / "rows"))
    share = second.encoded(await second.medium(wav(40, 440), "audio"))
    assert [bytes(share.rows(chunk)) for chunk in (0, 1)] == rows
    counts = second.encoder.counts()
    assert (counts["media_encodes"], counts["media_hits_disk"]) == (0, 2)
    second.encoded(medium, b"another tenant")
    await until(lambda: second.encoder.counts()["media_encodes"] == 1)
    second.encoder.close()


async def test_a_window_that_is_gone_is_encoded_again_and_the_other_is_not(tmp_path):
    """All windows of a clip and all slices of a picture have rows of their own."""
    first = Opened(files=disk(tmp_path))
    medium = await first.medium(wav(40, 440), "audio")
    share = first.encoded(medium)
    rows = [bytes(share.rows(chunk)) for chunk in (0, 1)]
    assert rows[0] != rows[1]
    first.encoder.close()
    for path in sorted(tmp_path.iterdir())[:1]:
        path.unlink()
    second = Opened(files=disk(tmp_path))
    share = second.encoded(medium)
    assert [bytes(share.rows(chunk)) for chunk in (0, 1)] == rows
    await until(lambda: second.encoder.counts()["media_encodes"] == 1)
    assert second.encoder.counts()["media_hits_disk"] == 1
    second.encoder.close()
