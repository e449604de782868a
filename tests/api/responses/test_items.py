"""Items of the Responses API as chat messages."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from llamafast.api.responses.items import messages_of
from llamafast.api.responses.tools import ToolTable
from llamafast.chat.prompt.media import MediaParts
from llamafast.chat.tools import ToolChoice
from llamafast.errors import InvalidRequest, UnsupportedParameter


def say(role: str, text: str) -> dict[str, Any]:
    return {"type": "message", "role": role, "content": text}


def think(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def call(name: str, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"call_{name}", "name": name, "arguments": arguments, **more}


def result(name: str, output: Any = "ok", kind: str = "function_call_output") -> dict[str, Any]:
    return {"type": kind, "call_id": f"call_{name}", "output": output}


def test_one_turn_is_one_message() -> None:
    items = [say("user", "Q"), think("hm"), say("assistant", "I look."), call("a"), call("b"), result("a"), result("b")]
    user, turn, *results = messages_of([*items, say("assistant", "Done.")])
    assert user == {"role": "user", "content": "Q"}
    assert turn["role"] == "assistant"
    assert (turn["reasoning_content"], turn["content"]) == ("hm", "I look.")
    assert [called["function"]["name"] for called in turn["tool_calls"]] == ["a", "b"]
    assert results[0] == {"role": "tool", "tool_call_id": "call_a", "name": "a", "content": "ok"}
    assert results[2] == {"role": "assistant", "content": "Done."}


def test_text_after_a_call_stays_before_its_result() -> None:
    messages = messages_of([call("a"), say("assistant", "Wait."), result("a")])
    assert [message["role"] for message in messages] == ["assistant", "tool"]
    assert messages[0]["content"] == "Wait."


def test_turns_do_not_run_together() -> None:
    messages = messages_of([say("assistant", "A"), say("assistant", "B"), think("hm"), say("assistant", "C")])
    assert [message["content"] for message in messages] == ["A", "B", "C"]
    assert messages[2]["reasoning_content"] == "hm"


def test_instructions_come_first_and_in_one_piece() -> None:
    messages = messages_of([say("developer", "B"), say("user", "Q"), say("system", "C")], "A")
    assert [(message["role"], message["content"]) for message in messages] == [
        ("system", "A\n\nB"), ("user", "Q"), ("system", "C"),
    ]  # fmt: skip


def test_kinds_of_text() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b", "annotations": []}]
    refusal = [{"type": "refusal", "refusal": "No."}]
    messages = messages_of([{"role": "user", "content": parts}, {"role": "assistant", "content": refusal}])
    assert [message["content"] for message in messages] == ["ab", "No."]


def test_reasoning_takes_no_media() -> None:
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    media = MediaParts(("text", "image"), lambda i: f"[{i}]")
    with pytest.raises(InvalidRequest):
        messages_of([{"type": "reasoning", "summary": [], "content": [picture]}], media=media)
    assert messages_of([{"type": "message", "role": "user", "content": [picture]}], media=media)


def test_reasoning_without_content_is_its_summary_or_nothing() -> None:
    summary = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "x"}
    assert messages_of([summary])[0]["reasoning_content"] == "s"
    assert messages_of([{"type": "reasoning", "summary": []}]) == []


def test_calls_of_all_kinds() -> None:
    items = [
        call("f", namespace="n"),
        {"type": "custom_tool_call", "call_id": "call_c", "name": "c", "input": 'say "é"'},
        {"type": "local_shell_call", "call_id": "call_l", "action": {"type": "exec", "command": ["ls"], "env": {}}},
        {"type": "apply_patch_call", "call_id": "call_p", "operation": {"type": "delete_file"}},
        result("c", [{"type": "input_text", "text": "t"}], "custom_tool_call_output"),
        {"type": "local_shell_call_output", "id": "call_l", "output": "file"},
        {"type": "apply_patch_call_output", "call_id": "call_p", "status": "completed"},
        result("f", [{"stdout": "x"}]),
    ]
    turn, *results = messages_of(items)
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in turn["tool_calls"]] == [
        ("n__f", "{}"),
        ("c", '{"input": "say \\"é\\""}'),
        ("local_shell", '{"command": ["ls"]}'),
        ("apply_patch", '{"type": "delete_file"}'),
    ]
    assert [message["content"] for message in results] == ["t", "file", "completed", '[{"stdout": "x"}]']
    assert [message["name"] for message in results] == ["c", "local_shell", "apply_patch", "n__f"]


def test_tools_that_clients_run() -> None:
    tools = [{"type": "local_shell"}, {"type": "shell"}, {"type": "apply_patch"}]
    table = ToolTable(tools)
    assert [tool.name for tool in table.functions] == ["local_shell", "shell", "apply_patch"]
    assert table.tool_name("shell") == ("shell", None, "shell")
    assert [tool.name for tool in table.choose({"type": "shell"}).callable] == ["shell"]
    assert ToolTable([{"type": "shell", "environment": {"type": "container_auto"}}]).functions == []
    with pytest.raises(InvalidRequest, match="not among"):
        ToolTable([{"type": "function", "name": "shell"}]).choose({"type": "shell"})
    with pytest.raises(InvalidRequest, match="two tools"):
        ToolTable([{"type": "function", "name": "shell"}, {"type": "shell"}])
    with pytest.raises(InvalidRequest) as caught:
        messages_of([{"type": "shell_call", "call_id": "c", "action": "ls"}])
    assert caught.value.param == "input[0].action"


def test_what_has_no_words_is_passed_over() -> None:
    silent = ["web_search_call", "mcp_list_tools", "compaction", "image_generation_call", "additional_tools"]
    assert messages_of([{"type": kind} for kind in silent] + [say("user", "Q")]) == [{"role": "user", "content": "Q"}]


@pytest.mark.parametrize(
    ("item", "name", "arguments", "result"),
    [
        ({"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "q"}},
         "web_search", {"action": {"type": "search", "query": "q"}}, "completed"),
        ({"type": "file_search_call", "queries": ["q"], "results": [{"text": "é"}]},
         "file_search", {"queries": ["q"]}, '[{"text": "é"}]'),
        ({"type": "code_interpreter_call", "code": "1+1", "outputs": [{"type": "logs", "logs": "2"}]},
         "code_interpreter", {"code": "1+1"}, '[{"type": "logs", "logs": "2"}]'),
        ({"type": "mcp_call", "name": "ask", "arguments": '{"a": 1}', "output": "one", "server_label": "s"},
         "ask", {"a": 1}, "one"),
        ({"type": "mcp_call", "name": "ask", "arguments": "{}", "output": None, "error": "down"}, "ask", {}, "down"),
    ],
)  # fmt: skip
def test_what_hosted_tools_said_is_a_call_and_its_result(
    item: dict[str, Any], name: str, arguments: Any, result: str
) -> None:
    _, asked, answered = messages_of([say("user", "Q"), item])
    (call,) = asked["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == (name, arguments)
    assert answered == {"role": "tool", "tool_call_id": call["id"], "name": name, "content": result}


@pytest.mark.parametrize(
    "item",
    [
        {"type": "image_generation_call", "result": "iVBOR"},
        {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot"}},
    ],
)
def test_pictures_are_refused(item: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedParameter, match="takes text only"):
        messages_of([say("user", "Q"), item])


@pytest.mark.parametrize("kind", ["input_image", "input_file"])
def test_media_in_what_a_tool_answers_are_refused_with_the_reason(kind: str) -> None:
    parts = [{"type": "input_text", "text": "see"}, {"type": kind, "image_url": "data:image/png;base64,AAAA"}]
    sentence = "this model takes text only" if kind == "input_image" else "files are not kept here"
    with pytest.raises(UnsupportedParameter, match=sentence) as caught:
        messages_of([call("look"), result("look", parts)])
    assert caught.value.param == "input[1].output[1].type"


def test_paths_count_from_the_request() -> None:
    with pytest.raises(InvalidRequest) as caught:
        messages_of([say("user", "old"), result("gone")], n_before=1)
    assert caught.value.param == "input[0].call_id"


def test_tools() -> None:
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /x/"}
    tools = [
        {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": None},
        {"type": "custom", "name": "c", "description": "free", "format": grammar},
        {"type": "namespace", "name": "n", "description": "", "tools": [{"type": "function", "name": "f"}]},
        {"type": "web_search"},
    ]
    late = [{"type": "additional_tools", "role": "developer", "tools": [{"type": "function", "name": "f"}]}]
    table = ToolTable(tools)
    plain, custom, nested = table.functions
    shown = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    assert plain.definition == {"type": "function", "function": shown}
    assert (custom.name, custom.grammar) == ("c", "start: /x/")
    description = custom.definition["function"]["description"]
    assert "free" in description
    assert "start: /x/" in description
    assert custom.parameters["required"] == ["input"]
    assert nested.name == "n__f"
    assert table.tool_name("n__f") == ("f", "n", "function")
    assert table.tool_name("c").kind == "custom"
    assert ToolTable([{"type": "web_search"}]).functions == []
    replaced = ToolTable(tools, late).functions
    assert [tool.name for tool in replaced] == ["f", "c", "n__f"]
    assert "description" not in replaced[0].definition["function"]


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ("grammar", "format"),
        ({"type": "image"}, "format"),
        ({"type": "grammar", "syntax": "gbnf", "definition": "x"}, "format"),
        ({"type": "grammar", "syntax": "lark"}, "format.definition"),
    ],
)
def test_formats_that_are_none(form: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ToolTable([{"type": "custom", "name": "c", "format": form}])
    assert caught.value.param == f"tools[0].{param}"


def test_choices() -> None:
    table = ToolTable([{"type": "function", "name": "f"}, {"type": "custom", "name": "c"}])
    f, c = table.functions
    assert table.choose("auto") == table.choose(None) == ToolChoice((f, c), (f, c), False)
    assert table.choose("required") == ToolChoice((f, c), (f, c), True)
    assert table.choose("none") == ToolChoice((), (), False)
    assert table.choose({"type": "custom", "name": "c"}) == ToolChoice((f, c), (c,), True)
    allowed = {"type": "allowed_tools", "tools": [{"type": "function", "name": "f"}]}
    for mode in ("auto", "required"):
        assert table.choose({**allowed, "mode": mode}) == ToolChoice((f, c), (f,), mode == "required")
    with pytest.raises(UnsupportedParameter):
        table.choose({"type": "web_search"})
    for wrong in ({"type": "function", "name": "g"}, "sometimes", {"type": "allowed_tools", "tools": []}):
        with pytest.raises(InvalidRequest):
            table.choose(wrong)
    with pytest.raises(InvalidRequest):
        ToolTable([]).choose("required")


@pytest.mark.parametrize(
    "items",
    [
        lambda texts: [{"role": "system", "content": each} for each in texts],
        lambda texts: [
            {"type": "function_call", "call_id": "a", "name": "f", "arguments": "{}"},
            *({"role": "assistant", "content": each} for each in texts),
        ],
        lambda texts: [{"type": "reasoning", "content": [{"type": "reasoning_text", "text": each}]} for each in texts],
    ],
)
def test_a_turn_of_many_items_costs_what_they_are(items: Callable[[list[str]], list[Any]]) -> None:
    """Text is not copied once for each item that comes to it: gigabytes, with the GIL held."""
    given = items(["x" * 6000] * 4000)
    began = time.thread_time()
    (message,) = messages_of(given)
    assert time.thread_time() - began < 1
    assert len(message.get("reasoning_content") or message["content"]) >= 24_000_000
