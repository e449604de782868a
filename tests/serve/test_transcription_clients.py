"""Transcripts from OpenAI's clients, by a real server with a projector and random weights: whatever it writes."""

from __future__ import annotations

import asyncio
import io
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from support.media_prompts import RATE, wav, wav_of

from benchmarks.server import Server, serving
from llamafast.api.transcription.endpoint import PIECE_SECONDS
from llamafast.chat.transcription import Transcript
from llamafast.media.silence import ends_of_pieces
from recipes import tiny_gguf, tiny_mmproj
from serve.conftest import model_config
from serve.test_responses_node import installed, run_node

SHORT = wav(2, 440)


def long_samples() -> NDArray[np.int16]:
    """35 s with a pause behind 20."""
    noise = np.random.default_rng(1).standard_normal(35 * RATE).clip(-1, 1) * 9000
    noise[20 * RATE : 21 * RATE] = 0
    return noise.astype(np.int16)


def long_sound() -> bytes:
    return wav_of(long_samples().tobytes())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    mmproj = {"mmproj_path": str(tiny_mmproj.build("mmproj-qwen3vl-ultravox-64"))}
    path = tiny_gguf.build("tiny-qwen35")
    with serving(
        lambda port: model_config(path, port, alias="hears", mtmd=mmproj, max_output_tokens=12), None
    ) as server:
        yield server


@pytest.fixture(scope="module")
def base_url(server: Server) -> str:
    return f"http://127.0.0.1:{server.port}/v1"


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
        yield client


def sound(data: bytes = SHORT) -> Any:
    return ("sound.wav", io.BytesIO(data))


def test_json_text_and_the_same_text_twice(client: openai.OpenAI) -> None:
    create = client.audio.transcriptions.create
    told = create(model="hears", file=sound(), language="en", prompt="names: Zoë", temperature=0)
    assert told.text
    assert told.usage is not None
    assert told.usage.type == "tokens"
    assert told.usage.input_token_details is not None
    assert told.usage.input_token_details.audio_tokens == 30
    assert told.usage.total_tokens == told.usage.input_tokens + told.usage.output_tokens
    again = create(model="hears", file=sound(), language="en", prompt="names: Zoë", response_format="text")
    assert str(again) == f"{told.text}\n"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client's, of its maker's own models
def test_a_translation(client: openai.OpenAI) -> None:
    told = client.audio.translations.create(model="hears", file=sound(), prompt="names: Zoë")
    assert told.text
    assert (told.model_extra or {})["usage"]["input_token_details"]["audio_tokens"] == 30


def test_a_stream_of_two_pieces_is_what_is_told_at_once(client: openai.OpenAI) -> None:
    data = long_sound()
    whole = client.audio.transcriptions.create(model="hears", file=sound(data))
    assert whole.usage is not None
    assert whole.usage.type == "tokens"
    assert whole.usage.input_token_details is not None
    assert whole.usage.input_token_details.audio_tokens == 60
    with client.audio.transcriptions.create(model="hears", file=sound(data), stream=True) as stream:
        *deltas, done = list(stream)
    assert "".join(event.delta for event in deltas if event.type == "transcript.text.delta") == whole.text
    assert done.type == "transcript.text.done"
    assert done.text == whole.text
    assert done.usage is not None
    assert done.usage.input_tokens == whole.usage.input_tokens


def test_a_long_recording_is_what_its_pieces_are_by_themselves(client: openai.OpenAI) -> None:
    samples = long_samples()
    ends = ends_of_pieces(array("f", (samples / np.float32(32768)).tobytes()), RATE, PIECE_SECONDS)
    first, second = (
        client.audio.transcriptions.create(model="hears", file=sound(wav_of(piece.tobytes()))).text
        for piece in (samples[: ends[0]], samples[ends[0] :])
    )
    transcript = Transcript()
    for text in (first, second):
        transcript.add(text)
        transcript.end_piece()
    whole = client.audio.transcriptions.create(model="hears", file=sound(wav_of(samples.tobytes())))
    assert whole.text == transcript.text


