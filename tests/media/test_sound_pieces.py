"""Long sound in the process for media and in the loader: cut, loaded piece by piece, and counted."""

from __future__ import annotations

import asyncio
import io
import os
import wave
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from support.encoding import Opened, begin, laid_out
from support.media_prompts import RATE, wav, wav_of

from llamafast.config import MtmdConfig
from llamafast.engine.media import MediaRows, MediaSource, Medium
from llamafast.errors import EngineFailure, InvalidMedia, ProjectorFailure, QueueFull, ShuttingDown
from llamafast.media import process as process_module
from llamafast.media.anonymous_file import AnonymousFile
from llamafast.media.loader import Loader
from llamafast.media.process import MediaProcess
from llamafast.media.sound_pieces import CutSamples


@pytest.fixture(scope="module")
def opened() -> Iterator[Opened]:
    """One for all: what hurts nobody hurts no later one either."""
    opened = Opened()
    yield opened
    opened.encoder.close()


@pytest.fixture
def process(opened: Opened) -> MediaProcess:
    return opened.process


def talk(*seconds: float, rate: int = RATE, pause: float = 0.5) -> bytes:
    """A WAV of tones of so many seconds each, with a pause between two of them."""
    rng = np.random.default_rng(3)
    parts = []
    for length in seconds:
        parts += [0.3 * rng.standard_normal(int(length * rate)).clip(-1, 1), np.zeros(int(pause * rate))]
    return wav_of((32767 * np.concatenate(parts[:-1])).astype(np.int16).tobytes(), rate)


def samples_of(data: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(data)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)


def source(data: bytes) -> MediaSource:
    return MediaSource(kind="audio", path="file", data=memoryview(data))


def n_rows(medium: Medium) -> int:
    return sum(chunk.n_rows for chunk in medium.chunks if isinstance(chunk, MediaRows))


def test_the_process_cuts_in_pauses_and_loses_no_sample(process: MediaProcess) -> None:
    data = talk(20, 25, 22)
    cut = process.cut(AnonymousFile.of(data), 30.0).result(30)
    assert cut.is_whole
    assert cut.rate == RATE
    assert np.array_equal(np.frombuffer(cut.pcm16, np.int16), samples_of(data))
    first, second, last = (end / RATE for end in cut.ends)
    assert 20 <= first <= 20.5
    assert 45.5 <= second <= 46
    assert last == pytest.approx(68)
    assert [len(samples_of(cut.wav(i))) for i in range(3)] == np.diff([0, *cut.ends]).tolist()


def test_what_is_no_longer_stays_as_it_is(process: MediaProcess) -> None:
    assert process.cut(AnonymousFile.of(talk(29.5)), 30.0).result(30) is None


@pytest.mark.parametrize(
    ("data", "sentence"),
    [(b"no sound", "cannot be read; formats: WAV, MP3, FLAC"), (wav(0.01, 440), "shorter than 0.05 s")],
)
def test_sound_that_cannot_be_read_is_told_and_hurts_nobody(process: MediaProcess, data: bytes, sentence: str) -> None:
    pid = process.pid
    with pytest.raises(InvalidMedia, match=sentence):
        process.cut(AnonymousFile.of(data), 30.0).result(30)
    assert laid_out(process, wav(1, 440), "audio")
    assert process.pid == pid


def test_who_waits_for_a_cut_outlives_a_death(process: MediaProcess) -> None:
    assert laid_out(process, wav(1, 440), "audio")
    process.pause()  # nothing is answered before it is killed
    waits = process.cut(AnonymousFile.of(talk(40)), 30.0)
    os.kill(process.pid, 9)
    assert len(waits.result(30).ends) == 2


async def test_clients_that_come_and_go_while_it_stands_still_hold_nobody_up(opened: Opened) -> None:
    """Each is a message on a socket, and whoever lets the process go on needs the lock of who sends."""
    process = opened.process
    process.pause()
    for _ in range(6):
        loads = [asyncio.create_task(opened.loader.cut(source(b"%d" % i), 30.0)) for i in range(50)]
        for _ in range(20):
            await asyncio.sleep(0.001)
        for one in loads:
            one.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
    process.resume()
    assert len(await opened.loader.cut(source(wav(2, 440)), 30.0)) == 1


