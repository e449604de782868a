"""Messages as clients send them → as templates read them."""

from __future__ import annotations

from copy import deepcopy

import pytest

from llamafast.chat.prompt.accepts import Accepts
from llamafast.chat.prompt.messages import normalise_messages
from llamafast.errors import InvalidRequest, UnsupportedParameter

ANY = Accepts()


def one(accepts: Accepts = ANY, /, **message):
    (result,) = normalise_messages([message], accepts)
    return result


def roles_and_contents(messages, accepts: Accepts):
    return [(message["role"], message["content"]) for message in normalise_messages(messages, accepts)]


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_a_plain_message_stays_as_it_is(role: str) -> None:
    assert one(role=role, content="hé") == {"role": role, "content": "hé"}


def test_developer_is_system_unless_the_template_knows_it() -> None:
    assert one(role="developer", content="x")["role"] == "system"
    assert one(Accepts(developer=True), role="developer", content="x")["role"] == "developer"


@pytest.mark.parametrize("message", [{"role": "assistant", "content": None}, {"role": "assistant"}])
def test_no_content_is_the_empty_text(message) -> None:
    assert one(**message)["content"] == ""


def test_text_parts_become_one_string() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}, {"type": "text", "text": ""}]
    assert one(role="user", content=parts)["content"] == "ab"
    assert one(role="user", content=[])["content"] == ""


def test_a_refusal_is_what_was_said() -> None:
    assert one(role="assistant", content=None, refusal="No.")["content"] == "No."
    assert one(role="assistant", content="Well.", refusal="No.")["content"] == "Well.\n\nNo."
    assert one(role="assistant", content="Well.", refusal=None)["content"] == "Well."


def test_parts_stay_for_templates_that_read_them() -> None:
    accepts = Accepts(parts=frozenset({"user"}))
    parts = [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    as_text = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert one(accepts, role="user", content=parts)["content"] == as_text
    assert one(accepts, role="system", content=parts)["content"] == "ab"
    only_parts = Accepts(strings=False, parts=frozenset({"user"}))
    assert one(only_parts, role="user", content="a")["content"] == [{"type": "text", "text": "a"}]
    assert one(only_parts, role="system", content=parts)["content"] == [{"type": "text", "text": "ab"}]


def test_further_fields_reach_the_template() -> None:
    message = {"role": "assistant", "content": "c", "reasoning_content": "why", "name": "n", "own": {"deep": [1]}}
    assert one(**message) == message


def call(arguments="{}", key="call_1", name="f"):
    return {"id": key, "type": "function", "function": {"name": name, "arguments": arguments}}


def arguments_of(message):
    return [each["function"]["arguments"] for each in message["tool_calls"]]


@pytest.mark.parametrize(
    ("given", "value", "text"),
    [
        ('{"a": 1}', {"a": 1}, '{"a": 1}'),
        ({"a": "é"}, {"a": "é"}, '{"a": "é"}'),
        ("", {}, ""),
        (None, {}, "{}"),
        ("{broken", "{broken", "{broken"),
        ("[" * 100_000, "[" * 100_000, "[" * 100_000),
        ("9" * 5000, "9" * 5000, "9" * 5000),
    ],
)
def test_arguments_are_objects_or_texts_as_the_template_reads_them(given, value, text) -> None:
    calls = [call(given)]
    assert arguments_of(one(role="assistant", tool_calls=calls)) == [value]
    assert arguments_of(one(Accepts(objects=False), role="assistant", tool_calls=calls)) == [text]


@pytest.mark.parametrize(
    ("content", "accepts", "result"),
    [
        (None, Accepts(), ""),
        ("", Accepts(), ""),
        (None, Accepts(null_with_calls=True), None),
        ("", Accepts(null_with_calls=True), ""),
        ("", Accepts(null_with_calls=True, empty_with_calls=False), None),
        ("x", Accepts(null_with_calls=True, empty_with_calls=False), "x"),
    ],
)
def test_content_beside_calls(content, accepts, result) -> None:
    assert one(accepts, role="assistant", content=content, tool_calls=[call()])["content"] == result


def test_no_calls_are_no_field() -> None:
    assert "tool_calls" not in one(role="assistant", content="a", tool_calls=[])
    assert "tool_calls" not in one(role="assistant", content="a", tool_calls=None)


def test_a_result_gets_the_id_and_name_of_its_call() -> None:
    calls = [call(key="a", name="f"), call(key="b", name="g")]
    results = [
        {"role": "tool", "tool_call_id": "b", "content": "1"},
        {"role": "tool", "content": "2"},
        {"role": "tool", "tool_call_id": "zz", "content": "3"},
    ]
    first, second, third = normalise_messages([{"role": "assistant", "tool_calls": calls}, *results], ANY)[1:]
    assert (first["name"], second["name"], second["tool_call_id"]) == ("g", "f", "a")
    assert third == results[2]


def test_legacy_functions_are_tools() -> None:
    messages = [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"role": "function", "name": "f", "content": "1"},
    ]
    asked, answered = normalise_messages(messages, ANY)
    assert arguments_of(asked) == [{"a": 1}]
    assert "function_call" not in asked
    assert answered == {"role": "tool", "name": "f", "content": "1", "tool_call_id": asked["tool_calls"][0]["id"]}


