"""Every endpoint's request becomes the same task: nothing said is lost, and errors speak the client's words."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from support.fake_engine import INFO, ByteTokenizer

from llamafast.api.chat.schema import ChatRequest
from llamafast.api.schema.completions import CompletionRequest
from llamafast.api.schema.fragments import SamplingOptions
from llamafast.chat.format import ChatFormat
from llamafast.chat.grammar.asked import Asked
from llamafast.chat.plan import plan_chat
from llamafast.chat.request import ChatTask
from llamafast.config import ModelConfig
from llamafast.engine.types import SamplingParams
from llamafast.errors import ContextLengthExceeded, InvalidRequest

TOKENIZER = ByteTokenizer()
CHAT = ChatFormat(ModelConfig(), INFO, TOKENIZER)
NAMES = {"messages": "turns", "max_tokens": "length", "response_format": "form", "tools": "abilities"}
FUNCTIONS = [{"name": "f"}, {"name": "g"}]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]


def refusal(**fields: Any) -> InvalidRequest:
    task = ChatTask(**{"messages": [{"role": "user", "content": "hi"}], "names": NAMES, **fields})
    with pytest.raises(InvalidRequest) as caught:
        plan_chat(task, CHAT, TOKENIZER, INFO)
    return caught.value


def test_every_sampling_field_of_the_wire_is_one_of_the_engine() -> None:
    for name in SamplingOptions.__struct_fields__:
        value: Any = ["top_k"] if name == "samplers" else 1
        (said,) = SamplingOptions(**{name: value}).sampling.items()
        assert said[0] in SamplingParams.__struct_fields__, name
        assert said[1] == value


def test_stages_are_told_by_the_engines_names_whatever_the_client_calls_them() -> None:
    every = SamplingParams().samplers
    for said in ("edskypmxt", every, ["penalties", "d", "s", "k", "typical_p", "p", "m", "x", "temp"]):
        assert msgspec.convert({"samplers": said}, SamplingOptions).sampling == {"samplers": list(every)}


def test_both_wires_fill_the_fields_that_they_share_alike() -> None:
    fields: dict[str, Any] = {
        "temperature": 0.5, "repeat_last_n": 7, "n": 3, "stop": "x", "min_tokens": 2, "stop_token_ids": [5],
        "include_stop_str_in_output": True, "ignore_eos": True, "skip_special_tokens": False, "priority": 4,
        "cache_salt": "s", "guided_regex": "a+", "max_tokens": 9,
    }  # fmt: skip
    chat = msgspec.structs.asdict(ChatRequest(messages=[{}], **fields).task())
    completion = msgspec.structs.asdict(CompletionRequest(prompt="", **fields).task())
    shared = chat.keys() & completion.keys()
    assert {name: chat[name] for name in shared} == {name: completion[name] for name in shared}
    assert chat["sampling"] == {"temperature": 0.5, "penalty_last_n": 7}
    assert chat["constraints"] == {"guided_regex": "a+"}


@pytest.mark.parametrize("n_chars", [600, 500_000])
def test_a_conversation_that_is_too_long_has_the_clients_name(n_chars: int) -> None:
    error = refusal(messages=[{"role": "user", "content": "a" * n_chars}])
    assert isinstance(error, ContextLengthExceeded)
    assert error.param == "turns"
    assert "your turns resulted in" in error.message
    assert refusal(room=INFO.max_seq_len).message.count("your turns resulted in") == 1


def test_a_place_in_a_field_of_another_name_is_the_whole_field() -> None:
    task = ChatTask(messages=[], names=NAMES)
    assert [task.named(path) for path in ("messages", "messages[3].content", "stop")] == ["turns", "turns", "stop"]
    assert ChatTask(messages=[]).named("messages[3].content") == "messages[3].content"
    assert refusal(messages=[{"role": "nobody"}]).param == "turns"
    assert refusal(messages=[{"role": "user", "content": "hi"}], continue_final_message="x").param == (
        "continue_final_message"
    )


def test_limits_that_exclude_each_other_are_called_as_they_were_sent() -> None:
    assert "`length`" in refusal(min_tokens=5, max_tokens=4).message
    old = ChatRequest(messages=[{"role": "user", "content": ""}], min_tokens=5, max_completion_tokens=4).task()
    assert old.named("max_tokens") == "max_completion_tokens"
    assert ChatRequest(messages=[{}], max_tokens=4).task().named("max_tokens") == "max_tokens"
    assert ChatRequest(messages=[{}], functions=[{"name": "f"}]).task().named("tools") == "functions"


@pytest.mark.parametrize("sent", [{"tools": TOOLS}, {"functions": FUNCTIONS}])
@pytest.mark.parametrize("name", ["tool_choice", "function_call"])
def test_either_name_of_a_choice_counts_beside_either_form_of_tools(sent: dict[str, Any], name: str) -> None:
    def chosen(choice: Any, **fields: Any) -> tuple[str, bool]:
        tools = ChatRequest(messages=[{}], **fields or sent, **{name: choice}).task().tools
        return "".join(tool.name for tool in tools.callable), tools.forced

    named = {"type": "function", "function": {"name": "g"}}
    choices = (None, "auto", "none", "required", named, {"name": "g"})
    assert [chosen(choice) for choice in choices] == [
        ("fg", False), ("fg", False), ("", False), ("fg", True), ("g", True), ("g", True),
    ]  # fmt: skip
    for wrong, fields in (("always", sent), ({"name": "h"}, sent), ({"name": "g"}, {"tools": []})):
        with pytest.raises(InvalidRequest) as caught:
            chosen(wrong, **fields)
        assert caught.value.param == name
        assert f"`{name}`" in caught.value.message


@pytest.mark.parametrize(
    ("fields", "message", "param"),
    [
        ({"response_format": {"type": "banana"}}, "`form.type` must be", "form"),
        ({"response_format": {"type": "json_schema"}}, "`form.of` is required", "form"),
        ({"response_format": {}}, "`form` must be", "form"),
        ({"response_format": {"type": "json_object"}, "grammar": "x"}, "has several: form, grammar", "grammar"),
    ],
)
def test_a_form_that_cannot_be_followed_has_the_clients_name(fields: dict[str, Any], message: str, param: str) -> None:
    names = NAMES | {"response_format.json_schema.schema": "form.of"}
    with pytest.raises(InvalidRequest) as caught:
        Asked(fields, names=names).grammars()
    assert message in caught.value.message
    assert caught.value.param == param
