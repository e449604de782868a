"""Parts of messages that are no text: which are taken, and how their rows come into a prompt."""

from __future__ import annotations

from array import array
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_encoder import fake_medium
from support.fake_engine import INFO, TEMPLATE, ByteTokenizer
from support.templates import TEMPLATES

from llamafast.chat.format import ChatFormat
from llamafast.chat.plan import ChatPlan, plan_chat
from llamafast.chat.prompt.media import MediaParts, row_ids
from llamafast.chat.request import ChatTask
from llamafast.config import ModelConfig
from llamafast.engine.media import Medium
from llamafast.errors import InvalidMedia, InvalidRequest, UnsupportedParameter

TOKENIZER = ByteTokenizer()
URL = "https://example.org/a.png"
DATA = "data:image/png;base64,AAAA"
ALL = ("image", "audio", "video")


def parts(modalities=ALL) -> MediaParts:
    return MediaParts(modalities, lambda i: f"[{i}]")


def source_of(part: dict[str, Any]):
    collected = parts()
    assert collected.word(part, "p") == "[0]"
    return collected.sources[0]


@pytest.mark.parametrize(
    ("part", "kind", "text", "path"),
    [
        ({"type": "image_url", "image_url": {"url": URL}}, "image", URL, "p.image_url.url"),
        ({"type": "image_url", "image_url": {"url": DATA, "detail": "high"}}, "image", DATA, "p.image_url.url"),
        ({"type": "image_url", "image_url": URL}, "image", URL, "p.image_url"),
        ({"type": "image_url", "image_url": {"url": URL}, "uuid": "u"}, "image", URL, "p.image_url.url"),
        ({"type": "input_image", "image_url": DATA, "detail": "auto"}, "image", DATA, "p.image_url"),
        ({"type": "input_image", "image_url": {"url": DATA}}, "image", DATA, "p.image_url.url"),
        ({"type": "input_image", "image_url": DATA, "file_id": None}, "image", DATA, "p.image_url"),
        ({"type": "image", "image_url": URL}, "image", URL, "p.image_url"),
        ({"type": "image", "url": URL}, "image", URL, "p.url"),
        ({"type": "image", "image": URL}, "image", URL, "p.image"),
        (
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
            "image", "AAAA", "p.source.data",
        ),
        ({"type": "image", "source": {"type": "url", "url": URL}}, "image", URL, "p.source.url"),
        ({"type": "audio_url", "audio_url": {"url": URL}}, "audio", URL, "p.audio_url.url"),
        (
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            "audio", "AAAA", "p.input_audio.data",
        ),
        ({"type": "input_audio", "input_audio": {"url": URL}}, "audio", URL, "p.input_audio.url"),
        ({"type": "video_url", "video_url": {"url": URL}}, "video", URL, "p.video_url.url"),
        ({"type": "input_video", "input_video": {"data": "AAAA"}}, "video", "AAAA", "p.input_video.data"),
        ({"type": "video", "video": URL}, "video", URL, "p.video"),
    ],
)  # fmt: skip
def test_every_way_to_send_a_medium(part, kind, text, path):
    source = source_of(part)
    assert (source.kind, source.text, source.path, source.low_detail) == (kind, text, path, False)
    assert source.is_url == (text != "AAAA")


def test_low_detail_is_asked_for_in_both_places():
    assert source_of({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}).low_detail
    assert source_of({"type": "input_image", "image_url": URL, "detail": "low"}).low_detail


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "image_url"}, "p.image_url"),
        ({"type": "image_url", "image_url": None}, "p.image_url"),
        ({"type": "image_url", "image_url": None, "uuid": "u"}, "p.image_url"),
        ({"type": "image_url", "image_url": {}}, "p.image_url"),
        ({"type": "image_url", "image_url": {"url": None}}, "p.image_url"),
        ({"type": "image_url", "image_url": {"url": 1}}, "p.image_url.url"),
        ({"type": "image_url", "image_url": 5}, "p.image_url"),
        ({"type": "image_url", "image_url": [URL]}, "p.image_url"),
        ({"type": "image_url", "image_url": {"url": URL, "detail": "tiny"}}, "p.image_url.detail"),
        ({"type": "image_url", "image_url": {"url": URL, "detail": 3}}, "p.image_url.detail"),
        ({"type": "image_url", "image_url": {"url": URL}, "uuid": 5}, "p.uuid"),
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": 1}}, "p.format"),
    ],
)
def test_what_is_not_well_formed_is_named(part, param):
    with pytest.raises(InvalidRequest) as caught:
        parts().word(part, "p")
    assert caught.value.param == param


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(
    st.sampled_from(["type", "image_url", "url", "data", "source", "detail", "uuid", "input_audio"]), v)))  # fmt: skip