def test_custom_tool_calls_have_their_input_as_argument() -> None:
    custom = {"id": "c", "type": "custom", "custom": {"name": "f", "input": "text"}}
    assert one(role="assistant", tool_calls=[custom])["tool_calls"] == [call({"input": "text"}, key="c")]


def test_ids_of_nine_characters() -> None:
    accepts = Accepts(long_ids=False)
    messages = [
        {"role": "assistant", "tool_calls": [call(key="call_x-1"), call(key="abcDEF123")]},
        {"role": "tool", "tool_call_id": "call_x-1", "content": ""},
    ]
    asked, answered = normalise_messages(messages, accepts)
    short, kept = (each["id"] for each in asked["tool_calls"])
    assert (len(short), short.isalnum(), kept) == (9, True, "abcDEF123")
    assert answered["tool_call_id"] == short


def test_parallel_calls_one_after_the_other() -> None:
    messages = [
        {"role": "assistant", "content": "c", "tool_calls": [call(key="a"), call(key="b"), call(key="c")]},
        {"role": "tool", "tool_call_id": "b", "content": "B"},
        {"role": "tool", "tool_call_id": "a", "content": "A"},
        {"role": "tool", "tool_call_id": "zz", "content": "Z"},
        {"role": "user", "content": "u"},
    ]
    flat = [
        ([each["id"] for each in message.get("tool_calls", [])], message["content"])
        for message in normalise_messages(messages, Accepts(parallel_calls=False))
    ]
    assert flat == [(["a"], "c"), ([], "A"), (["b"], ""), ([], "B"), (["c"], ""), ([], "Z"), ([], "u")]


def test_messages_a_template_refuses_are_joined() -> None:
    system, developer = {"role": "system", "content": "s"}, {"role": "developer", "content": "d"}
    user, parts = {"role": "user", "content": "u"}, {"role": "user", "content": [{"type": "text", "text": "p"}]}
    answer = {"role": "assistant", "content": "a"}
    chat = [system, developer, user, parts, answer]
    assert roles_and_contents(chat, Accepts(several_systems=False, repeated_users=False)) == [
        ("system", "s\n\nd"), ("user", "u\n\np"), ("assistant", "a"),
    ]  # fmt: skip
    nothing = Accepts(system=False, repeated_users=False)
    assert roles_and_contents(chat, nothing) == [("user", "s\n\nd\n\nu\n\np"), ("assistant", "a")]
    assert roles_and_contents([system, answer], nothing) == [("user", "s"), ("assistant", "a")]
    assert roles_and_contents([answer, answer], nothing) == [("assistant", "a")] * 2
    with_parts = Accepts(repeated_users=False, parts=frozenset({"user"}))
    joined = [{"type": "text", "text": text} for text in ("u", "\n\n", "p")]
    assert roles_and_contents([user, parts], with_parts) == [("user", joined)]


def test_the_clients_objects_are_not_changed() -> None:
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "function", "name": "f", "content": None},
    ]
    before = deepcopy(messages)
    normalise_messages(messages, Accepts(parallel_calls=False, long_ids=False, system=False))
    assert messages == before


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
        ({"role": "assistant", "tool_calls": {}}, "messages[1].tool_calls"),
        ({"role": "user", "content": "", "tool_calls": [call()]}, "messages[1].tool_calls"),
        ({"role": "user"}, "messages[1].content"),
        ({"role": "user", "content": None}, "messages[1].content"),
        ({"role": "assistant", "tool_calls": [1]}, "messages[1].tool_calls[0]"),
        ({"role": "assistant", "tool_calls": [{}]}, "messages[1].tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [call(arguments=5)]}, "messages[1].tool_calls[0].function"),
        ({"role": "assistant", "tool_calls": [call(key=5)]}, "messages[1].tool_calls[0].id"),
        ({"role": "assistant", "function_call": "f"}, "messages[1].function_call.function"),
        ({"role": "tool", "content": "x", "tool_call_id": ["a"]}, "messages[1].tool_call_id"),
        ({"role": "user", "content": "x", "name": {}}, "messages[1].name"),
        ({"role": "assistant", "content": None, "audio": {"id": "a"}}, "messages[1].audio"),
    ],
)
def test_a_malformed_message_names_its_field(message, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        normalise_messages([{"role": "user", "content": "fine"}, message], ANY)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("image_url", "this model takes text only: model.mtmd is not configured"),
        ("input_image", "this model takes text only"),
        ("image", "this model takes text only"),
        ("input_audio", "this model takes text only"),
        ("video", "this model takes text only"),
        ("file", "files are not kept here"),
        ("input_file", "files are not kept here"),
        ("x" * 10_000, "is not supported yet"),
    ],
)
def test_other_parts_are_refused_with_the_reason(kind: str, sentence: str) -> None:
    parts = [{"type": "text", "text": "see"}, {"type": kind, kind: {}}]
    with pytest.raises(UnsupportedParameter, match=sentence) as caught:
        normalise_messages([{"role": "user", "content": parts}], ANY)
    assert caught.value.param == "messages[0].content[1].type"
    assert len(caught.value.message) < 200