def test_an_answer_without_its_samples_is_told(process: MediaProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the server has no descriptor for their file."""

    def no_descriptor(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(process_module, "mapped", no_descriptor)
    with pytest.raises(ProjectorFailure, match="failed on this audio"):
        process.cut(AnonymousFile.of(talk(40)), 30.0).result(30)
    monkeypatch.undo()
    assert len(process.cut(AnonymousFile.of(talk(40)), 30.0).result(30).ends) == 2


def test_who_comes_while_the_server_closes_is_told() -> None:
    process = MediaProcess(begin())
    process.close()
    with pytest.raises(ShuttingDown):
        process.cut(AnonymousFile.of(b"a"), 30.0).result(30)


@pytest.mark.media
def test_more_sound_than_is_taken_is_told(process: MediaProcess) -> None:
    hour = wav_of(bytes(2 * 8000 * 3600), 8000)
    with pytest.raises(InvalidMedia, match="the audio has 3600 s; at most 1800 are taken"):
        process.cut(AnonymousFile.of(hour), 30.0).result(120)
    assert laid_out(process, wav(1, 440), "audio")


async def test_pieces_are_loaded_as_the_files_that_they_are(opened: Opened) -> None:
    data = talk(20, 25, 22)
    pieces = await opened.loader.cut(source(data), 30.0)
    assert len(pieces) == 3
    media = [(await opened.loader.load([piece]))[0] for piece in pieces]
    assert [medium.path for medium in media] == ["file"] * 3
    # this projector makes a window's rows of whatever is no longer than one
    assert sum(map(n_rows, media)) == n_rows(await opened.medium(data, "audio"))
    assert len({medium.digest for medium in media}) == 3
    again = [(await opened.loader.load([piece]))[0] for piece in await opened.loader.cut(source(data), 30.0)]
    assert [medium.digest for medium in again] == [medium.digest for medium in media]
    opened.encoded(media[1])


async def test_short_sound_is_the_medium_that_a_chat_has(opened: Opened) -> None:
    data = wav(2, 440)
    (piece,) = await opened.loader.cut(source(data), 30.0)
    (medium,) = await opened.loader.load([piece])
    assert medium.digest == (await opened.medium(data, "audio")).digest
    opened.encoded(medium)


def test_sound_of_another_rate_is_cut_at_the_projectors(process: MediaProcess) -> None:
    cut = process.cut(AnonymousFile.of(talk(20, 15, rate=44100)), 30.0).result(30)
    assert cut.rate == RATE
    assert 20 <= cut.ends[0] / RATE <= 20.5
    assert cut.ends[1] / RATE == pytest.approx(35.5, abs=0.01)


class FakeProcess:
    """Cuts everything into halves, or as a test says."""

    def __init__(self) -> None:
        self.answer: Any = CutSamples(RATE, (50, 100), memoryview(bytes(200)))

    def cut(self, file: AnonymousFile, most_seconds: float) -> Future[Any]:
        done: Future[Any] = Future()
        if isinstance(self.answer, Exception):
            done.set_exception(self.answer)
        elif self.answer is not ...:
            done.set_result(self.answer)
        return done

    def drop(self, asked: Future[Any]) -> None:
        pass


@pytest.fixture
def process_of_fakes() -> FakeProcess:
    return FakeProcess()


def loader_of(process: FakeProcess, **options: Any) -> Loader:
    return Loader(MtmdConfig(mmproj_path="p", **options), process, "fingerprint")  # type: ignore[arg-type]


async def test_pieces_count_until_the_last_of_them_is_gone(process_of_fakes: FakeProcess) -> None:
    loader = loader_of(process_of_fakes)
    pieces = await loader.cut(source(bytes(1000)), 30.0)
    assert loader._fetched.held == 200
    pieces.pop()
    assert loader._fetched.held == 200
    pieces.pop()
    assert loader._fetched.held == 0
    process_of_fakes.answer = None
    whole = await loader.cut(source(bytes(1000)), 30.0)
    assert loader._fetched.held == 1000
    del whole
    assert loader._fetched.held == 0


async def test_more_sound_than_there_is_room_for_waits_outside(process_of_fakes: FakeProcess) -> None:
    limits = {f"{kind}_max_bytes": 1000 for kind in ("image", "audio", "video")}
    loader = loader_of(process_of_fakes, fetched_max_bytes=1000, **limits)
    process_of_fakes.answer = None
    kept = await loader.cut(source(bytes(900)), 30.0)
    with pytest.raises(QueueFull):
        await loader.cut(source(bytes(200)), 30.0)
    with pytest.raises(InvalidMedia, match=r"larger than model.mtmd.audio_max_bytes \(1000\)") as caught:
        await loader.cut(source(bytes(1001)), 30.0)
    assert caught.value.param == "file"
    del kept
    assert loader._fetched.held == 0


async def test_sound_that_never_has_room_is_not_told_to_come_back(process_of_fakes: FakeProcess) -> None:
    limits = {f"{kind}_max_bytes": 100 for kind in ("image", "audio", "video")}
    loader = loader_of(process_of_fakes, fetched_max_bytes=199, **limits)
    with pytest.raises(InvalidMedia, match=r"takes 200 bytes once it is read; model\.mtmd\.fetched_max_bytes is 199"):
        await loader.cut(source(bytes(100)), 30.0)
    assert loader._fetched.held == 0


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        (InvalidMedia("the audio cannot be read"), InvalidMedia, "cannot be read"),
        (CutSamples(RATE, (50, 60), memoryview(bytes(200))), EngineFailure, "pieces of this audio are missing"),
        (..., InvalidMedia, r"within 0\.05 s \(model\.mtmd\.load_max_seconds\)"),
    ],
    ids=["unreadable", "missing", "late"],
)
async def test_what_goes_wrong_names_the_file(
    process_of_fakes: FakeProcess, answer: Any, error: Any, sentence: str
) -> None:
    loader = loader_of(process_of_fakes, load_max_seconds=0.05 if answer is ... else 120.0)
    process_of_fakes.answer = answer
    with pytest.raises(error, match=sentence) as caught:
        await loader.cut(source(bytes(1000)), 30.0)
    assert error is EngineFailure or caught.value.param == "file"
    assert loader._fetched.held == 0


async def test_nothing_is_no_sound(process_of_fakes: FakeProcess) -> None:
    with pytest.raises(InvalidMedia, match="the audio is empty"):
        await loader_of(process_of_fakes).cut(source(b""), 30.0)
