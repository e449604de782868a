"""The loader remembers how media stand in a prompt, within a number of bytes."""

from __future__ import annotations

import base64
from concurrent.futures import Future

from llamafast.config import MtmdConfig
from llamafast.engine.media import MediaSource
from llamafast.media.loader import Loader
from llamafast.media.wire import Chunk


class FakeProcess:
    """Lays everything out as so many rows; ``n_asked`` counts."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self.n_asked = 0

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
