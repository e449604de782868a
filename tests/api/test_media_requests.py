"""Pictures and sound on the wire, over an engine without a model and a loader without a projector."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.fake_encoder import fake_medium
from support.fake_engine import INFO, FakeEngine, play, say

from llamafast.engine.media import MediaSource, Medium
from llamafast.errors import InvalidMedia

URL = "https://example.org/a.png"
IMAGE = {"type": "image_url", "image_url": {"url": URL}}


class FakeLoader:
    """Media by their URL; ``asked`` are the sources of each request."""

    def __init__(self) -> None:
        self.asked: list[list[MediaSource]] = []
        self.fault: InvalidMedia | None = None

    async def load(self, sources: Sequence[MediaSource], salt: str = "") -> list[Medium]:
        self.asked.append(list(sources))
        await asyncio.sleep(0)
        if self.fault is not None:
            raise self.fault
        return [fake_medium(len(source.text)) for source in sources]


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(say("a cat"), info=msgspec.structs.replace(INFO, modalities=("image", "audio")))


@pytest.fixture
def client(engine: FakeEngine, loader: FakeLoader) -> AsgiClient:
    return AsgiClient(make_app(engine, media=loader))


def chat(*content: Any, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}], **fields}


async def test_a_chat_has_rows_where_its_picture_is(client: AsgiClient, engine: FakeEngine, loader: FakeLoader) -> None:
    response = await client.post("/v1/chat/completions", chat({"type": "text", "text": "what is"}, IMAGE))
    assert response.status == 200
    ((source,),) = loader.asked
    assert (source.kind, source.text, source.path) == ("image", URL, "messages[0].content[1].image_url.url")
    assert len(engine.plan.media) == 1
    assert response.json["usage"]["prompt_tokens"] == len(engine.plan.prompts[0])


async def test_a_fault_in_loading_is_a_400_that_names_its_part(client: AsgiClient, loader: FakeLoader) -> None:
    loader.fault = InvalidMedia("the image is cut off", param="messages[0].content[0].image_url.url")
    for stream in (False, True):
        response = await client.post("/v1/chat/completions", chat(IMAGE, stream=stream))
        assert response.status == 400
        assert response.error["message"] == "the image is cut off"
        assert response.error["param"] == "messages[0].content[0].image_url.url"
        assert response.error["code"] == "invalid_media"


async def test_a_fault_in_encoding_is_a_400_also_of_a_stream(loader: FakeLoader) -> None:
    fault = InvalidMedia("the image is cut off", param="p")
    engine = FakeEngine(play(fault), info=msgspec.structs.replace(INFO, modalities=("image",)))
    client = AsgiClient(make_app(engine, media=loader))
    for stream in (False, True):
        for path, body in (
            ("/v1/chat/completions", chat(IMAGE, stream=stream)),
            ("/v1/responses", {"input": [{"role": "user", "content": shown()}], "stream": stream}),
        ):
            response = await client.post(path, body)
            assert (response.status, response.error["message"]) == (400, "the image is cut off")


async def test_usage_tells_what_media_became(client: AsgiClient) -> None:
    usage = (await client.post("/v1/chat/completions", chat(IMAGE, IMAGE))).json["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0, "image_tokens": 18}
    usage = (await client.post("/v1/chat/completions", chat({"type": "text", "text": "hi"}))).json["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}


async def test_text_alone_asks_no_loader(client: AsgiClient, loader: FakeLoader) -> None:
    assert (await client.post("/v1/chat/completions", chat({"type": "text", "text": "hi"}))).status == 200
    assert loader.asked == []


async def test_a_kind_that_the_model_does_not_take(client: AsgiClient) -> None:
    response = await client.post("/v1/chat/completions", chat({"type": "video_url", "video_url": {"url": URL}}))
    assert response.status == 400
    assert "takes image and audio beside text, and no video" in response.error["message"]


async def test_templates_are_shown_with_a_marker_and_media_are_not_tokenised(client: AsgiClient) -> None:
    shown = await client.post("/apply-template", chat({"type": "text", "text": "what is"}, IMAGE))
    assert shown.json["prompt"] == "<s><user>what is<__media__></s><assistant>"
    refused = await client.post("/tokenize", chat(IMAGE))
    assert refused.status == 400
    assert refused.error["param"] == "messages[0].content[0].image_url.url"


async def test_models_say_what_they_take(client: AsgiClient) -> None:
    (model,) = (await client.get("/v1/models")).json["data"]
    assert model["modalities"] == ["text", "image", "audio"]


def shown(text: str = "see", url: str = URL) -> list[dict[str, Any]]:
    return [{"type": "input_text", "text": text}, {"type": "input_image", "image_url": url, "detail": "auto"}]


@pytest.mark.parametrize(
    "items",
    [
        [{"role": "user", "content": shown()}],
        [
            {"role": "user", "content": "look"},
            {"type": "function_call", "call_id": "c", "name": "view_image", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": shown()},
        ],
        [
            {"role": "user", "content": "look"},
            {"type": "custom_tool_call", "call_id": "c", "name": "view", "input": "x"},
            {"type": "custom_tool_call_output", "call_id": "c", "output": shown()},
        ],
        [
            {"role": "user", "content": "look"},
            {
                "type": "computer_call_output", "call_id": "c",
                "output": {"type": "computer_screenshot", "image_url": URL},
            },
        ],
    ],
)  # fmt: skip
async def test_a_response_takes_pictures_in_messages_and_outputs(
    client: AsgiClient, engine: FakeEngine, loader: FakeLoader, items: list[dict[str, Any]]
) -> None:
    response = await client.post("/v1/responses", {"input": items})
    assert response.status == 200, response.json
    ((source,),) = loader.asked
    assert source.text == URL
    assert source.path.startswith(f"input[{len(items) - 1}].")
    assert len(engine.plan.media) == 1


async def test_a_continued_response_has_its_pictures_again(
    client: AsgiClient, engine: FakeEngine, loader: FakeLoader
) -> None:
    first = (await client.post("/v1/responses", {"input": [{"role": "user", "content": shown()}]})).json
    stored = (await client.get(f"/v1/responses/{first['id']}/input_items")).json["data"]
    assert stored[0]["content"] == shown()
    again = {"input": [{"role": "user", "content": shown("and")}], "previous_response_id": first["id"]}
    assert (await client.post("/v1/responses", again)).status == 200
    assert [len(sources) for sources in loader.asked] == [1, 2]
    assert [len(generation.plan.media) for generation in engine.generations] == [1, 2]


async def test_where_the_oldest_turns_are_dropped_their_pictures_are_too(
    client: AsgiClient, engine: FakeEngine
) -> None:
    turns = [{"role": "user", "content": shown("x" * 150)}, {"role": "assistant", "content": "ok"}] * 4
    request = {"input": [*turns, {"role": "user", "content": shown("last")}], "truncation": "auto"}
    assert (await client.post("/v1/responses", request)).status == 200
    assert 1 <= len(engine.plan.media) < 5


async def test_the_tokens_of_an_input_count_rows(client: AsgiClient) -> None:
    counted = (await client.post("/v1/responses/input_tokens", {"input": [{"role": "user", "content": shown()}]})).json
    text = (await client.post("/v1/responses/input_tokens", {"input": "see"})).json
    assert counted["input_tokens"] == text["input_tokens"] + 11
