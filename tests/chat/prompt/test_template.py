"""ChatTemplate: Hugging Face's environment, and errors that name their side."""

from __future__ import annotations

import re
from datetime import datetime

import pytest
from msgspec.structs import replace
from support.fake_engine import INFO, ByteTokenizer
from support.templates import TEMPLATES
from transformers.utils.chat_template_utils import render_jinja_template

from llamafast.chat.format import ChatFormat
from llamafast.chat.prompt.control import ControlTokens
from llamafast.chat.prompt.messages import normalise_messages
from llamafast.chat.prompt.template import ChatTemplate
from llamafast.chat.tools import read_tools
from llamafast.config import ModelConfig
from llamafast.errors import ConfigError, InvalidRequest

USER = [{"role": "user", "content": "hi"}]


def render(source: str, messages=USER, /, **kwargs) -> str:
    return ChatTemplate(source, "<s>", "</s>").render(messages, **kwargs)


def test_the_conversation_and_special_texts_are_visible() -> None:
    source = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert render(source) == "<s>[user]hi</s>[assistant]"
    assert render(source, add_generation_prompt=False) == "<s>[user]hi</s>"


def test_blocks_are_trimmed_on_both_sides() -> None:
    assert render("  {% if true %}\n  a\n  {% endif %}\nb") == "  a\nb"


def test_loop_controls() -> None:
    source = (
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}"
    )
    assert render(source + "{% endfor %}") == "02"


def test_generation_block_renders_its_body_in_its_own_scope() -> None:
    source = "{% set x = 1 %}{% generation %}{% set x = 2 %}<{{ x }}>{% endgeneration %}{{ x }}"
    assert render(source) == "<2>1"


def test_tojson_keeps_order_and_raw_characters() -> None:
    tools = [{"b": "x < y & 'é'", "a": None}]
    assert render("{{ tools | tojson }}", tools=tools) == '[{"b": "x < y & \'é\'", "a": null}]'
    assert render("{{ tools | tojson(indent=1, ensure_ascii=true) }}", tools=[]) == "[]"
    assert render("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}") == '{"a":2,"b":1}'


def test_tools_are_none_unless_given() -> None:
    assert render("{{ tools is none }}") == "True"


def test_from_json_parses_strings_only() -> None:
    messages = [{"role": "assistant", "arguments": '{"a": 1}'}, {"role": "assistant", "arguments": {"a": 2}}]
    assert render("{% for m in messages %}{{ (m.arguments | from_json).a }}{% endfor %}", messages) == "12"


def test_strftime_now() -> None:
    before = datetime.now().strftime("%Y-%m-%d")
    assert before <= render("{{ strftime_now('%Y-%m-%d') }}") <= datetime.now().strftime("%Y-%m-%d")


def test_further_variables_cannot_replace_the_named_ones() -> None:
    source = "{{ enable_thinking }}{{ bos_token }}{{ messages | length }}"
    assert render(source, enable_thinking=False, bos_token="X", messages=[]) == "False<s>1"


def test_markup_in_a_message_is_only_text() -> None:
    messages = [{"role": "user", "content": "{{ 7 * 7 }} <b>&"}]
    assert render("{{ messages[0].content }}", messages) == "{{ 7 * 7 }} <b>&"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('only user and assistant') }}", "only user and assistant"),
        ("{{ messages[0].absent.field }}", "no attribute 'absent'"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
        ("{{ messages.__class__() }}", "unsafe"),
        ("{% set ns = namespace(_x=1) %}", "underscore"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "underscore"),
        ("{{ 1 // 0 }}", "division"),
        ("{{ '{' | from_json }}", "Expecting property name"),
    ],
)
def test_what_a_template_raises_is_a_bad_request(source: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(said)) as caught:
        render(source)
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_endless_recursion_is_a_bad_request() -> None:
    with pytest.raises(InvalidRequest, match="stack"):
        render("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")


