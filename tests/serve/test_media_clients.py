"""Pictures and sound from OpenAI's client to a real server with a projector."""

from __future__ import annotations

import base64
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from support.media_prompts import png, wav

from benchmarks.server import Server, serving
from recipes import tiny_gguf, tiny_mmproj
from serve.conftest import model_config
from serve.test_responses_node import installed, run_node

IMAGE, OTHER = png(200, 160, 1), png(200, 160, 2)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    mmproj = {"mmproj_path": str(tiny_mmproj.build("mmproj-qwen3vl-ultravox-64"))}
    path = tiny_gguf.build("tiny-qwen35")
    with serving(lambda port: model_config(path, port, alias="sees", mtmd=mmproj), None) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image(data: bytes) -> Any:
    return {"type": "image_url", "image_url": {"url": url(data)}}


def sound(data: bytes) -> Any:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def ask(client: openai.OpenAI, *content: Any, **options: Any) -> Any:
    options = {"model": "sees", "max_tokens": 12, "temperature": 0} | options
    return client.chat.completions.create(messages=[{"role": "user", "content": list(content)}], **options)


TEXT = {"type": "text", "text": "what is it?"}


def test_models_tell_their_modalities(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.modalities == ["text", "image", "audio", "video"]


def test_what_is_shown_and_heard_decides_the_answer(client: openai.OpenAI) -> None:
    answers = [
        ask(client, *content).choices[0].message.content
        for content in ([image(IMAGE), TEXT], [image(OTHER), TEXT], [sound(wav(2, 440)), TEXT], [TEXT])
    ]
    assert len(set(answers)) == 4
    streamed = ask(client, image(IMAGE), TEXT, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices) == answers[0]


def test_usage_counts_rows_and_what_was_there(client: openai.OpenAI) -> None:
    picture = image(png(200, 160, 7))
    first, second = (ask(client, picture, TEXT).usage for _ in range(2))
    details = first.prompt_tokens_details
    assert (details.cached_tokens, details.image_tokens) == (0, 30)
    assert first.prompt_tokens > 30
    assert second.prompt_tokens_details.cached_tokens > 30


def test_responses_take_pictures_in_messages_and_in_what_tools_answer(client: openai.OpenAI) -> None:
    shown = [{"type": "input_image", "image_url": url(IMAGE), "detail": "auto"}]
    direct = client.responses.create(model="sees", input=[{"role": "user", "content": shown}], max_output_tokens=8)
    assert direct.status in ("completed", "incomplete")
    call = {"type": "function_call", "call_id": "c", "name": "view_image", "arguments": "{}"}
    output: Any = {"type": "function_call_output", "call_id": "c", "output": shown}
    asked: Any = [{"role": "user", "content": "look"}, call, output]
    by_tool = client.responses.create(model="sees", input=asked, max_output_tokens=8)
    assert by_tool.usage.input_tokens > 30
    again = client.responses.create(model="sees", input="and now?", previous_response_id=direct.id, max_output_tokens=8)
    assert again.usage.input_tokens > direct.usage.input_tokens


@pytest.mark.parametrize(
    ("content", "param", "sentence"),
    [
        (image(b"nothing"), "image_url.url", "the image cannot be read"),
        (image(IMAGE[:-40]), "image_url.url", "the image is cut off"),
        (sound(wav(1 / 16000, 440)), "input_audio.data", "shorter than 0.05 s"),
        ({"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}}, "image_url.url", "not a public host"),
        (
            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
            "image_url.url",
            "allowed_local_media_path",
        ),
        (
            {"type": "video_url", "video_url": {"url": url(b"no video", "video/mp4")}},
            "video_url.url",
            "ffmpeg|cannot be",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_taken_is_a_400_with_its_place(
    client: openai.OpenAI, content: Any, param: str, sentence: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError, match=sentence) as caught:
        ask(client, TEXT, content, stream=stream)
    assert caught.value.param == f"messages[0].content[1].{param}"


def test_a_burst_with_one_picture_encodes_it_once(client: openai.OpenAI, server: Server) -> None:
    def encodes() -> float:
        lines = httpx.get(f"http://127.0.0.1:{server.port}/metrics", timeout=60).text.splitlines()
        return float(next(line for line in lines if line.startswith("llamafast:media_encodes_total")).split()[1])

    picture, before = image(png(800, 600, 9)), encodes()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(client, picture, TEXT).choices[0].message.content, range(8)))
    assert len(set(answers)) == 1
    assert encodes() == before + 1


def test_the_client_for_node_sends_them_too(server: Server) -> None:
    script = installed(Path(__file__).with_name("media_client.mjs"))
    told = run_node(script, f"http://127.0.0.1:{server.port}/v1", url(IMAGE), base64.b64encode(wav(2, 440)).decode())
    assert told["picture"]["image_tokens"] == 30
    assert told["sound"]["audio_tokens"] == 30
    assert told["tool"]["tokens"] > 30
    place = "messages[0].content[0].image_url.url"
    assert told["broken"] == {"status": 400, "code": "invalid_media", "param": place}


def child_of(server: Server) -> int:
    """The process for media of a server."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            parent = int((process / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if b"llamafast.media.child" in command and parent == server.pid:
            return int(process.name)
    raise AssertionError("no process for media")


def test_streams_notice_nothing_of_its_death(client: openai.OpenAI, server: Server) -> None:
    expected = ask(client, TEXT, max_tokens=100).choices[0].message.content
    stream = ask(client, TEXT, max_tokens=100, stream=True)
    said, killed = "", False
    for chunk in stream:
        said += chunk.choices[0].delta.content or ""
        if not killed:
            os.kill(child_of(server), signal.SIGKILL)
            killed = True
    assert said == expected
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            assert ask(client, image(png(64, 64, 3)), TEXT).usage.prompt_tokens > 4
            return
        except openai.InternalServerError:
            time.sleep(0.1)
    pytest.fail("it was not started again")