def test_any_value_of_a_part_is_taken_or_refused(value):
    for kind in ("image_url", "image", "input_audio"):
        for part in (value, {"type": kind, "image_url": value, "input_audio": value, "source": value}):
            with suppress(InvalidRequest):
                assert parts().word(part, "p") in (None, "[0]")


@pytest.mark.parametrize(
    ("part", "modalities", "sentence"),
    [
        ({"type": "image_url"}, (), "p: this model takes text only: model.mtmd is not configured"),
        ({"type": "input_audio"}, ("image",), "p: this model takes image beside text, and no audio"),
        ({"type": "video"}, ("image", "audio"), "p: this model takes image and audio beside text, and no video"),
        ({"type": "input_image", "file_id": "f"}, ALL, "p: files are not kept here; send an image as a data URL"),
    ],
)
def test_what_a_model_does_not_take_is_refused_with_what_it_does(part, modalities, sentence):
    with pytest.raises(UnsupportedParameter) as caught:
        parts(modalities).word(part, "p")
    assert caught.value.message == sentence


def test_messages_keep_what_is_text_and_the_order_of_the_rest():
    image = {"type": "image_url", "image_url": {"url": URL}}
    text = {"type": "text", "text": "t"}
    messages = [
        {"role": "user", "content": [image, text, image], "name": "n"},
        {"role": "tool", "content": [image], "tool_call_id": "c"},
        {"role": "user", "content": "plain"},
        {"role": "user", "content": [text, {"type": "odd"}, 5]},
    ]
    before = msgspec.json.encode(messages)
    collected = parts()
    words = collected.messages(messages)
    assert [part["text"] for part in words[0]["content"]] == ["[0]", "t", "[1]"]
    assert words[0]["name"] == "n"
    assert words[1] == {"role": "tool", "content": [{"type": "text", "text": "[2]"}], "tool_call_id": "c"}
    assert words[2:] == messages[2:]
    assert [source.path for source in collected.sources] == [
        f"messages[{i}].content[{j}].image_url.url" for i, j in ((0, 0), (0, 2), (1, 0))
    ]
    assert msgspec.json.encode(messages) == before


def planned(messages: list[dict[str, Any]], media: list[Medium], template: str = TEMPLATE, **info: Any) -> ChatPlan:
    model = msgspec.structs.replace(INFO, chat_template=template, modalities=ALL, **info)
    chat = ChatFormat(ModelConfig(), model, TOKENIZER)
    collected = chat.media_parts(ALL)
    task = ChatTask(messages=collected.messages(messages), media=media, sources=collected.sources)
    return plan_chat(task, chat, TOKENIZER, model)


def image(text: str = URL) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": text}}


def said(*content: Any, role: str = "user") -> dict[str, Any]:
    return {
        "role": role,
        "content": [{"type": "text", "text": one} if isinstance(one, str) else one for one in content],
    }


def test_rows_stand_where_the_client_has_put_its_pictures():
    first, second = fake_medium(1), fake_medium(2, n_rows=7, grid=None)
    plan = planned([said("a", image(), "b", image(), "c")], [first, second]).plan
    (prompt,) = plan.prompts
    assert [(span.row, span.rows.n_rows, span.medium) for span in plan.media] == [
        (prompt.index(40) + 1, 9, first),
        (len(prompt) - prompt[::-1].index(41) - 1 - 7, 7, second),
    ]
    a, b = ids(first), ids(second)
    rest = "".join("?" if token < 0 else chr(token) for token in prompt if token < 256)
    assert rest == "<user>a(?????????)b(???????)c<assistant>"
    assert [token for token in prompt if token < 0] == [*a, *b]


