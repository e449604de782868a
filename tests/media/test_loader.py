"""The loader remembers how media stand in a prompt, within a number of bytes."""

from __future__ import annotations

import asyncio
import base64
from concurrent.futures import Future

import pytest
from support.standing_clock import stand_still

from llamafast.config import MtmdConfig
from llamafast.engine.media import MediaSource
from llamafast.errors import InvalidMedia
from llamafast.media.loader import _LAID_OUT_AT_ONCE, Loader
from llamafast.media.wire import Chunk


class FakeProcess:
    """Lays everything out as so many rows; ``n_asked`` counts."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self.n_asked = 0
        self.dropped: list[Future[list[Chunk]]] = []

    def drop(self, asked: Future[list[Chunk]]) -> None:
        self.dropped.append(asked)

    def lay_out(self, file: object, kind: str, low_detail: bool) -> Future[list[Chunk]]:
        self.n_asked += 1
        done: Future[list[Chunk]] = Future()
        done.set_result([Chunk(n_rows=self.n_rows, n_positions=self.n_rows, offsets=bytes(16 * self.n_rows))])
        return done


async def load(loader: Loader, content: bytes, salt: str = "") -> None:
    text = base64.b64encode(content).decode()
    (medium,) = await loader.load([MediaSource(kind="image", text=text, path="p", is_url=False)], salt)
    assert len(medium.chunks) == 1


async def test_a_medium_is_laid_out_once_for_each_salt() -> None:
    process = FakeProcess(9)
    loader = Loader(MtmdConfig(mmproj_path="p"), process, "fingerprint")  # type: ignore[arg-type]
    for salt in ("", "a", "", "a"):
        await load(loader, b"picture", salt)
    assert process.n_asked == 2


async def test_layouts_are_forgotten_beyond_a_number_of_bytes() -> None:
    process = FakeProcess(2**20 - 100)
    loader = Loader(MtmdConfig(mmproj_path="p"), process, "fingerprint")  # type: ignore[arg-type]
    for content in (b"1", b"2", b"2", b"1"):
        await load(loader, content)
    assert process.n_asked == 2
    await load(loader, b"3")
    await load(loader, b"3")
    await load(loader, b"1")
    assert process.n_asked == 4


class StuckProcess(FakeProcess):
    """Lays out the first one of all, and nothing more."""

    def lay_out(self, file: object, kind: str, low_detail: bool) -> Future[list[Chunk]]:
        return Future() if self.n_asked else super().lay_out(file, kind, low_detail)


async def test_media_that_do_not_get_ready_are_given_up_and_what_is_ready_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_still(monkeypatch)
    config = MtmdConfig(mmproj_path="p", load_max_seconds=0.3)
    loader = Loader(config, StuckProcess(9), "fingerprint")  # type: ignore[arg-type]
    sources = [MediaSource(kind="image", text=text, path=text, is_url=False) for text in ("AAAA", "BBBB", "CCCC")]
    await loader.load(sources[:1])
    with pytest.raises(InvalidMedia, match=r"within 0\.3 s \(model\.mtmd\.load_max_seconds\)") as caught:
        await loader.load(sources)
    assert caught.value.param == "BBBB"
    assert len(await loader.load(sources[:1])) == 1


async def test_media_that_get_ready_with_the_end_of_their_time_are_refused_as_the_first_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def late(*_: object) -> None:
        raise TimeoutError

    loader = Loader(MtmdConfig(mmproj_path="p"), StuckProcess(9), "fingerprint")  # type: ignore[arg-type]
    monkeypatch.setattr(loader, "_load", late)
    with pytest.raises(InvalidMedia, match="load_max_seconds") as caught:
        await loader.load([MediaSource(kind="image", text="AAAA", path="AAAA", is_url=False)])
    assert caught.value.param == "AAAA"


class PatientProcess(FakeProcess):
    """Answers when a test says so."""

    def __init__(self) -> None:
        super().__init__(1)
        self.asked: list[Future[list[Chunk]]] = []

    def lay_out(self, file: object, kind: str, low_detail: bool) -> Future[list[Chunk]]:
        self.asked.append(Future())
        return self.asked[-1]


async def test_who_leaves_has_its_media_dropped_and_makes_room_once_they_are() -> None:
    process = PatientProcess()
    loader = Loader(MtmdConfig(mmproj_path="p"), process, "fingerprint")  # type: ignore[arg-type]
    loads = [asyncio.create_task(load(loader, b"%d" % i)) for i in range(100)]
    async with asyncio.timeout(30):
        while len(process.asked) < _LAID_OUT_AT_ONCE:
            await asyncio.sleep(0)
    for one in loads:
        one.cancel()
    await asyncio.gather(*loads, return_exceptions=True)
    assert set(process.dropped) == set(process.asked)
    stays = asyncio.create_task(load(loader, b"stays"))
    async with asyncio.timeout(30):
        process.asked.pop().set_result([])
        while len(process.asked) < _LAID_OUT_AT_ONCE:
            await asyncio.sleep(0)
    process.asked.pop().set_result([Chunk(n_rows=1, n_positions=1)])
    await stays
