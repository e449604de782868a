"""ChatTemplate: Hugging Face's environment, and errors that name their side."""

from __future__ import annotations

import re
from datetime import datetime

import pytest

from llamafast.chat.template import ChatTemplate
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
        ("{{ messages.append(1) }}", "unsafe"),
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


@pytest.mark.parametrize("source", ["{% if %}", "{{ x | no_such_filter }}", "{% for %}", "{% generation %}"])
def test_a_template_that_does_not_compile_is_a_config_error(source: str) -> None:
    with pytest.raises(ConfigError, match="does not compile"):
        ChatTemplate(source, "", "")
