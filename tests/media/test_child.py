"""The process that encodes: what it makes of media is what libmtmd makes of them, and nothing hurts anybody else."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import struct
import sys
import tempfile
import threading
import time
from io import BytesIO

import numpy as np
import pytest
from gguf import GGUFWriter
from PIL import Image
from support.media_prompts import png, projector, tone, wav

from llamafast._core.model import Model
from llamafast._core.mtmd import projector_kinds
from llamafast.config import MtmdConfig
from llamafast.engine.media import MediaRows, MediaSource
from llamafast.errors import EngineFailure, EngineUnavailable, InvalidMedia, ModelLoadError
from llamafast.media.anonymous_file import AnonymousFile
from llamafast.media.encode_job import EncodeJob
from llamafast.media.encoder import Encoder
from llamafast.media.ffmpeg import read_samples
from llamafast.media.loader import Loader
from llamafast.media.opened import NICENESS
from llamafast.media.process import MediaProcess
from llamafast.media.row_files import RowFiles
from llamafast.media.wire import Begin
from recipes import tiny_gguf, tiny_mmproj

MODEL, MMPROJ = "tiny-qwen35", "mmproj-qwen3vl-ultravox-64"


def begin(model=MODEL, mmproj=MMPROJ, **options):
    values = {
        "n_threads": 1, "use_gpu": False, "flash_attn": None, "batch_max_tokens": 1024, "image_max_tokens": 4096,
        "image_max_pixels": 50_000_000, "audio_max_seconds": 1800.0, "encode_max_seconds": 600.0,
        "video_max_seconds": 600.0, "video_max_frames": 256, "n_nice": NICENESS,
    }  # fmt: skip
    return Begin(model=str(tiny_gguf.build(model)), projector=str(tiny_mmproj.build(mmproj)), **values | options)


@pytest.fixture
def process():
    process = MediaProcess(begin())
    process.ready = process.start()
    yield process
    process.close()


class Job(EncodeJob):
    """Waits for what comes of it."""

    def __init__(self, data, kind="image", low_detail=False, there=()):
        self.rows, self.error, self.ended = {}, None, threading.Event()
        super().__init__(AnonymousFile.of(data), kind, low_detail, self._came, self._ended, there)

    def _came(self, chunk, rows):
        self.rows[chunk] = np.frombuffer(rows, np.float32)

    def _ended(self, error):
        self.error = error
        self.ended.set()

    def result(self, process):
        process.encode(self)
        assert self.ended.wait(20)
        if self.error is not None:
            raise self.error
        return self.rows


def laid_out(process, data, kind="image", low_detail=False):
    return process.lay_out(AnonymousFile.of(data), kind, low_detail).result(20)


def test_it_says_what_it_takes(process):
    assert process.ready.modalities == ("image", "audio", "video")
    assert process.ready.width == 64
    assert process.ready.widest_span == 0
    other = MediaProcess(begin("tiny-llama", "mmproj-gemma3-64"))
    ready = other.start()
    assert (ready.modalities, ready.widest_span) == (("image", "video"), 4)
    assert ready.fingerprint != process.ready.fingerprint
    other.close()


@pytest.mark.parametrize(
    ("kind", "data"), [("image", png(96, 80, 1)), ("image", png(300, 40, 1)), ("audio", wav(40, 440))]
)
def test_layouts_and_rows_are_libmtmds_own(process, kind, data):
    encoder = projector(Model(str(tiny_gguf.build(MODEL))), tiny_mmproj.build(MMPROJ))
    if kind == "image":
        picture = Image.open(BytesIO(data))
        chunks = encoder.image(*picture.size, picture.convert("RGB").tobytes())
    else:
        samples = encoder.decode_audio(data)
        assert abs(np.frombuffer(samples, np.float32) - np.frombuffer(tone(40, 440), np.float32)).max() < 1e-3
        chunks = encoder.audio(len(samples), samples)
    told, rows = laid_out(process, data, kind), Job(data, kind).result(process)
    assert len(told) == len(chunks)
    for i, chunk in enumerate(told):
        assert chunk.tokens == chunks.tokens(i)
        if chunk.tokens is None:
            assert (chunk.n_rows, chunk.n_positions, chunk.causal, chunk.offsets) == chunks.span(i)
            expected = np.empty((chunk.n_rows, 64), np.float32)
            chunks.encode(i, expected)
            assert np.array_equal(rows[i], expected.reshape(-1))
    assert set(rows) == {i for i, chunk in enumerate(told) if chunk.tokens is None}


def test_rows_that_are_there_are_not_made_again(process):
    assert set(Job(wav(40, 300), "audio", there=(0,)).result(process)) == {1}


def test_low_detail_is_a_small_picture(process):
    whole, small = (
        next(chunk.n_rows for chunk in laid_out(process, png(1600, 800, 1), low_detail=low) if not chunk.tokens)
        for low in (False, True)
    )
    assert small < whole
    assert len(next(iter(Job(png(1600, 800, 1), low_detail=True).result(process).values()))) == 64 * small


def saved(image, form, **options):
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 255, (200, 300, 3), dtype=np.uint8))
JPEG = saved(NOISE, "JPEG")
BOMB = saved(Image.new("L", (9000, 9000)), "PNG")


def lying_wav(n_bytes):
    data = bytearray(wav(1.0, 440))
    data[40:44] = struct.pack("<I", n_bytes)
    data[4:8] = struct.pack("<I", n_bytes & 0xFFFFFFFF)
    return bytes(data)


def read(process, data, kind):
    """Some faults are seen in a file's beginning, others where it is decoded."""
    laid_out(process, data, kind)
    return Job(data, kind).result(process)


