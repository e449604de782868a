"""Messages as clients send them → as templates read them."""

from __future__ import annotations

import pytest

from llamafast.chat.messages import normalise_messages
from llamafast.errors import InvalidRequest, UnsupportedParameter


def one(**message):
    (result,) = normalise_messages([message])
    return result


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool", "function"])
def test_a_plain_message_stays_as_it_is(role: str) -> None:
    assert one(role=role, content="hé") == {"role": role, "content": "hé"}


def test_developer_is_system() -> None:
    assert one(role="developer", content="x")["role"] == "system"


@pytest.mark.parametrize("message", [{"role": "assistant", "content": None}, {"role": "assistant"}])
def test_no_content_is_the_empty_text(message) -> None:
    assert one(**message)["content"] == ""


def test_text_parts_become_one_string() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}, {"type": "text", "text": ""}]
    assert one(role="user", content=parts)["content"] == "ab"
    assert one(role="user", content=[])["content"] == ""


def test_further_fields_reach_the_template() -> None:
    calls = [{"id": "c", "function": {"name": "f", "arguments": "{}"}}]
    message = one(role="assistant", content=None, tool_calls=calls, reasoning_content="why", name="n")
    assert message == {
        "role": "assistant",
        "content": "",
        "tool_calls": calls,
        "reasoning_content": "why",
        "name": "n",
    }


def test_the_clients_objects_are_not_changed() -> None:
    message = {"role": "developer", "content": [{"type": "text", "text": "a"}]}
    normalise_messages([message])
    assert message == {"role": "developer", "content": [{"type": "text", "text": "a"}]}


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"content": "x"}, "messages[1].role"),
        ({"role": "root", "content": "x"}, "messages[1].role"),
        ({"role": None, "content": "x"}, "messages[1].role"),
        ({"role": ["user"], "content": "x"}, "messages[1].role"),
        ({"role": "user", "content": 5}, "messages[1].content"),
        ({"role": "user", "content": {"type": "text"}}, "messages[1].content"),
        ({"role": "user", "content": ["x"]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{}]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": ["text"]}]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0].text"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, "messages[1].content[0].text"),
    ],
)
def test_a_malformed_message_names_its_field(message, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        normalise_messages([{"role": "user", "content": "fine"}, message])
    assert caught.value.param == param


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video", "x" * 10_000])
def test_other_parts_are_not_supported_yet(kind: str) -> None:
    parts = [{"type": "text", "text": "see"}, {"type": kind, kind: {}}]
    with pytest.raises(UnsupportedParameter, match="not supported yet") as caught:
        normalise_messages([{"role": "user", "content": parts}])
    assert caught.value.param == "messages[0].content[1].type"
    assert len(caught.value.message) < 200
