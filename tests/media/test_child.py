"""The process that encodes: what it makes of media is what libmtmd makes of them, and nothing hurts anybody else."""

from __future__ import annotations

import os
import struct
import sys
import tempfile
import time
from io import BytesIO

import numpy as np
import pytest
from gguf import GGUFWriter
from PIL import Image
from support.encoding import MMPROJ, MODEL, Job, begin, laid_out
from support.media_prompts import png, projector, tone, wav

from llamafast._core.model import Model
from llamafast._core.mtmd import projector_kinds
from llamafast.errors import InvalidMedia, ModelLoadError
from llamafast.media.ffmpeg import read_samples
from llamafast.media.process import MediaProcess
from recipes import tiny_gguf, tiny_mmproj


@pytest.fixture(scope="module")
def process():
    """One for all: what hurts nobody hurts no later one either."""
    process = MediaProcess(begin())
    process.ready = process.start()
    yield process
    process.close()


def test_it_says_what_it_takes(process):
    assert process.ready.modalities == ("image", "audio", "video")
    assert process.ready.width == 64
    assert process.ready.widest_span == 0
    other = MediaProcess(begin("tiny-llama", "mmproj-gemma3-64"))
    ready = other.start()
    assert (ready.modalities, ready.widest_span) == (("image", "video"), 4)
    assert ready.fingerprint != process.ready.fingerprint
    other.close()


def test_it_computes_on_the_device_that_it_is_told_and_on_no_other():
    process = MediaProcess(begin(device="CUDA7"))
    with pytest.raises(ModelLoadError, match="there is no CUDA7 that layers can go to"):
        process.start()


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
        (
            "audio",
            b"OggS" + bytes(100),
            "formats: WAV, MP3, FLAC; WebM, M4A, Ogg and others need ffmpeg, which is not on this machine",
        ),
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
        read_samples(file.fileno(), 16000, max_seconds=1, deadline=120)
    if sys.platform == "linux":
        assert time.monotonic() - begun < 60


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