@pytest.mark.parametrize(
    ("kind", "data", "sentence"),
    [
        ("image", JPEG[:200], "cut off|cannot be read"),
        ("image", JPEG[: len(JPEG) // 2], "cut off"),
        ("image", png(96, 80, 1)[:-30], "cut off|cannot be read"),
        ("image", BOMB, "81000000 pixels; at most 50000000"),
        ("image", b"", "cannot be read"),
        ("image", b"GIF89a", "cannot be read"),
        ("image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot be read"),
        ("image", wav(0.1, 440), "cannot be read"),
        ("image", b"\x89PNG\r\n\x1a\n" + bytes(1000), "cannot be read"),
        ("audio", png(96, 80, 1), "cannot be read; formats: WAV, MP3, FLAC"),
        ("audio", b"", "cannot be read"),
        ("audio", b"RIFF", "cannot be read"),
        ("audio", b"RIFF\x00\x00\x00\x00WAVE" + bytes(50), "cannot be read"),
        ("audio", b"ID3" + bytes(500), "cannot be read"),
        ("audio", b"fLaC" + bytes(500), "cannot be read"),
        ("audio", b"#EXTM3U\nfile:///etc/passwd\n", "cannot be read"),
        ("audio", wav(1 / 16000, 440), "shorter than 0.05 s"),
        ("audio", wav(0.04, 440), "shorter than 0.05 s"),
        ("audio", wav(0.0, 440), "cannot be read|shorter"),
    ],
)
def test_what_cannot_be_read_is_told_and_hurts_nobody(process, kind, data, sentence):
    pid = process.pid
    with pytest.raises(InvalidMedia, match=sentence):
        read(process, data, kind)
    assert laid_out(process, png(96, 80, 1))
    assert process.pid == pid


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("image", png(1, 1, 1)),
        ("image", png(2000, 1, 1)),
        ("image", png(1, 2000, 1)),
        ("image", saved(NOISE.convert("RGBA"), "PNG")),
        ("image", saved(NOISE.convert("CMYK"), "JPEG")),
        ("image", saved(NOISE.convert("L"), "WEBP")),
        ("image", saved(NOISE.convert("P"), "GIF", save_all=True, append_images=[NOISE.convert("P")])),
        ("image", saved(Image.fromarray(np.zeros((40, 40), np.uint16)), "PNG")),
        ("image", saved(NOISE, "BMP")),
        ("image", saved(NOISE, "TIFF")),
        ("audio", lying_wav(0xFFFFFFF0)),
        ("audio", lying_wav(100_000_000)),
        ("audio", wav(0.06, 440)),
        ("audio", wav(31, 440)),
    ],
)
def test_what_is_odd_is_served(process, kind, data):
    pid = process.pid
    told, rows = laid_out(process, data, kind), Job(data, kind).result(process)
    for i, chunk in enumerate(told):
        if chunk.tokens is None:
            assert np.isfinite(rows[i]).all()
            assert len(rows[i]) == 64 * chunk.n_rows
    assert process.pid == pid


def test_what_needs_ffmpeg_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    process = MediaProcess(begin())
    process.start()
    for kind, data, sentence in (
        ("video", b"\0\0\0\x18ftypmp42", "reading this needs ffmpeg, which is not on this machine"),
        ("audio", b"OggS" + bytes(100), "formats: WAV, MP3, FLAC; others need ffmpeg, which is not on this machine"),
    ):
        with pytest.raises(InvalidMedia, match=sentence):
            laid_out(process, data, kind)
    process.close()


