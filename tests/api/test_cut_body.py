"""Long base64 in a body: what was cut out comes back as the client wrote it, and media keep it where it is."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamafast.api.cut_body import cut
from llamafast.api.decode import parse, parse_cut
from llamafast.api.media_texts import encode_whole, in_chat, owned
from llamafast.api.responses.items import in_request
from llamafast.engine.media import DetachedText
from llamafast.errors import InvalidRequest
from llamafast.media.data_url import read_base64, read_data_url
from llamafast.media.limits import ByteLimit

DATA = bytes(range(256)) * 8000
TEXT = b64encode(DATA).decode()
LIMIT = ByteLimit("image", 1 << 24)


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


def walked(value: Any) -> list[Any]:
    """All that is in ``value`` and nothing else in it, keys too, in order."""
    if isinstance(value, dict):
        return [text for pair in value.items() for item in pair for text in walked(item)]
    return [text for item in value for text in walked(item)] if isinstance(value, list) else [value]


def texts_of(value: Any) -> list[Any]:
    """The same with DetachedText's name in place of each."""
    return [DetachedText if isinstance(text, DetachedText) else text for text in walked(value)]


def part(text: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": text, "detail": "low"}}


def test_media_are_left_where_they_are() -> None:
    value = {"messages": [{"content": [part("data:image/png;base64," + TEXT), {"type": "text", "text": "x"}]}]}
    (shown, text) = parse_cut(body(value), in_chat)["messages"][0]["content"]  # type: ignore[index]
    url = shown["image_url"]["url"]
    assert isinstance(url, DetachedText)
    assert url == "data:image/png;base64,"
    assert len(url.base64) == len(TEXT)
    assert read_data_url(url, LIMIT) == ("image/png", DATA)
    assert text == {"type": "text", "text": "x"}
    audio = {"type": "input_audio", "input_audio": {"data": TEXT, "format": "wav"}}
    asked = body({"messages": [{"role": "user", "content": [audio]}]})
    told = parse_cut(asked, in_chat)["messages"][0]["content"][0]["input_audio"]["data"]  # type: ignore[index]
    assert told == ""
    assert read_base64(told, LIMIT) == DATA


@pytest.mark.parametrize("value", [
    {"user": TEXT}, [TEXT, "x", TEXT], {"type": "text", "text": "data:;base64," + TEXT}, {"a": {"b": [{"c": TEXT}]}},
    {"type": ["image_url"], "url": TEXT}, {"x": "é" + TEXT}, {"x": TEXT + "!"}, {"x": TEXT[:70_000] + " " + TEXT},
    {TEXT: 1}, {"x": TEXT[:1000]},
])  # fmt: skip
def test_everything_else_is_as_the_client_wrote_it(value: Any) -> None:
    value = [value, "x" * (1 << 20)]
    for places in (in_chat, in_request):
        assert texts_of(parse_cut(body(value), places)) == texts_of(value)


@given(st.integers(0, 300_000), st.integers(0, 300_000), st.sampled_from(["", " ", "=", "\\n", "é"]))
@settings(max_examples=30, deadline=None)
def test_wherever_a_text_begins_and_ends(before: int, n: int, behind: str) -> None:
    value = {"a": "!" * before, "b": "A" * n + behind, "c": ["B" * 300_000]}
    assert parse_cut(body(value) + b" " * (1 << 20), in_chat) == value


@pytest.mark.parametrize(
    "broken",
    [
        b"[" + b"1" * 2_000_000 + b"]", b"A" * 2_000_000, b'{"a": ' + b"A" * 2_000_000 + b'"}',
        b'["' + b"A" * 2_000_000, b'["' + b"A" * 2_000_000 + b'", ]', b'[\n"' + b"A" * 2_000_000 + b'", "\x01"]',
        b'["' + b"A" * 2_000_000 + b'", "\xff"]', b'["' + b"A" * 2_000_000 + b'", "\\ud800"]',
        b'{"' + b"A" * 2_000_000 + b'": 1, "' + b"A" * 2_000_000 + b'": 2}',
        b"[" * 5000 + b'"' + b"A" * 2_000_000 + b'"' + b"]" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused_in_the_same_words(broken: bytes) -> None:
    said = []
    for read in (parse, lambda text: parse_cut(text, in_chat), lambda text: parse_cut(text, in_request)):
        with pytest.raises(InvalidRequest) as refused:
            read(broken)
        said.append((refused.value.message, refused.value.param))
    assert said == said[:1] * 3


def test_nobody_can_write_the_words() -> None:
    value = {"a": "<0123456789abcdef0123456789abcdef:0>", "b": [part(TEXT)], "c": TEXT}
    told = parse_cut(body(value), in_chat)
    assert told["a"] == value["a"]  # type: ignore[index]
    assert told["c"] == TEXT  # type: ignore[index]


def test_short_bodies_and_those_without_base64_are_decoded_as_they_are() -> None:
    assert cut(b"{}") is None
    assert cut(b'"' + b"! " * (1 << 20) + b'"') is None


def test_what_may_be_nested_may_be_so_beside_base64_too() -> None:
    deep: Any = TEXT
    for _ in range(500):
        deep = [deep]
    assert str(parse_cut(body({"x": deep}), in_chat)) == str({"x": deep})


@pytest.mark.parametrize("head", ["https://example.org/?q=", "file:///", "low ", "\nlow"])
def test_only_base64_and_data_urls_are_left(head: str) -> None:
    url = part(head + TEXT)
    (told,) = parse_cut(body({"messages": [{"content": [url]}]}), in_chat)["messages"][0]["content"]  # type: ignore[index]
    assert texts_of(told) == texts_of(url)


def test_data_urls_with_escapes_keep_what_is_left() -> None:
    for head in ("data:image/bmp,%42M", "data:image/bmp,B%"):
        url = head + "41" * 200_000
        told = parse_cut(body({"messages": [{"content": [part(url), "x" * 800_000]}]}), in_chat)
        text = told["messages"][0]["content"][0]["image_url"]["url"]  # type: ignore[index]
        assert isinstance(text, DetachedText)
        assert read_data_url(text, LIMIT) == read_data_url(url, LIMIT)


SHOWN = {"type": "input_image", "image_url": "data:image/png;base64," + TEXT}
HEARD = {"type": "input_audio", "input_audio": {"data": TEXT, "format": "wav"}}
SEEN = {"type": "input_video", "video_url": {"url": "data:;base64," + TEXT}}
ANTHROPIC = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": TEXT}}
SCREEN = {"type": "computer_screenshot", "image_url": "data:image/png;base64," + TEXT}


@pytest.mark.parametrize("item", [
    {"role": "user", "content": [{"type": "input_text", "text": "see"}, SHOWN, HEARD, SEEN, ANTHROPIC]},
    {"type": "message", "role": "assistant", "content": [SHOWN]},
    *(
        {"type": f"{tool}_output", "call_id": "c", "output": [SHOWN, {"type": "input_text", "text": "x"}]}
        for tool in ("function_call", "custom_tool_call", "shell_call", "local_shell_call", "apply_patch_call")
    ),
    {"type": "computer_call_output", "call_id": "c", "output": SCREEN},
    {"type": "image_generation_call", "result": TEXT},
], ids=lambda item: item.get("type", "of no type"))  # fmt: skip
def test_media_of_items_are_left_where_they_are(item: dict[str, Any]) -> None:
    (told,) = parse_cut(body({"input": [item]}), in_request)["input"]  # type: ignore[index]
    assert texts_of(told) == [DetachedText if text.endswith(TEXT) else text for text in texts_of(item)]
    whole: Any = [text.base64 for text in walked(told) if isinstance(text, DetachedText)]
    assert whole
    assert all(base64 == TEXT.encode() for base64 in whole)
    assert json.loads(encode_whole(told)) == item


@pytest.mark.parametrize("item", [
    {"role": "user", "content": "data:image/png;base64," + TEXT},
    {"role": "user", "content": [{"type": "input_text", "text": TEXT}, {"type": "input_file", "file_data": TEXT}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": TEXT},
    {"type": "function_call_output", "call_id": "c", "output": "data:image/png;base64," + TEXT},
    {"type": "function_call_output", "call_id": "c", "output": [SHOWN, {"text": "no type: told as JSON"}]},
    {"type": "function_call_output", "call_id": "c", "output": SHOWN},
    {"type": "mcp_call", "arguments": "{}", "output": TEXT},
    {"type": "reasoning", "content": [SHOWN]},
    {"type": "reasoning", "encrypted_content": TEXT},
    {"type": "only_here", "content": [SHOWN]},
    {"type": ["message"], "content": [SHOWN]},
    {"type": "message", "content": SHOWN},
], ids=lambda item: str(item.get("type"))[:30])  # fmt: skip
def test_what_items_have_in_other_places_is_whole(item: dict[str, Any]) -> None:
    for value in ({"input": [item]}, {"input": item}, {"tools": [item], "input": TEXT}, {"input": [[item], TEXT]}):
        assert texts_of(parse_cut(body(value), in_request)) == texts_of(value)


def test_a_text_that_is_kept_holds_no_body_that_has_more_in_it() -> None:
    told = parse_cut(body({"input": [{"role": "user", "content": [SHOWN]}], "x": "!" * (1 << 20)}), in_request)
    text = told["input"][0]["content"][0]["image_url"]  # type: ignore[index]
    own = owned(text)
    assert isinstance(own, DetachedText)
    assert (str(own), bytes(own.base64)) == (str(text), TEXT.encode())
    assert len(memoryview(own.base64.obj)) == len(TEXT)
    assert owned(own) is own
    assert owned("x") == "x"
