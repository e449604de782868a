"""Anthropic's turns and blocks as the prompt has them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.anthropic_api import TOOLS, Messages, answered, called, hermes

from llamafast.api.messages.blocks import messages_of
from llamafast.api.messages.tools import ToolTable
from llamafast.chat.prompt.media import MediaParts
from llamafast.errors import InvalidRequest

IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}
ASKED = {"role": "user", "content": "Weather?"}


def text(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": each} for each in texts]


def holding(*blocks: Any) -> dict[str, Any]:
    return {"type": "document", "source": {"type": "content", "content": list(blocks)}}


CALLED = {"role": "assistant", "content": [*text("Let me see."), called("get_weather", {"city": "Paris"})]}
BILLING = "x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch=a1b2c;"
# After a tool's result it wants the model's answer.
NO_TURN_AFTER_RESULTS = (
    "{% set ns = namespace(last='') %}{% for m in messages %}"
    "{% if m.role == 'user' and ns.last == 'tool' %}{{ raise_exception('an answer first') }}{% endif %}"
    "{% set ns.last = m.role %}<{{ m.role }}>{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}</s>{% endfor %}"
    "{{ '<assistant>' if add_generation_prompt }}"
)


@pytest.fixture
def api() -> Messages:
    return Messages()


def chat(turns: list[Any], system: Any = None, *, apart: bool = True, sees: bool = False) -> list[Any]:
    media = MediaParts(("image",) if sees else (), lambda i: f"#{i}#")
    return messages_of(turns, system, ToolTable(TOOLS), media, sees=sees, turns_after_results=apart)


async def test_turns_of_one_role_in_a_row_are_one(api: Messages) -> None:
    turns = [
        {"role": "user", "content": text("a", "", "b")},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": text("d", "e")},
        {"role": "assistant", "content": "f"},
        {"role": "user", "content": "g"},
    ]
    assert await api.prompted(turns, system="S") == (
        "<system>S</s><user>a\n\nb\n\nc</s><assistant>def</s><user>g</s><assistant>"
    )


async def test_results_come_before_the_text_of_their_turn(api: Messages) -> None:
    """llama-server has the text first."""
    turns = [ASKED, CALLED, {"role": "user", "content": [*text("And now?"), answered("Sun")]}]
    assert (await api.prompted(turns, tools=TOOLS)).endswith(
        "</tool_call></s><tool>Sun</s><user>And now?</s><assistant>"
    )


def test_calls_and_results() -> None:
    content = [
        {"type": "thinking", "thinking": "Hm.", "signature": "theirs"},
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "redacted_thinking", "data": "x"},
        *text("Let me see."),
        called("get_weather", {"city": "Paris"}, "a"),
        called("now", {}, "b"),
    ]
    results = [answered(text("Sun", "22"), "a"), answered(None, "b", is_error=True)]
    said = chat([ASKED, {"role": "assistant", "content": content}, {"role": "user", "content": results}])
    assert said[1:] == [
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}},
                {"id": "b", "type": "function", "function": {"name": "now", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "Sun\n\n22"},
        {"role": "tool", "tool_call_id": "b", "content": ""},
    ]


async def test_reasoning_of_the_history_reaches_the_template_in_tool_loops(api: Messages) -> None:
    """llama-server loses it."""
    thought = {"type": "thinking", "thinking": "I look.", "signature": "llamafast"}
    thinks = {"role": "assistant", "content": [thought, called("now", {})]}
    turns = [ASKED, thinks, {"role": "user", "content": [answered("4")]}]
    assert "<assistant><think>I look.</think><tool_call>" in await api.prompted(turns, tools=TOOLS)


async def test_the_billing_line_is_dropped(api: Messages) -> None:
    prompts = {
        await api.prompted(system=system)
        for system in (
            [*text(BILLING), *text("Be brief.")],
            [*text(BILLING.replace("a1b2c", "9")), {**text("Be brief.")[0], "cache_control": {"type": "ephemeral"}}],
            f"{BILLING}\n\nBe brief.",
            text(f"{BILLING}\nBe brief."),
            "Be brief.",
        )
    }
    assert prompts == {"<system>Be brief.</s><user>hi</s><assistant>"}
    assert (await api.prompted(system=text(BILLING))) == "<user>hi</s><assistant>"


@pytest.mark.parametrize("as_blocks", [False, True])
async def test_a_system_turn_stays_in_its_place(api: Messages, as_blocks: bool) -> None:
    """vLLM, Ollama and llama-server refuse it, move it to the front or leave it to templates that raise."""
    note = text("Note.") if as_blocks else "Note."
    turns = [ASKED, {"role": "system", "content": note}]
    first = await api.prompted(turns, system="S")
    reminder = "<system-reminder>\nNote.\n</system-reminder>"
    assert first == f"<system>S</s><user>Weather?\n\n{reminder}</s><assistant>"
    turns += [CALLED, {"role": "user", "content": [answered("Sun")]}, {"role": "system", "content": note}]
    second = await api.prompted(turns, system="S")
    assert second.startswith(first)
    assert second.endswith(f"<tool>Sun</s><user>{reminder}</s><assistant>")


async def test_where_no_turn_may_follow_a_result_a_system_turn_is_its_end() -> None:
    api = Messages(hermes(NO_TURN_AFTER_RESULTS))
    turns = [ASKED, CALLED, {"role": "user", "content": [answered("Sun")]}, {"role": "system", "content": "Note."}]
    prompt = await api.prompted(turns, tools=TOOLS)
    assert prompt.endswith("<tool>Sun\n\n<system-reminder>\nNote.\n</system-reminder></s><assistant>")


def test_system_turns_before_all_others_are_instructions() -> None:
    said = chat([{"role": "system", "content": "B"}, ASKED], "A")
    assert said == [{"role": "system", "content": "A\n\nB"}, {"role": "user", "content": "Weather?"}]
    assert chat([{"role": "system", "content": ""}, ASKED]) == [{"role": "user", "content": "Weather?"}]


async def test_the_beginning_of_an_answer_is_continued(api: Messages) -> None:
    turns = [ASKED, {"role": "assistant", "content": "It is ("}]
    assert await api.prompted(turns) == "<user>Weather?</s><assistant>It is ("
    thinking = [ASKED, {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm", "signature": "s"}]}]
    assert await api.prompted(thinking) == "<user>Weather?</s><assistant><think>Hm"
    status, _, told = await api.error([ASKED, CALLED], tools=TOOLS)
    assert (status, "results have to follow" in told) == (400, True)
    loses = Messages(hermes("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"))
    assert (await loses.error(turns))[0] == 400


def test_documents_and_search_results_are_text() -> None:
    """llama-server drops them, vLLM refuses them."""
    document = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Body."}}
    inner = {"type": "document", "title": "T", "source": {"type": "content", "content": text("One.", "Two.")}}
    found = {"type": "search_result", "title": "T", "source": "http://x", "content": text("Found.")}
    (said,) = chat([{"role": "user", "content": [{**document, "context": "C"}, inner, found, *text("So?")]}])
    assert said["content"].split("\n\n<") == [
        "<document>\nContext: C\n\nBody.\n</document>",
        "document>\nTitle: T\n\nOne.\n\nTwo.\n</document>",
        "search_result>\nTitle: T\nSource: http://x\n\nFound.\n</search_result>\n\nSo?",
    ]


def test_results_are_in_the_order_of_their_calls() -> None:
    calls = {"role": "assistant", "content": [called("now", {}, id) for id in "ab"]}
    seen = {id: [*text(id), {**IMAGE, "source": {**IMAGE["source"], "data": f"iVBORw0KGg{id}="}}] for id in "ab"}
    media = MediaParts(("image",), lambda i: f"#{i}#")
    turns = [ASKED, calls, {"role": "user", "content": [answered(seen["b"], "b"), answered(seen["a"], "a")]}]
    said = messages_of(turns, None, ToolTable(TOOLS), media, sees=True, turns_after_results=True)
    assert [message["content"] for message in said[2:]] == ["a#0#", "b#1#"]
    assert [source.path for source in media.sources] == [
        "messages[2].content[1].content[1].source.data",
        "messages[2].content[0].content[1].source.data",
    ]  # fmt: skip


async def test_what_is_nested_too_deeply_is_refused(api: Messages) -> None:
    document, found, deep = holding(), {"type": "search_result", "title": "", "source": "", "content": []}, {}
    for _ in range(200):
        document, found = holding(document), {**found, "content": [found]}
    for block in (document, found):
        status, _, told = await api.error([{"role": "user", "content": [block]}])
        assert (status, "only text and images" in told) == (400, True)
    statuses = set()
    for i in range(950):
        deep = {"a": deep}
        if i % 50 == 0:
            calls = {"role": "assistant", "content": [called("now", deep)]}
            turns = [ASKED, calls, {"role": "user", "content": [answered("")]}]
            with suppress(RecursionError):  # the client's
                statuses.add((await api.post(turns, tools=TOOLS)).status)
    assert statuses == {200, 400}


def test_images_stand_where_they_are() -> None:
    said = chat([{"role": "user", "content": [*text("A"), IMAGE, *text("B")]}], sees=True)
    assert said == [{"role": "user", "content": "A#0#B"}]
    turns = [ASKED, CALLED, {"role": "user", "content": [answered([*text("Seen:"), IMAGE])]}]
    assert chat(turns, sees=True)[-1]["content"] == "Seen:#0#"


async def test_images_that_nobody_sees(api: Messages) -> None:
    status, kind, told = await api.error([{"role": "user", "content": [IMAGE]}])
    assert (status, kind, "messages[0].content[0]" in told) == (400, "invalid_request_error", True)
    # which a result would bring into every later request
    turns = [ASKED, CALLED, {"role": "user", "content": [answered([IMAGE, PDF, *text("ok")])]}]
    prompt = await api.prompted(turns, tools=TOOLS)
    assert "[image: this model takes no images]\n\n[document: only text is read here]\n\nok</s>" in prompt


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ([{"type": "hologram"}], "messages[0].content[0].type"),
        ([{"type": "text"}], "messages[0].content[0].text"),
        ([{"text": "x"}], "messages[0].content[0]"),
        ([7], "messages[0].content[0]"),
        (7, "messages[0].content"),
        ([answered("x", "unknown")], "messages[0].content[0].tool_use_id"),
        ([{"type": "tool_result", "content": "x"}], "messages[0].content[0].tool_use_id"),
        ([PDF], "messages[0].content[0].source.type"),
        ([{"type": "document"}], "messages[0].content[0].source.type"),
        ([{"type": "search_result", "title": "t"}], "messages[0].content[0].source"),
        ([holding({"type": "document"})], "messages[0].content[0].source.content[0].type"),
        ([holding(holding(*text("x")))], "messages[0].content[0].source.content[0].type"),
        (
            [{"type": "search_result", "title": "t", "source": "s", "content": [*text("x"), PDF]}],
            "messages[0].content[0].content[1].type",
        ),
        ([{"type": "thinking", "thinking": "x", "signature": ""}], "messages[0].content[0].type"),
        ([{"type": "tool_reference", "tool_name": "x"}], "messages[0].content[0].type"),
        ([{"type": "tool_addition", "tool": {"type": "tool_definition"}}], "messages[0].content[0].tool.type"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(content: Any, path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat([{"role": "user", "content": content}])
    assert caught.value.param == path
    assert path in caught.value.message


@pytest.mark.parametrize("role", ["tool", "developer", None, 7])
def test_other_roles_are_refused(role: Any) -> None:
    with pytest.raises(InvalidRequest, match="role"):
        chat([{"role": role, "content": "x"}])


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_a_turn_says_something(role: str) -> None:
    for turn in ({"role": role}, {"role": role, "content": None}):
        with pytest.raises(InvalidRequest) as caught:
            chat([ASKED, turn])
        assert caught.value.param == "messages[1].content"


def test_a_file_that_is_kept_elsewhere_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="files are not kept"):
        chat([{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}], sees=True)


def test_what_other_servers_tools_left_behind_is_passed_over() -> None:
    content = [
        *text("Looking."),
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "mcp_tool_use", "id": "m", "name": "x", "input": {}},
        {"type": "mcp_tool_result", "tool_use_id": "m", "content": []},
        {"type": "container_upload", "file_id": "f"},
        *text(" Done."),
    ]
    assert chat([ASKED, {"role": "assistant", "content": content}])[-1]["content"] == "Looking. Done."


def call_and_result(id: str) -> list[Any]:
    return [
        {"role": "assistant", "content": [called("now", {}, id)]},
        {"role": "user", "content": [answered("r", id), *text("so")]},
    ]


BLOCKS = st.sampled_from([*text("a", "", BILLING), {"type": "redacted_thinking", "data": ""}])
TURNS = st.lists(
    st.one_of(
        st.lists(BLOCKS, max_size=2).map(lambda content: [{"role": "user", "content": content}]),
        st.sampled_from(["n", "", text("m")]).map(lambda content: [{"role": "system", "content": content}]),
        st.sampled_from("xyz").map(call_and_result),
        st.just([{"role": "assistant", "content": "b"}]),
    ),
    max_size=6,
)


@given(TURNS, TURNS, st.booleans())
def test_what_was_said_before_an_answer_stays_as_it_was(before: list[Any], after: list[Any], apart: bool) -> None:
    """So a later prompt extends an earlier one."""
    flat, more = [turn for turns in before for turn in turns], [turn for turns in after for turn in turns]
    answer = {"role": "assistant", "content": "answer"}
    said = chat(flat, "S", apart=apart)
    later = chat([*flat, answer, *more], "S", apart=apart)
    n_stays = len(said) - (said[-1]["role"] == "assistant")
    assert later[:n_stays] == said[:n_stays]


@pytest.mark.parametrize(
    "turns",
    [
        lambda texts: [{"role": "user", "content": each} for each in texts],
        lambda texts: [{"role": "system", "content": each} for each in texts],
        lambda texts: [ASKED, *({"role": "system", "content": each} for each in texts)],
        lambda texts: [ASKED, {"role": "assistant", "content": text(*texts)}],
        lambda texts: [ASKED, *({"role": "assistant", "content": each} for each in texts)],
        lambda texts: [
            ASKED,
            *({"role": "assistant", "content": [{"type": "thinking", "thinking": each}]} for each in texts),
        ],
    ],
)
def test_a_turn_of_many_blocks_costs_what_they_are(turns: Callable[[list[str]], list[Any]]) -> None:
    """Text is not copied once for each piece that comes to it: gigabytes, with the GIL held."""
    given = turns(["x" * 6000] * 4000)
    began = time.thread_time()
    said = chat(given)
    assert time.thread_time() - began < 1
    assert sum(len(message.get("reasoning_content") or message["content"]) for message in said) >= 24_000_000