def test_complaints_of_a_reader_are_bounded(monkeypatch, tmp_path):
    (tmp_path / "ffmpeg").write_text("#!/bin/sh\nexec yes >&2\n")
    (tmp_path / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    begun = time.monotonic()
    with tempfile.TemporaryFile() as file, pytest.raises(InvalidMedia, match="takes too long"):
        read_samples(file.fileno(), 16000, max_seconds=1, deadline=20)
    if sys.platform == "linux":
        assert time.monotonic() - begun < 10


def test_a_cpu_limit_ends_what_takes_too_long():
    process = MediaProcess(begin(encode_max_seconds=0.002))
    process.start()
    with pytest.raises(EngineFailure, match="the projector failed on this audio"):
        Job(wav(120, 440), "audio").result(process)
    assert laid_out(process, png(96, 80, 1))
    assert process.counts["media_restarts"] == 1
    process.close()


def kill(process):
    """Once it has started again after the last time."""
    assert laid_out(process, png(96, 80, 1))
    os.kill(process.pid, signal.SIGKILL)
    return True


def test_a_death_fails_what_was_encoded_and_nothing_else(process):
    """The process is killed again and again, with jobs behind each other."""
    jobs = [Job(wav(30 + k, 300), "audio") for k in range(8)]
    for job in jobs:
        process.encode(job)
    killed = 0
    while not all(job.ended.is_set() for job in jobs):
        if killed < 3:
            killed += kill(process)
        time.sleep(0.01)
    failed = [job for job in jobs if job.error is not None]
    assert len(failed) <= 3
    assert all(isinstance(job.error, EngineFailure) for job in failed)
    assert len(laid_out(process, png(96, 80, 1))) == 3


def test_layouts_outlive_a_death(process):
    os.kill(process.pid, signal.SIGSTOP)
    waiting = [process.lay_out(AnonymousFile.of(png(96, 80, seed)), "image", False) for seed in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    assert all(len(one.result(20)) == 3 for one in waiting)


def test_close_tells_whoever_waits(process):
    os.kill(process.pid, signal.SIGSTOP)
    job = Job(png(96, 80, 1))
    process.encode(job)
    behind = Job(png(96, 80, 2))
    process.encode(behind)
    layout = process.lay_out(AnonymousFile.of(png(96, 80, 1)), "image", False)
    process.close()
    assert job.ended.wait(5)
    assert behind.ended.wait(5)
    for error in (job.error, behind.error, layout.exception(5)):
        assert isinstance(error, EngineUnavailable)


def test_it_ends_with_its_server():
    """Also while it is stopped."""
    process = MediaProcess(begin())
    process.start()
    pid = process.pid
    os.kill(pid, signal.SIGSTOP)
    process._wire.close()
    process._closing = True
    process.close()
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("it still runs")


@pytest.mark.parametrize(
    ("model", "mmproj", "reason"),
    [("tiny-llama", "mmproj-qwen3vl-576", "mismatch|n_embd"), ("tiny-llama-chain", None, "cannot load")],
)
def test_what_cannot_be_loaded_is_told(tmp_path, model, mmproj, reason):
    asked = begin(model)
    if mmproj is None:
        asked.projector = str(tmp_path / "none.gguf")
    else:
        asked.projector = str(tiny_mmproj.build(mmproj))
    with pytest.raises(ModelLoadError, match=reason):
        MediaProcess(asked).start()


def test_projectors_that_lay_out_by_place_are_refused(tmp_path):
    path = tmp_path / "placed.gguf"
    writer = GGUFWriter(path, "clip")
    writer.add_string("clip.projector_type", "hunyuanvl")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    asked = begin()
    asked.projector = str(path)
    with pytest.raises(ModelLoadError, match="of kind hunyuanvl"):
        MediaProcess(asked).start()
    assert projector_kinds(str(tiny_mmproj.build(MMPROJ))) == ["qwen3vl_merger", "ultravox"]


class Opened:
    """A process with an encoder and a loader over it."""

    def __init__(self, cache_bytes=2**20, files=None, **mtmd):
        self.process = MediaProcess(begin())
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
            assert news.acquire(timeout=20)
        return share


async def until(said):
    async with asyncio.timeout(20):
        while not said():
            await asyncio.sleep(0.005)


@pytest.fixture
def opened():
    opened = Opened()
    yield opened
    opened.encoder.close()


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
        assert await asyncio.to_thread(news.acquire, timeout=20)
    assert opened.encoder.counts()["media_encodes"] <= 1
    assert opened.encoder.counts()["media_joined"] == 7


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


def disk(folder, max_bytes=10**6):
    return RowFiles(folder, max_bytes)


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
