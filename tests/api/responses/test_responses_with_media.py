"""Clips by the megabyte in responses: what is cut out of a body or a frame is answered as if it were not."""

from __future__ import annotations

import random
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.asgi_websocket import websocket
from support.fake_encoder import fake_medium
from support.fake_engine import INFO, FakeEngine, say

from llamafast.api.app import App
from llamafast.api.responses import stored
from llamafast.engine.media import DetachedText, MediaSource, Medium
from llamafast.errors import InvalidMedia

URL = "/v1/responses"
HEAD = "data:image/png;base64,"
CLIP = b64encode(random.Random(1).randbytes(900_000)).decode()
CALL = {"type": "function_call", "call_id": "c", "name": "view", "arguments": "{}"}


class FakeLoader:
    """Media by the length of their texts; ``asked`` are the sources of each request."""

    def __init__(self) -> None:
        self.asked: list[list[MediaSource]] = []
        self.fault: InvalidMedia | None = None

    async def load(self, sources: Sequence[MediaSource], salt: str = "") -> list[Medium]:
        self.asked.append(list(sources))
        if self.fault is not None:
            raise self.fault
        return [fake_medium(len(whole(source.text))) for source in sources]


def whole(text: str) -> str:
    return str(text) + str(text.base64, "ascii") if isinstance(text, DetachedText) else text


@pytest.fixture
def loader() -> FakeLoader:
    return FakeLoader()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(say("a cat"), info=msgspec.structs.replace(INFO, modalities=("image", "audio")))


@pytest.fixture
def app(engine: FakeEngine, loader: FakeLoader) -> App:
    return make_app(engine, media=loader, max_body_bytes=1 << 24)


@pytest.fixture
def client(app: App) -> AsgiClient:
    return AsgiClient(app)


def shown(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "input_text", "text": "see"}, *parts], "id": "msg_1"}]


PICTURE = {"type": "input_image", "image_url": HEAD + CLIP, "detail": "auto"}


async def test_a_clip_is_left_where_it_is_and_stored_whole(client: AsgiClient, loader: FakeLoader) -> None:
    created = (await client.post(URL, {"input": shown(PICTURE)})).json
    ((source,),) = loader.asked
    assert isinstance(source.text, DetachedText)
    assert whole(source.text) == HEAD + CLIP
    assert source.path == "input[0].content[1].image_url"
    page = (await client.get(f"{URL}/{created['id']}/input_items")).json
    assert page["data"] == shown(PICTURE)


async def test_a_tool_s_clip_too_and_whatever_goes_on_from_there(
    client: AsgiClient, engine: FakeEngine, loader: FakeLoader
) -> None:
    items = [
        {"role": "user", "content": "look"}, CALL,
        {"type": "function_call_output", "call_id": "c", "output": shown(PICTURE)[0]["content"]},
    ]  # fmt: skip
    first = (await client.post(URL, {"input": items})).json
    await client.post(URL, {"input": "and?", "previous_response_id": first["id"]})
    await client.post(URL, {"input": [*items, *first["output"], {"role": "user", "content": "and?"}]})
    reference = {"type": "item_reference", "id": "msg_1"}
    await client.post(URL, {"input": shown(PICTURE)})
    await client.post(URL, {"input": [reference]})
    assert [[whole(source.text) for source in sources] for sources in loader.asked] == [[HEAD + CLIP]] * 5
    # the same prompt, whether the server or the client remembers, or the body is cut or not
    continued, sent = engine.generations[1].plan, engine.generations[2].plan
    assert continued.prompts == sent.prompts
    assert engine.generations[3].plan.prompts == engine.generations[4].plan.prompts


@pytest.mark.parametrize("request_", [
    {"input": shown(PICTURE), "temperature": 9}, {"input": shown(PICTURE), "nonsense": 1, "model": "other"},
    {"input": shown(PICTURE), "messages": [1]}, {"input": shown(PICTURE, {"type": "input_file", "file_data": CLIP})},
    {"input": shown({"type": "input_video", "video_url": HEAD + CLIP})}, {"input": shown({**PICTURE, "detail": CLIP})},
    {"input": shown({**PICTURE, "file_id": CLIP})}, {"input": shown({"type": "input_image", "url": CLIP})},
    {"input": [{"role": "nobody", "content": shown(PICTURE)[0]["content"]}]},
    {"input": [{"type": "function_call_output", "call_id": CLIP, "output": "x"}]},
    {"input": [{"type": CLIP, "content": "x"}]}, {"input": [*shown(PICTURE), "x"]}, {"input": CLIP, "model": CLIP},
    {"input": shown(PICTURE), "background": True}, {"input": CLIP, "previous_response_id": CLIP},
    {"input": [{"type": "reasoning", "content": [PICTURE]}]},
], ids=range(16))  # fmt: skip
async def test_what_is_refused_is_refused_in_the_same_words(
    client: AsgiClient, monkeypatch: pytest.MonkeyPatch, request_: dict[str, Any]
) -> None:
    cut = await client.post(URL, request_)
    monkeypatch.setattr("llamafast.api.decode.cut", lambda body: None)
    uncut = await client.post(URL, request_)
    assert cut.status == uncut.status >= 400
    assert cut.error == uncut.error


async def test_text_that_looks_like_base64_stays_as_it_is(client: AsgiClient, engine: FakeEngine) -> None:
    items = [{"role": "user", "content": CLIP, "id": "msg_1"}]
    refused = await client.post(URL, {"input": items})
    assert refused.error["code"] == "context_length_exceeded"
    answer = await client.post(URL, {"input": "Hi", "user": CLIP, "metadata": {"x": CLIP}})
    assert (answer.json["user"], answer.json["metadata"]) == (CLIP, {"x": CLIP})


async def test_tokens_are_counted_and_conversations_summarised_with_clips(
    client: AsgiClient, loader: FakeLoader
) -> None:
    small = (await client.post(f"{URL}/input_tokens", {"input": shown()})).json["input_tokens"]
    counted = (await client.post(f"{URL}/input_tokens", {"input": shown(PICTURE)})).json["input_tokens"]
    assert counted > small
    compacted = await client.post(f"{URL}/compact", {"input": shown(PICTURE), "model": INFO.id})
    assert compacted.status == 200
    assert isinstance(loader.asked[-1][0].text, DetachedText)


async def test_a_socket_remembers_clips_and_not_the_frames_around_them(app: App, loader: FakeLoader) -> None:
    async with websocket(app) as socket:
        first = await socket.answer(input=shown(PICTURE), store=False, user="!" * 1_000_000)
        await socket.answer(input="and?", store=False, previous_response_id=first["id"])
    ((at_first,), (again,)) = loader.asked
    assert isinstance(at_first.text, DetachedText)
    assert isinstance(again.text, DetachedText)
    assert whole(again.text) == whole(at_first.text) == HEAD + CLIP
    assert memoryview(at_first.text.base64.obj).nbytes > 2_000_000
    assert memoryview(again.text.base64.obj).nbytes == len(CLIP)


async def test_a_page_holds_no_clip_many_times(
    client: AsgiClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.post(URL, {"input": shown(PICTURE)})
    created = (await client.post(URL, {"input": [{"type": "item_reference", "id": "msg_1"}] * 4})).json
    monkeypatch.setattr(stored, "_PAGE_BYTES", 2_000_000)
    page = (await client.get(f"{URL}/{created['id']}/input_items")).json
    assert (len(page["data"]), page["has_more"]) == (2, True)
    monkeypatch.undo()
    page = (await client.get(f"{URL}/{created['id']}/input_items")).json
    assert (len(page["data"]), page["has_more"]) == (4, False)