async def test_the_client_that_does_not_wait(base_url: str, client: openai.OpenAI) -> None:
    expected = client.audio.transcriptions.create(model="hears", file=sound()).text
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as other:
        create = other.audio.transcriptions.create
        told = await asyncio.gather(*(create(model="hears", file=sound()) for _ in range(3)))
        assert {one.text for one in told} == {expected}
        events = [event async for event in await create(model="hears", file=sound(), stream=True)]
        assert events[-1].type == "transcript.text.done"
        assert events[-1].text == expected


@pytest.mark.parametrize(
    ("data", "options", "param", "sentence"),
    [
        (b"no sound", {}, "file", "the audio cannot be read; formats: WAV, MP3, FLAC"),
        (b"", {}, "file", "the audio is empty"),
        (SHORT, {"response_format": "srt"}, "response_format", "no time stamps"),
        (SHORT, {"timestamp_granularities": ["word"]}, "timestamp_granularities", "no time stamps"),
        (SHORT, {"include": ["logprobs"]}, "include", "not supported"),
        (SHORT, {"chunking_strategy": {"type": "server_vad"}}, "chunking_strategy", "cut where it is quiet"),
        (SHORT, {"language": "xx"}, "language", "no code of a language"),
    ],
)
def test_what_cannot_be_served_is_a_400(
    client: openai.OpenAI, data: bytes, options: Any, param: str, sentence: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=sentence) as caught:
        client.audio.transcriptions.create(model="hears", file=sound(data), **options)
    assert caught.value.param == param


def test_lists_and_choices_that_are_served(client: openai.OpenAI) -> None:
    told = client.audio.transcriptions.create(
        model="hears", file=sound(), languages=["en", "de"], keywords=["GGUF"], chunking_strategy="auto"
    )
    assert told.text


def test_the_client_for_node(base_url: str, client: openai.OpenAI, tmp_path: Path) -> None:
    file = tmp_path / "long.wav"
    file.write_bytes(long_sound())
    told = run_node(installed(Path(__file__).with_name("transcription_client.mjs")), base_url, str(file))
    whole = client.audio.transcriptions.create(model="hears", file=sound(long_sound())).text
    assert told["whole"] == {"text": whole, "audio": 60}
    assert told["stream"] == {"deltas": whole, "text": whole}
    assert told["translation"]["text"]
    assert told["refused"] == {"status": 400, "param": "response_format"}


def test_a_client_that_leaves_frees_its_place(client: openai.OpenAI, server: Server) -> None:
    stream = client.audio.transcriptions.create(model="hears", file=sound(long_sound()), stream=True)
    next(iter(stream))
    stream.close()
    assert client.audio.transcriptions.create(model="hears", file=sound()).text
    lines = httpx.get(f"http://127.0.0.1:{server.port}/metrics", timeout=60).text.splitlines()
    route = 'llamafast:http_requests_total{path="/v1/audio/transcriptions",status="200"}'
    assert any(line.startswith(route) for line in lines)


HEAD = b"POST /v1/audio/transcriptions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: multipart/form-data; boundary=b\r\n"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"content-length: 10\r\n\r\n--b\r\nX", None),  # nothing more comes: it waits, and is closed here
        (b"content-length: 5\r\n\r\n--b--", b"400"),
        (b"content-length: 999999999999\r\n\r\n--b", b"413"),
        (b"transfer-encoding: chunked\r\n\r\n5\r\n--b--\r\n0\r\n\r\n", b"400"),
    ],
)
async def test_lengths_that_lie(server: Server, raw: bytes, status: bytes | None) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HEAD + raw)
    await writer.drain()
    if status is None:
        writer.write_eof()
    try:
        line = await asyncio.wait_for(reader.readline(), 30)
        assert status is None or line.split()[1] == status
    finally:
        writer.close()
        await writer.wait_closed()
    os.kill(server.pid, 0)  # it is there
