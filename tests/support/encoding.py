"""The process that encodes, as tests start it, give it jobs and kill it; with the encoder and the loader over it."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import threading

import numpy as np
from support.media_prompts import png

from llamafast.config import MtmdConfig
from llamafast.engine.media import MediaRows, MediaSource
from llamafast.media.anonymous_file import AnonymousFile
from llamafast.media.encode_job import EncodeJob
from llamafast.media.encoder import Encoder
from llamafast.media.loader import Loader
from llamafast.media.opened import NICENESS
from llamafast.media.process import MediaProcess
from llamafast.media.row_files import RowFiles
from llamafast.media.wire import Begin
from recipes import tiny_gguf, tiny_mmproj

MODEL, MMPROJ = "tiny-qwen35", "mmproj-qwen3vl-ultravox-64"


def begin(model=MODEL, mmproj=MMPROJ, **options):
    values = {
        "n_threads": 1, "device": None, "flash_attn": None, "batch_max_tokens": 1024, "image_max_tokens": 4096,
        "image_max_pixels": 50_000_000, "audio_max_seconds": 1800.0, "encode_max_seconds": 600.0,
        "video_max_seconds": 600.0, "video_max_frames": 256, "n_nice": NICENESS,
    }  # fmt: skip
    return Begin(model=str(tiny_gguf.build(model)), projector=str(tiny_mmproj.build(mmproj)), **values | options)


class Job(EncodeJob):
    """Waits for what comes of it; ``ends`` has every end that it was told of."""

    def __init__(self, data, kind="image", low_detail=False, there=()):
        self.rows, self.ends, self.ended = {}, [], threading.Event()
        super().__init__(AnonymousFile.of(data), kind, low_detail, self._came, self._ended, there)

    @property
    def error(self):
        return self.ends[0] if self.ends else None

    def _came(self, chunk, rows):
        self.rows[chunk] = np.frombuffer(rows, np.float32)

    def _ended(self, error):
        self.ends.append(error)
        self.ended.set()

    def result(self, process):
        process.encode(self)
        return self.outcome()

    def outcome(self):
        """Once it was given to a process."""
        assert self.ended.wait(30)
        if self.error is not None:
            raise self.error
        return self.rows


def laid_out(process, data, kind="image", low_detail=False):
    return process.lay_out(AnonymousFile.of(data), kind, low_detail).result(30)


def kill(process):
    """Once it has started again after the last time."""
    assert laid_out(process, png(96, 80, 1))
    os.kill(process.pid, signal.SIGKILL)
    return True


class Opened:
    """A process with an encoder and a loader over it."""

    def __init__(self, cache_bytes=2**20, files=None, **mtmd):
        limits = {name: value for name, value in mtmd.items() if name in Begin.__struct_fields__}
        self.process = MediaProcess(begin(**limits))
        ready = self.process.start()
        self.encoder = Encoder(
            self.process, ready.modalities, widest_span=0, width=64, cache_bytes=cache_bytes, files=files
        )
        self.loader = Loader(MtmdConfig(mmproj_path="p", **mtmd), self.process, ready.fingerprint, files)

    async def medium(self, data, kind="image", **options):
        text = f"data:x/y;base64,{base64.b64encode(data).decode()}"
        (medium,) = await self.loader.load([MediaSource(kind=kind, text=text, path="p", **options)])
        return medium

    def encoded(self, medium, salt=b""):
        """Wait for all rows."""
        news = threading.Semaphore(0)
        share = self.encoder.encode(medium, salt, news.release)
        wanted = [i for i, chunk in enumerate(medium.chunks) if isinstance(chunk, MediaRows)]
        while any(share.rows(i) is None for i in wanted):
            if share.error is not None:
                raise share.error
            assert news.acquire(timeout=30)
        return share


def disk(folder, max_bytes=10**6):
    return RowFiles(folder, max_bytes)


async def until(said):
    async with asyncio.timeout(30):
        while not said():
            await asyncio.sleep(0.005)