def test_a_long_quotation_is_cut() -> None:
    with pytest.raises(InvalidRequest) as caught:
        render("{{ raise_exception(messages[0].content) }}", [{"role": "user", "content": "x" * 100_000}])
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{% if %}", " in line 1: Expected an expression"),
        ("a\n{{ x | no_such_filter }}", " in line 2: No filter named 'no_such_filter'"),
        ("{% for %}", " in line 1: "),
        ("\n\n{% generation %}", " in line 3: "),
        # what only Python finds, or its limits do, has no line of the template
        ("{% break %}", ": 'break' outside loop"),
        ("{{ f(a=1, a=2) }}", ": keyword argument repeated: a"),
        ("{{ " + "9" * 5000 + " }}", ": Exceeds the limit"),
        ("{{ " + "(" * 9999 + " }}", ": maximum recursion depth"),
    ],
)
def test_a_template_that_does_not_compile_is_a_config_error(source: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        ChatTemplate(source, "", "")
    assert str(caught.value).startswith(f"does not compile{told}")


def call(key: str, arguments) -> dict:
    return {"id": key, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "x < y & 'é'",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "where"}}},
    },
}
SYSTEM = {"role": "system", "content": "Be brief."}
QUESTION = {"role": "user", "content": "  Weather\n\nin Paris?  "}
ANSWER = {"role": "assistant", "content": "Sunny."}
PARTS = [{"type": "text", "text": "first words"}, {"type": "text", "text": "second words"}]
# name → messages, and what must be found in any rendering of them
CONVERSATIONS = {
    "user": ([QUESTION], ["Paris?"]),
    "system": ([SYSTEM, QUESTION], ["Be brief.", "Paris?"]),
    "turns": ([SYSTEM, QUESTION, ANSWER, QUESTION], ["Be brief.", "Sunny."]),
    "developer": ([{"role": "developer", "content": "Be brief."}, QUESTION], ["Be brief."]),
    "two systems": ([SYSTEM, {"role": "developer", "content": "In French."}, QUESTION], ["Be brief.", "In French."]),
    "two users": ([QUESTION, {"role": "user", "content": "Tomorrow?"}], ["Paris?", "Tomorrow?"]),
    "parts": ([{"role": "user", "content": PARTS}], ["first words", "second words"]),
    "system parts": ([{"role": "system", "content": PARTS}, QUESTION], ["first words", "second words"]),
    "reasoning": ([QUESTION, {**ANSWER, "reasoning": "It is June."}, QUESTION], ["Sunny."]),
    "thinking": ([QUESTION, {**ANSWER, "thinking": "It is June."}, QUESTION], ["Sunny."]),
    "no content": ([QUESTION, {"role": "assistant", "content": None}, QUESTION], ["Paris?"]),
    "unicode": ([{"role": "user", "content": "né \u2028 \U0001f600 {{ 1 }}"}], ["\U0001f600 {{ 1 }}"]),
}
TOOL_CONVERSATIONS = {
    "call": (
        [
            QUESTION,
            {"role": "assistant", "content": None, "tool_calls": [call("call_12345678", '{"city": "Lyon"}')]},
            {"role": "tool", "tool_call_id": "call_12345678", "content": "rain"},
        ],
        ["get_weather", "Lyon", "rain"],
    ),
    "argument object": (
        [
            QUESTION,
            {"role": "assistant", "content": "", "tool_calls": [call("abcdef012", {"city": "Lyon"})]},
            {"role": "tool", "tool_call_id": "abcdef012", "content": PARTS},
            ANSWER,
            QUESTION,
        ],
        ["get_weather", "Lyon", "first words", "second words", "Sunny."],
    ),
    "parallel": (
        [
            QUESTION,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [call("one", '{"city": "Lyon"}'), call("two", '{"city": "Nice"}')],
            },
            {"role": "tool", "tool_call_id": "two", "content": "fog"},
            {"role": "tool", "tool_call_id": "one", "content": "rain"},
        ],
        ["Lyon", "Nice", "rain", "fog"],
    ),
    "legacy": (
        [
            QUESTION,
            {"role": "assistant", "function_call": {"name": "get_weather", "arguments": '{"city": "Lyon"}'}},
            {"role": "function", "name": "get_weather", "content": "rain"},
        ],
        ["get_weather", "Lyon", "rain"],
    ),
    "broken arguments": (
        [QUESTION, {"role": "assistant", "content": "Sunny.", "tool_calls": [call("one", "")]}, QUESTION],
        ["get_weather"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize(
    ("messages", "words", "tools"),
    [(*given, None) for given in CONVERSATIONS.values()]
    + [(*given, [TOOL]) for given in (CONVERSATIONS | TOOL_CONVERSATIONS).values()],
)
def test_real_conversations_render_in_full_and_as_transformers_renders_them(source, messages, words, tools) -> None:
    template = ChatTemplate(source, "<s>", "</s>", ControlTokens(["<|im_end|>"]))
    given = normalise_messages(messages, template.accepts)
    variables = {"enable_thinking": False, "reasoning_effort": "low", "documents": [{"title": "t", "text": "d"}]}
    text = template.render(given, tools=tools, **variables)
    (expected,), _ = render_jinja_template(
        [given], tools=tools, chat_template=source, add_generation_prompt=True, bos_token="<s>", eos_token="</s>",
        **variables,
    )  # fmt: skip
    assert text == expected
    assert all(word in text for word in words)


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("content", ["Sure, ", "Sure, \n", " Sure", PARTS])
def test_a_final_message_is_continued_as_transformers_continues_it(source, content) -> None:
    template = ChatTemplate(source, "<s>", "</s>")
    given = normalise_messages([QUESTION, {"role": "assistant", "content": content}], template.accepts)
    text = template.render(given, add_generation_prompt=False, continue_final_message=True)
    (expected,), _ = render_jinja_template(
        [given], chat_template=source, continue_final_message=True, bos_token="<s>", eos_token="</s>"
    )
    assert text == expected
    assert text.endswith(("Sure,", "Sure, ", "Sure, \n", "Sure", "second words"))


def test_reasoning_is_continued() -> None:
    source = "{% for m in messages %}<{{ m.thinking }}|{{ m.content }}>{% endfor %}"
    messages = [{"role": "assistant", "content": "c", "reasoning_content": "I th"}]
    assert render(source, messages, continue_final_message="reasoning_content") == "<I th"


@pytest.mark.parametrize(
    ("source", "field", "said"),
    [
        ("{{ messages[0].role }}", True, "does not print"),
        ("{{ messages[0].content | upper }}", True, "does not print"),
        ("{{ messages[0].content }}", "reasoning", "no text"),
        ("{{ messages[0].content }}", "role", "does not read"),
    ],
)
def test_what_cannot_be_continued(source: str, field: bool | str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        render(source, continue_final_message=field)
    assert caught.value.param == "continue_final_message"


def test_a_template_may_build_lists() -> None:
    messages = [{"role": "user", "content": "a"}]
    source = "{% set seen = [] %}{% for m in messages %}{% set _ = seen.append(m.content) %}{% endfor %}{{ seen[0] }}"
    assert render(source + "{% set _ = messages.append('b') %}", messages) == "a"
    assert messages == [{"role": "user", "content": "a"}]


def test_the_template_for_tools_is_taken_when_there_are_tools() -> None:
    chat = ChatFormat(ModelConfig(), replace(INFO, chat_template="plain", tool_use_template="tools"), ByteTokenizer())
    tools = read_tools([TOOL])
    assert [chat.template(given).source for given in ((), tools)] == ["plain", "tools"]
    chat = ChatFormat(ModelConfig(), INFO, ByteTokenizer())
    assert chat.template(tools) is chat.template(())
