"""Pictures by the hundred at once: memory is that of one that is decoded, and of the rows that are kept."""

from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path

import pytest
from PIL import Image
from support.encoding import Opened, until

from llamafast.engine.media import MediaRows, Medium
from llamafast.media.encoder import Share

pytestmark = pytest.mark.media

N_PICTURES, WIDTH, HEIGHT = 200, 4000, 3000
CACHE_BYTES = 2**20
# What may stay beside the rows that are kept.
LEFT = 64 * 2**20
ROWS = 64


def jpeg(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def other(picture: bytes, n: int) -> bytes:
    """The same with a comment of its own: other bytes, and so another picture to whoever keeps rows."""
    return picture[:2] + b"\xff\xfe\x00\x06" + n.to_bytes(4, "big") + picture[2:]


def resident(pid: int | str, field: str = "VmRSS") -> int:
    """Bytes, ``VmHWM``: the most since ``forget_peak``."""
    found = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def encoded(opened: Opened, medium: Medium) -> None:
    """Wait for its rows, and let go of them."""
    loop, news = asyncio.get_running_loop(), asyncio.Event()
    share: Share = opened.encoder.encode(medium, b"", lambda: loop.call_soon_threadsafe(news.set))
    wanted = [i for i, chunk in enumerate(medium.chunks) if isinstance(chunk, MediaRows)]
    while any(share.rows(i) is None for i in wanted):
        assert share.error is None
        await news.wait()
        news.clear()


async def test_two_hundred_photos_at_once_take_the_memory_of_one() -> None:
    opened = Opened(cache_bytes=CACHE_BYTES, image_max_tokens=ROWS)
    picture = jpeg(WIDTH, HEIGHT)
    try:
        for n in range(2):  # what is allotted once
            await encoded(opened, await opened.medium(other(picture, n)))
        child = opened.process.pid
        assert child is not None
        before, own = resident(child), resident("self")
        forget_peak(child)
        await encoded(opened, await opened.medium(other(picture, 2)))
        peak_of_one = resident(child, "VmHWM")
        forget_peak(child)
        media = await asyncio.gather(*(opened.medium(other(picture, 3 + n)) for n in range(N_PICTURES)))
        assert len({medium.digest for medium in media}) == N_PICTURES
        await asyncio.gather(*(encoded(opened, medium) for medium in media))
        assert opened.process.pid == child
        assert resident(child, "VmHWM") <= peak_of_one + LEFT
        del media
        assert resident(child) <= before + LEFT
        assert resident("self") <= own + CACHE_BYTES + LEFT
        # rows are there before the process says that they were the last
        await until(lambda: opened.encoder.counts()["media_encodes"] == N_PICTURES + 3)
        assert opened.encoder.counts()["media_cache_bytes"] <= CACHE_BYTES
    finally:
        opened.encoder.close()
