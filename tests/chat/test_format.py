"""Which parser reads the replies of a model, and what it needs from the engine."""

from __future__ import annotations

from array import array

import pytest
from msgspec.structs import replace
from support.fake_engine import INFO, ByteTokenizer
from support.templates import SPARSE_TEMPLATES, TEMPLATES

from llamafast.api.chat.schema import ChatRequest
from llamafast.chat.format import ChatFormat
from llamafast.chat.plan import ChatPlan, plan_chat
from llamafast.chat.reply.deltas import AssistantMessage, PlainReply, assemble
from llamafast.chat.tools import read_tools
from llamafast.config import ModelConfig
from llamafast.errors import ConfigError, Untokenizable

TOOLS = [{"type": "function", "function": {"name": "now"}}]
CALL = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
TAIL = "{{ messages[-1].content }}{% if add_generation_prompt %}<think>\n{% endif %}{# </think> #}"


class MarkTokenizer(ByteTokenizer):
    """The mark of a tool call is a control token."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> array[int]:
        if text == "<tool_call>" and parse_special:
            return array("i", [300])
        return super().tokenize(text, add_special=add_special, parse_special=parse_special)


def planned(template: str, dialect: str | None = None, **fields: object) -> ChatPlan:
    info = replace(INFO, chat_template="{{ messages | tojson }}" + template, max_seq_len=2048)
    config, tokenizer = ModelConfig(dialect=dialect), MarkTokenizer()
    request = ChatRequest(messages=[{"role": "user", "content": "hi"}], **fields).task()  # type: ignore[arg-type]
    return plan_chat(request, ChatFormat(config, info, tokenizer), tokenizer, info)


def reads(plan: ChatPlan, text: str) -> AssistantMessage:
    parser = plan.new_parser()
    return assemble(parser.feed(text) + parser.finish())


def test_a_chat_that_cannot_reason_or_call_is_not_parsed() -> None:
    plan = planned("<tool_call>")
    assert plan.new_parser is PlainReply
    assert plan.plan.preserved_tokens == ()


def test_marks_that_are_control_tokens_leave_text_where_a_parser_reads_them() -> None:
    plan = planned("<tool_call>", tools=TOOLS)
    assert plan.plan.preserved_tokens == (300,)
    assert [call.name for call in reads(plan, CALL).tool_calls] == ["now"]


def test_marks_that_a_vocabulary_cannot_spell_are_text() -> None:
    class Poor(MarkTokenizer):
        def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> array[int]:
            if text == "</tool_call>":
                raise Untokenizable("the text has a character that this model's vocabulary cannot spell")
            return super().tokenize(text, add_special=add_special, parse_special=parse_special)

    chat = ChatFormat(ModelConfig(), replace(INFO, chat_template="<tool_call>"), Poor())
    assert chat.preserved_tokens == (300,)


def test_tools_of_no_use() -> None:
    assert planned("<tool_call>", tools=TOOLS, tool_choice="none").new_parser is PlainReply
    assert planned("<tool_call>", tools=[]).new_parser is PlainReply


def test_reasoning_that_the_prompt_has_opened() -> None:
    assert reads(planned(TAIL), "Hm.\n</think>\n\nYes.") == ("Yes.", "Hm.", [])
    plan = planned(TAIL, add_generation_prompt=False)
    assert reads(plan, "Hm.") == ("Hm.", "", [])
    plan = planned(TAIL, reasoning_format="none")
    assert reads(plan, "Hm.\n</think>\n\nYes.") == ("Hm.\n</think>\n\nYes.", "", [])


def test_harmony_begins_within_the_header_that_the_prompt_has_begun() -> None:
    plan = planned("<|start|>user<|message|>hi<|end|><|start|>assistant{# <|channel|> #}")
    assert reads(plan, "<|channel|>final<|message|>Yes.") == ("Yes.", "", [])
    plan = planned("<|start|>assistant<|channel|>analysis<|message|>I", dialect="harmony")
    assert reads(plan, " see.") == ("", " see.", [])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (TEMPLATES["chatml"], "template from GGUF; tool calls: hermes, printed by the template; reasoning: <think>"),
        (
            SPARSE_TEMPLATES["roles only"],
            "template from GGUF; tool calls: generic, told in words as the template prints none; reasoning: none",
        ),
        (
            TEMPLATES["channels"],
            "template from GGUF; tool calls: harmony, told in words as the template prints none; reasoning: channels",
        ),
        (None, "no template"),
    ],
)
def test_what_was_recognised_is_told(template: str | None, said: str) -> None:
    chat = ChatFormat(ModelConfig(), replace(INFO, chat_template=template), ByteTokenizer())
    assert chat.summary().startswith(said)


def test_the_configs_template_stands_for_both_of_the_ggufs() -> None:
    info = replace(INFO, chat_template=TEMPLATES["chatml"], tool_use_template="tools")
    chat = ChatFormat(ModelConfig(chat_template=("a", "b")), info, ByteTokenizer())
    assert [chat.template(tools).source for tools in ((), read_tools(TOOLS))] == ["ab", "ab"]
    assert chat.dialect.name == "generic"


def test_the_config_may_name_the_dialect() -> None:
    assert reads(planned("plain", dialect="qwen-xml"), "<think>Hm.</think>Yes.") == ("Yes.", "Hm.", [])
    with pytest.raises(ConfigError, match=r"model\.dialect"):
        planned("plain", dialect="klingon")


def test_a_base_model_takes_chatml_by_its_name() -> None:
    info = replace(INFO, chat_template=None)
    request = ChatRequest(
        messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
    ).task()
    written = ChatFormat(ModelConfig(chat_template="chatml"), info, ByteTokenizer())
    assert written.summary().startswith("template from model.chat_template; tool calls: generic, told in words")
    plan = plan_chat(request, written, ByteTokenizer(), info)
    assert bytes(list(plan.plan.prompts[0])).decode() == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("chat_template", ["a\n{% foo %}", ("a\n", "{% foo %}")])
def test_a_template_of_the_config_that_does_not_compile_is_named_by_its_key(chat_template: str | tuple[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ChatFormat(ModelConfig(chat_template=chat_template), INFO, ByteTokenizer())
    named = "model.chat_template: does not compile in line 2"
    assert str(caught.value).startswith(f"{named}: Encountered unknown tag 'foo'")


@pytest.mark.parametrize(
    ("field", "key"),
    [("chat_template", "tokenizer.chat_template"), ("tool_use_template", "tokenizer.chat_template.tool_use")],
)
def test_a_template_of_the_gguf_that_does_not_compile_is_named_by_its_key_there(field: str, key: str) -> None:
    info = replace(INFO, **{field: "{% foo %}"})
    with pytest.raises(ConfigError) as caught:
        ChatFormat(ModelConfig(), info, ByteTokenizer())
    named = f"the GGUF's {key} (model.chat_template takes its place)"
    assert str(caught.value).startswith(f"{named}: does not compile in line 1: Encountered unknown tag 'foo'")
    assert ChatFormat(ModelConfig(chat_template="a"), info, ByteTokenizer()).has_template
