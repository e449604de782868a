"""Videos and sound that ffmpeg reads: frames as libmtmd's helper would show them, and nothing that leads elsewhere."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.encoding import Job, Opened, begin, disk, laid_out
from support.media_prompts import wav

from llamafast._core.model import Model
from llamafast._core.mtmd import Projector
from llamafast._core.vocab import Vocab
from llamafast.errors import InvalidMedia
from llamafast.media.anonymous_file import AnonymousFile
from llamafast.media.process import MediaProcess
from recipes import tiny_gguf, tiny_mmproj

pytestmark = pytest.mark.media


@pytest.fixture(scope="module", autouse=True)
def ffmpeg(tmp_path_factory: pytest.TempPathFactory):
    """On the PATH for this module."""
    import imageio_ffmpeg

    folder = tmp_path_factory.mktemp("bin")
    (folder / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        yield


def made(folder: Path, name: str, *options: str) -> bytes:
    path = folder / name
    command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "lavfi", *options, str(path)]
    subprocess.run(command, check=True)
    return path.read_bytes()


def clip(folder: Path, name: str = "a.mp4", *, size: str = "96x80", rate: int = 8, seconds: float = 3) -> bytes:
    source = f"testsrc=size={size}:rate={rate}:duration={seconds}"
    return made(folder, name, "-i", source, "-pix_fmt", "yuv420p")


@pytest.fixture(params=["mmproj-qwen3vl-ultravox-64", "mmproj-gemma3-64"])
def merges(request):
    """A projector that makes one picture of two frames, and one that does not."""
    process = MediaProcess(begin("tiny-qwen35" if "qwen3vl" in request.param else "tiny-llama", request.param))
    process.start()
    yield process, request.param
    process.close()


def raw_frames(data: bytes, size: tuple[int, int]) -> list[bytes]:
    command = ["ffmpeg", "-loglevel", "error", "-i", "-", "-vf", "fps=4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    pixels = subprocess.run(command, input=data, capture_output=True, check=True).stdout
    n_bytes = size[0] * size[1] * 3
    return [pixels[at : at + n_bytes] for at in range(0, len(pixels), n_bytes)]


@pytest.mark.parametrize(("name", "seconds"), [("a.mp4", 3), ("a.webm", 3), ("a.mkv", 6.25), ("a.gif", 1)])
def test_frames_and_texts_are_those_of_libmtmds_helper(merges, tmp_path, name, seconds):
    """``Video:``, four frames a second, and every five seconds when it is."""
    process, mmproj = merges
    data = clip(tmp_path, name, seconds=seconds)
    model = Model(str(tiny_gguf.build("tiny-qwen35" if "qwen3vl" in mmproj else "tiny-llama")))
    encoder = Projector(model, str(tiny_mmproj.build(mmproj)), n_threads=1, batch_max_tokens=1024)
    shown = raw_frames(data, (96, 80))
    parts: list[str | list[bytes]] = ["Video:"]
    for i, frame in enumerate(shown):
        if isinstance(parts[-1], str) or len(parts[-1]) == 2:
            parts.append([])
        parts[-1].append(frame)
        if i % 20 == 0:
            parts.append(f"[0m{i / 4:.2f}s]")
    told = laid_out(process, data, "video")
    rows = Job(data, "video").result(process)
    at = 0
    for part in parts:
        if isinstance(part, str):
            tokens = Vocab(model).tokenize(part, add_special=False, parse_special=False)
            assert told[at].tokens == tokens.tobytes()
            at += 1
            continue
        chunks = encoder.image(96, 80, b"".join(part), len(part))
        for i in range(len(chunks)):
            if (own := chunks.tokens(i)) is not None:
                assert told[at].tokens == own
            else:
                expected = np.empty((chunks.span(i)[0], 64), np.float32)
                chunks.encode(i, expected)
                assert np.array_equal(rows[at], expected.reshape(-1))
            at += 1
    assert at == len(told)
    n_pictures = sum(chunk.tokens is None for chunk in told)
    assert n_pictures == (sum(not isinstance(p, str) for p in parts) if "qwen3vl" in mmproj else len(shown))


@pytest.fixture
def process():
    process = MediaProcess(begin())
    process.start()
    yield process
    process.close()


def n_frames(told) -> int:
    return sum(chunk.tokens is None for chunk in told)


def test_long_videos_have_fewer_frames_a_second(tmp_path):
    process = MediaProcess(begin(video_max_frames=10, video_max_seconds=30.0))
    process.start()
    data = clip(tmp_path, seconds=10)
    assert n_frames(laid_out(process, data, "video")) <= 6
    assert set(Job(data, "video").result(process))
    with pytest.raises(InvalidMedia, match="the video has 31 s; at most 30 are taken"):
        laid_out(process, clip(tmp_path, "long.mp4", rate=1, seconds=31), "video")
    process.close()


def test_large_frames_are_scaled_before_they_are_here(process, tmp_path):
    data = clip(tmp_path, size="2048x1024", seconds=0.5)
    small = clip(tmp_path, "b.mp4", size="1024x512", seconds=0.5)
    rows = [sum(chunk.n_rows for chunk in laid_out(process, one, "video")) for one in (data, small)]
    assert rows[0] == rows[1]
    assert Job(data, "video").result(process)


@pytest.mark.parametrize(("name", "options"), [
    ("a.ogg", ["-c:a", "libvorbis"]), ("a.m4a", ["-c:a", "aac"]), ("a.opus", ["-c:a", "libopus"]), ("a.webm", []),
])  # fmt: skip
def test_sound_in_other_files(process, tmp_path, name, options):
    data = made(tmp_path, name, "-i", "sine=frequency=440:duration=2", *options)
    (chunk,) = [chunk for chunk in laid_out(process, data, "audio") if chunk.tokens is None]
    rows = Job(data, "audio").result(process)
    plain = Job(wav(2, 440), "audio").result(process)
    assert chunk.n_rows == 30
    assert np.isfinite(rows[0]).all()
    assert rows[0].shape == plain[0].shape


def test_a_video_has_sound_to_hear_too(process, tmp_path):
    data = made(tmp_path, "b.mp4", "-i", "testsrc=duration=1", "-f", "lavfi", "-i", "sine=duration=1", "-shortest")
    assert laid_out(process, data, "audio")
    assert laid_out(process, data, "video")


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n%b\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize("kind", ["video", "audio"])
@pytest.mark.parametrize(
    "data",
    [
        PLAYLIST % b"file:///etc/passwd",
        PLAYLIST % b"http://127.0.0.1:9/a.ts",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
        b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        b"<MPD><Period><BaseURL>http://127.0.0.1:9/</BaseURL></Period></MPD>",
        b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        b"RIFF\0\0\0\0AVI LIST",
        b"OggS" + bytes(500),
        bytes(3000),
        b"GIF89a" + bytes(50),
    ],
)
def test_what_leads_elsewhere_or_nowhere_is_told(process, kind, data):
    pid = process.pid
    with pytest.raises(InvalidMedia, match=r"cannot be read|shorter"):
        laid_out(process, data, kind)
    assert process.pid == pid


def test_a_cut_video_shows_what_there_is(process, tmp_path):
    """With its index in front; otherwise there is nothing to be had."""
    data = made(tmp_path, "a.mp4", "-i", "testsrc=size=96x80:rate=8:duration=3", "-movflags", "+faststart")
    half = data[: len(data) * 2 // 3]
    told, rows = laid_out(process, half, "video"), Job(half, "video").result(process)
    assert set(rows) == {i for i, chunk in enumerate(told) if chunk.tokens is None}
    with pytest.raises(InvalidMedia, match="the video cannot be read"):
        laid_out(process, clip(tmp_path, "b.mp4")[:2000], "video")


async def test_a_video_is_not_looked_at_twice(tmp_path):
    """Neither by the same server nor by the next one."""
    data = clip(tmp_path)
    first = Opened(files=disk(tmp_path / "rows"))
    medium = await first.medium(data, "video")
    first.encoded(medium)
    first.encoder.close()
    second = Opened(files=disk(tmp_path / "rows"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(second.process, "lay_out", None)
        again = await second.medium(data, "video")
    assert len(again.chunks) == len(medium.chunks)
    assert all(one == other for one, other in zip(again.chunks, medium.chunks, strict=True))
    second.encoded(again)
    assert second.encoder.counts()["media_encodes"] == 0
    second.encoder.close()


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libopus"), ("a.m4a", "aac"), ("a.ogg", "libvorbis")])
def test_what_browsers_record_is_cut_as_any_sound(tmp_path, name, codec):
    process = MediaProcess(begin())
    process.start()
    sound = "sine=frequency=440:duration=35,volume=enable='between(t,20,20.6)':volume=0"
    cut = process.cut(AnonymousFile.of(made(tmp_path, name, "-i", sound, "-c:a", codec)), 30.0).result(60)
    assert 20 <= cut.ends[0] / cut.rate <= 20.6
    assert cut.ends[1] / cut.rate == pytest.approx(35, abs=0.1)
    process.close()