def ids(medium: Medium) -> array[int]:
    return row_ids(medium.digest, 1, medium.chunks[1].n_rows)


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_prints_pictures_in_user_messages(name):
    messages = [said("what is", image(), "and", image(), "here?")]
    plan = planned(messages, [fake_medium(1), fake_medium(2)], TEMPLATES[name], max_seq_len=1 << 20).plan
    assert [token for token in plan.prompts[0] if token < 0] == [*ids(fake_medium(1)), *ids(fake_medium(2))]


def test_a_picture_in_a_tools_result_is_taken():
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [said("look"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "c", "content": [image()]})
    plan = planned(messages, [fake_medium(1)], TEMPLATE).plan
    assert len(plan.media) == 1


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not print this medium"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "does not print this medium"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "out of their order"),
    ],
)
def test_a_template_that_loses_or_moves_a_picture_is_told(template, sentence):
    with pytest.raises(InvalidMedia, match=sentence) as caught:
        planned([said("a", image()), said("b", image())], [fake_medium(1), fake_medium(2)], template)
    assert caught.value.param.startswith("messages[0].content[1].image_url")


def test_no_error_tells_the_words_for_media():
    """Who knew them could have anything stand for a medium."""
    template = "{% for m in messages %}{{ m.content | replace('disappears', '') }}{% endfor %}"
    model = msgspec.structs.replace(INFO, chat_template=template, modalities=ALL)
    chat = ChatFormat(ModelConfig(), model, TOKENIZER)
    collected = chat.media_parts(ALL)
    word = collected.word(image(), "input[0]")
    task = ChatTask(
        messages=[{"role": "user", "content": f"{word}disappears"}], media=[fake_medium(1)], sources=collected.sources
    )
    with pytest.raises(InvalidRequest, match="user message with '<__media__>disappears'"):
        plan_chat(task, chat, TOKENIZER, model)


def test_who_writes_a_marker_gets_text():
    for text in ("<__media__>", "<0123456789abcdef#0>"):
        plan = planned([said(text, image())], [fake_medium(1)]).plan
        assert text in TOKENIZER.detokenize(array("i", [token for token in plan.prompts[0] if token >= 0]))
        assert len(plan.media) == 1


def test_states_are_kept_where_conversations_part_and_where_media_end():
    media = [fake_medium(seed) for seed in range(6)]
    messages = [said("s", role="system"), *(said("a", image(), "b") for _ in media), said("last")]
    (prompt,) = (plan := planned(messages, media, cuts_anywhere=False).plan).prompts
    ends = [span.row + 9 + 1 for span in plan.media]
    assert set(ends[-4:]) <= set(plan.checkpoints)
    assert not set(ends[:2]) & set(plan.checkpoints)
    texts = ["".join(chr(token) if 0 <= token < 256 else "|" for token in prompt[:n]) for n in plan.checkpoints]
    assert texts[0] == "|<system>s|"
    assert texts[-1].endswith("b|")
    assert all(n == len(prompt) or prompt[n] >= 0 for n in plan.checkpoints)


@given(st.integers(1, 200), st.integers(0, 5))
def test_ids_of_rows_say_where_a_span_begins(n_rows, chunk):
    tokens = row_ids(b"d" * 32, chunk, n_rows)
    assert len(tokens) == n_rows
    assert all(token < -1 for token in tokens)
    assert [token & 1 for token in tokens] == [0, *[1] * (n_rows - 1)]
    assert (row_ids(b"d" * 32, chunk, n_rows) == tokens) == (n_rows >= 5)
    assert row_ids(b"e" * 32, chunk, n_rows) != tokens
    assert row_ids(b"d" * 32, chunk + 1, n_rows) != tokens


def test_a_prompt_with_too_many_rows_is_refused_with_their_number():
    with pytest.raises(InvalidRequest, match="tokens"):
        planned([said(image())], [fake_medium(1, grid=None, n_rows=600)])
