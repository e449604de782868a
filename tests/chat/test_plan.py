"""Requests → Plans: sampling, limits, tokens, and what is refused."""

from __future__ import annotations

from array import array
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.fake_engine import BOS, EOS, INFO, N_VOCAB, ByteTokenizer

from llamafast.api.chat.schema import ChatRequest
from llamafast.api.schema.completions import CompletionRequest
from llamafast.chat.format import ChatFormat
from llamafast.chat.plan import MAX_TOTAL_CHOICES, echo_texts, plan_chat, plan_completion
from llamafast.chat.reply.deltas import assemble
from llamafast.config import ModelConfig
from llamafast.engine.types import Plan, SamplingParams
from llamafast.errors import ContextLengthExceeded, InvalidRequest

TOKENIZER = ByteTokenizer()
CHAT = ChatFormat(ModelConfig(), INFO, TOKENIZER)


def completion(prompt: Any = "a", **fields: Any) -> Plan:
    request = msgspec.convert({"prompt": prompt, **fields}, CompletionRequest).task()
    return plan_completion(request, TOKENIZER, INFO)[0]


def chat(**fields: Any) -> Plan:
    fields = {"messages": [{"role": "user", "content": "hi"}], **fields}
    return plan_chat(msgspec.convert(fields, ChatRequest).task(), CHAT, TOKENIZER, INFO).plan


def written(template: str | None) -> ChatFormat:
    return ChatFormat(ModelConfig(), msgspec.structs.replace(INFO, chat_template=template), TOKENIZER)


def prompts(plan: Plan) -> list[list[int]]:
    return [list(tokens) for tokens in plan.prompts]


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        completion(**fields)
    assert caught.value.status == 400
    return caught.value


def test_a_salt_goes_along() -> None:
    assert [plan(cache_salt="s").cache_salt for plan in (completion, chat)] == ["s", "s"]
    assert [plan(cache_salt=None).cache_salt for plan in (completion, chat)] == ["", ""]


def test_the_four_forms_of_a_prompt() -> None:
    assert prompts(completion("ab")) == [[BOS, 97, 98]]
    assert prompts(completion([97, 98])) == [[97, 98]]
    assert prompts(completion(["a", "b</s>"])) == [[BOS, 97], [BOS, 98, EOS]]
    assert prompts(completion([[1], [2, N_VOCAB - 1]])) == [[1], [2, N_VOCAB - 1]]


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        ([""], "prompt"),
        ([[]], "prompt"),
        (["a", ""], "prompt[1]"),
        ([[1], []], "prompt[1]"),
        (["a", 1], "prompt"),
        ([1, [1]], "prompt"),
        ([-1], "prompt"),
        ([N_VOCAB], "prompt"),
        ([2**31], "prompt"),
        ([-(2**70)], "prompt"),
        ([[1], [2**70]], "prompt[1]"),
    ],
)
def test_unusable_prompts(prompt: Any, param: str) -> None:
    assert refused(prompt=prompt).param == param


def test_a_prompt_may_fill_the_context_but_not_more() -> None:
    assert len(completion([1] * INFO.max_seq_len).prompts[0]) == INFO.max_seq_len
    for prompt, param in (([1] * (INFO.max_seq_len + 1), "prompt"), (["a", "b" * INFO.max_seq_len], "prompt[1]")):
        with pytest.raises(ContextLengthExceeded, match=r"is 512 tokens.* 513 tokens") as caught:
            completion(prompt)
        assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)


def test_prompts_times_n_is_bounded() -> None:
    assert completion([[1]] * (MAX_TOTAL_CHOICES // 128), n=128).n == 128
    assert refused(prompt=[[1]] * (MAX_TOTAL_CHOICES // 128 + 1), n=128).param == "n"
    assert refused(prompt=[[1]] * (MAX_TOTAL_CHOICES + 1)).param == "prompt"


def test_defaults_are_those_of_the_engine() -> None:
    plan = completion()
    assert plan.sampling == SamplingParams()
    assert (plan.n, plan.max_tokens, plan.stop) == (1, 16, ())
    assert (plan.skip_special_tokens, plan.ignore_eos) == (True, False)
    assert chat().max_tokens is None


def test_null_is_the_default_everywhere() -> None:
    fields = [name for name in CompletionRequest.__struct_fields__ if name not in ("prompt", "max_tokens")]
    assert completion(**dict.fromkeys(fields)) == completion()
    fields = [name for name in ChatRequest.__struct_fields__ if name != "messages"]
    assert chat(**dict.fromkeys(fields)) == chat()


def test_what_the_model_recommends_is_the_default() -> None:
    info = msgspec.structs.replace(INFO, sampling=SamplingParams(temperature=0.3, top_k=64))
    request = msgspec.convert({"prompt": "a", "top_k": 0}, CompletionRequest).task()
    sampling = plan_completion(request, TOKENIZER, info)[0].sampling
    assert (sampling.temperature, sampling.top_k) == (0.3, 0)


def test_rare_sampling_fields() -> None:
    values: dict[str, Any] = {
        "typical_p": 0.5, "top_n_sigma": 1.5, "xtc_probability": 0.25, "xtc_threshold": 0.25, "dynatemp_range": 0.5,
        "dynatemp_exponent": 2.0, "mirostat": 2, "mirostat_tau": 4.0, "mirostat_eta": 0.25, "dry_multiplier": 0.75,
        "dry_base": 2.0, "dry_allowed_length": 3, "dry_penalty_last_n": -1,
    }  # fmt: skip
    plan = completion(**values, repeat_last_n=100, dry_sequence_breakers=["x", "y", "x"], samplers="kmt")
    assert plan.sampling == SamplingParams(
        **values, penalty_last_n=100, dry_sequence_breakers=("x", "y"), samplers=("top_k", "min_p", "temperature")
    )
    assert completion(samplers=["temp", "typical_p"]).sampling.samplers == ("temperature", "typ_p")


def test_biases_of_llama_server() -> None:
    assert completion(logit_bias=[[5, 1.5], ["ab", -2], [7, False]]).sampling.logit_bias == (
        (5, 1.5), (97, -2.0), (98, -2.0), (7, -1e30),
    )  # fmt: skip
    assert completion(logit_bias={"5": False}).sampling.logit_bias == ((5, -1e30),)
    assert completion(logit_bias=[]).sampling.logit_bias == ()


def test_what_ends_a_choice() -> None:
    plan = completion(stop_token_ids=[5, 6, 5], min_tokens=3, include_stop_str_in_output=True)
    assert (plan.stop_token_ids, plan.min_tokens, plan.keep_stop) == ((5, 6), 3, True)


def test_sampling_fields() -> None:
    plan = completion(
        temperature=0,
        top_p=0,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-2,
        frequency_penalty=2,
        seed=-(2**63),
        logit_bias={"0": -100, "257": 100},
        ignore_eos=True,
        skip_special_tokens=False,
    )
    assert plan.sampling == SamplingParams(
        temperature=0.0,
        top_p=0.0,
        top_k=40,
        min_p=0.1,
        repetition_penalty=1.1,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        seed=-(2**63),
        logit_bias=((0, -100.0), (257, 100.0)),
    )
    assert (plan.ignore_eos, plan.skip_special_tokens) == (True, False)


def test_repeat_penalty_is_another_name() -> None:
    assert completion(repeat_penalty=1.3).sampling.repetition_penalty == 1.3
    assert completion(repeat_penalty=1.3, repetition_penalty=1.3).sampling.repetition_penalty == 1.3


@pytest.mark.parametrize(("top_k", "meant"), [(-1, 0), (0, 0), (5, 5), (10**18, N_VOCAB)])
def test_top_k(top_k: int, meant: int) -> None:
    assert completion(top_k=top_k).sampling.top_k == meant


@pytest.mark.parametrize("key", ["258", "-1", "", "a", "1.0", " 1", "+1", "٣", "9" * 5000])
def test_a_bias_on_no_token_is_refused(key: str) -> None:
    assert refused(logit_bias={key: 1}).param == "logit_bias"


def test_a_token_has_one_bias() -> None:
    assert completion(logit_bias={"1": 5, "01": 6}).sampling.logit_bias == ((1, 6.0),)


@pytest.mark.parametrize(("given", "meant"), [(1, 1), (10**30, INFO.max_seq_len), (None, None)])
def test_large_limits_are_clamped(given: int | None, meant: int | None) -> None:
    assert completion(max_tokens=given).max_tokens == meant
    assert chat(max_completion_tokens=given).max_tokens == meant


def test_no_output_is_the_prompt_only_and_less_is_any_number() -> None:
    assert completion(max_tokens=0).max_tokens == chat(n_predict=0).max_tokens == 0
    assert completion(max_tokens=-1).max_tokens is chat(max_tokens=-1).max_tokens is None
    assert completion(n_predict=7).max_tokens == chat(n_predict=7).max_tokens == 7


@pytest.mark.parametrize(("n", "kept"), [(None, "abcdef"), (2, "ef"), (99, "abcdef"), (-1, "abcdef")])
def test_a_prompt_may_be_truncated_in_front(n: int | None, kept: str) -> None:
    (tokens,) = completion(prompt=list(b"abcdef"), truncate_prompt_tokens=n).prompts
    assert bytes(list(tokens)).decode() == kept


def test_a_prompt_is_truncated_to_what_fits_with_its_output() -> None:
    prompt = [97] * (INFO.max_seq_len + 50)
    for max_tokens, n in (
        (None, INFO.max_seq_len - INFO.max_seq_len // 4),
        (0, INFO.max_seq_len),
        (12, INFO.max_seq_len - 12),
        (10**6, 1),
    ):
        (tokens,) = completion(prompt=prompt, truncate_prompt_tokens=-1, max_tokens=max_tokens).prompts
        assert len(tokens) == n
    assert refused(prompt=prompt).code == "context_length_exceeded"
    assert refused(prompt=[97], truncate_prompt_tokens=0).param == "prompt"
    (tokens,) = chat(truncate_prompt_tokens=3).prompts
    assert len(tokens) == 3


def test_of_a_text_that_is_truncated_only_the_end_is_read() -> None:
    text = "x" * (1 << 20) + "é" + "abc" * 3
    (tokens,) = completion(prompt=text, truncate_prompt_tokens=8).prompts
    assert bytes(tokens.tolist()) == b"bcabcabc"
    messages = [{"role": "user", "content": "x" * 100_000}]
    (tokens,) = chat(messages=messages, truncate_prompt_tokens=8).prompts
    assert len(tokens) == 8
    with pytest.raises(InvalidRequest, match="are tokenised"):
        chat(messages=[{"role": "user", "content": "x" * (1 << 20)}], truncate_prompt_tokens=8)


def test_an_echo_is_what_was_read() -> None:
    for prompt, n, text in (("hello", 2, "lo"), ("hello", 99, "hello"), ("hello", -1, "hello")):
        request = CompletionRequest(prompt=prompt, echo=True, truncate_prompt_tokens=n).task()
        plan, _ = plan_completion(request, TOKENIZER, INFO)
        assert echo_texts(request, plan, TOKENIZER) == [text]


def test_a_limit_has_two_names() -> None:
    assert chat(max_completion_tokens=3).max_tokens == 3
    assert chat(max_tokens=5).max_tokens == 5


def test_stop_strings() -> None:
    assert completion(stop="x").stop == ("x",)
    assert completion(stop=["x", "yy", "x"]).stop == ("x", "yy")
    assert completion(stop=[]).stop == ()
    assert completion(stop="é" * 512).stop == ("é" * 512,)
    for stop in ("", ["x", ""], "é" * 513, ["x" * 1025]):
        assert refused(stop=stop).param == "stop"


def test_a_stop_string_that_is_a_control_token_leaves_text() -> None:
    assert completion(stop=["</s>", "x"]).preserved_tokens == (EOS,)
    assert completion(stop=["</s>x", "<unknown>"]).preserved_tokens == ()
    assert chat(stop="<s>").preserved_tokens == (BOS,)


def test_echo_gives_the_prompts_back() -> None:
    for prompt, texts in (("hé</s>", ["hé</s>"]), ([[104, 105, EOS], [0xFF]], ["hi</s>", "\ufffd"])):
        request = CompletionRequest(prompt=prompt, echo=True).task()
        plan, _ = plan_completion(request, TOKENIZER, INFO)
        assert echo_texts(request, plan, TOKENIZER) == texts


def test_a_chat_is_rendered_and_gets_no_second_bos() -> None:
    (tokens,) = chat().prompts
    assert list(tokens).count(BOS) == 1
    assert TOKENIZER.detokenize(tokens) == "<s><user>hi</s><assistant>"
    (tokens,) = chat(add_generation_prompt=False).prompts
    assert TOKENIZER.detokenize(tokens) == "<s><user>hi</s>"


def test_template_variables() -> None:
    form = written("{{ reasoning_effort }}|{{ verbosity }}|{{ enable_thinking }}")
    request = ChatRequest(
        messages=[{"role": "user", "content": ""}], reasoning_effort="low", verbosity="high",
        chat_template_kwargs={"enable_thinking": False, "verbosity": "own"},
    ).task()  # fmt: skip
    (tokens,) = plan_chat(request, form, TOKENIZER, INFO).plan.prompts
    assert TOKENIZER.detokenize(tokens) == "low|own|False"


@pytest.mark.parametrize(
    ("fields", "thinking"),
    [
        ({}, ""),
        ({"reasoning_effort": "none"}, "False"),
        ({"reasoning_effort": "minimal"}, "False"),
        ({"reasoning_effort": "low"}, "True"),
        ({"reasoning_effort": "none", "enable_thinking": True}, "True"),
        ({"enable_thinking": False}, "False"),
        ({"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": True, "thinking": True}}, "True"),
    ],
)
def test_thinking_is_switched_under_both_names(fields: dict[str, Any], thinking: str) -> None:
    source = "{{ enable_thinking }}|{{ thinking }}|{{ documents[0].title }}{{ documents[0].text }}"
    request = ChatRequest(messages=[{"role": "user", "content": ""}], documents=[{"title": "t"}], **fields).task()
    chat_format = written(source)
    (tokens,) = plan_chat(request, chat_format, TOKENIZER, INFO).plan.prompts
    assert TOKENIZER.detokenize(tokens) == f"{thinking}|{thinking}|t"


def test_the_last_message_is_continued() -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure, "}]
    (tokens,) = chat(messages=messages, continue_final_message=True).prompts
    assert TOKENIZER.detokenize(tokens) == "<s><user>hi</s><assistant>Sure, "


@pytest.mark.parametrize(
    "name", ["messages", "tools", "add_generation_prompt", "continue_final_message", "bos_token", "eos_token"]
)
def test_template_kwargs_cannot_replace_the_conversation(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        chat(chat_template_kwargs={name: 1})
    assert caught.value.param == "chat_template_kwargs"


def test_template_kwargs_may_have_any_other_name() -> None:
    assert prompts(chat(chat_template_kwargs={"self": 1, "source": 2, "": 3})) == prompts(chat())


def test_a_chat_without_template_or_text_or_room() -> None:
    request = ChatRequest(messages=[{"role": "user", "content": "x" * 600}]).task()
    with pytest.raises(InvalidRequest, match="no chat template"):
        plan_chat(request, written(None), TOKENIZER, INFO)
    silent = ChatRequest(messages=[{"role": "user", "content": ""}]).task()
    with pytest.raises(InvalidRequest, match="no tokens") as caught:
        plan_chat(silent, written(""), TOKENIZER, INFO)
    assert caught.value.param == "messages"
    with pytest.raises(ContextLengthExceeded) as exceeded:
        plan_chat(request, CHAT, TOKENIZER, INFO)
    assert exceeded.value.param == "messages"
    assert exceeded.value.message.startswith(
        "This model's maximum context length is 512 tokens. However, your messages"
    )


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=8))
def test_any_prompt_is_planned_or_refused(prompt: Any) -> None:
    try:
        plan = completion(prompt)
    except (msgspec.ValidationError, InvalidRequest):
        return
    assert all(0 <= token < N_VOCAB for tokens in plan.prompts for token in tokens)
    assert all(plan.prompts)


def test_a_last_message_that_says_so_is_continued() -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "prefix": True}]
    assert chat(messages=said).prompts == chat(messages=said, continue_final_message=True).prompts
    assert chat(messages=said, continue_final_message=False).prompts != chat(messages=said).prompts
    said[-1]["prefix"] = False
    assert chat(messages=said).prompts == chat(messages=said, continue_final_message=False).prompts


def test_a_text_without_its_special_tokens() -> None:
    assert completion(prompt="ab", add_special_tokens=False).prompts == (array("i", [*b"ab"]),)
    assert completion(prompt="ab", add_special_tokens=True) == completion(prompt="ab")


def test_a_regex_has_two_names() -> None:
    for fields in ({"regex": "a+"}, {"guided_regex": "a+"}):
        assert CompletionRequest(prompt="a", **fields).task().constraints == {"guided_regex": "a+"}


@pytest.mark.parametrize("parsed", [True, False])
def test_calls_may_stay_as_the_model_wrote_them(parsed: bool) -> None:
    chat_format = ChatFormat(ModelConfig(dialect="hermes"), INFO, TOKENIZER)
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    request = ChatRequest(messages=[{"role": "user", "content": "a"}], tools=tools, parse_tool_calls=parsed)
    planned = plan_chat(request.task(), chat_format, TOKENIZER, INFO)
    parser = planned.new_parser()
    said = '<think>x</think>a<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    told = assemble([*parser.feed(said), *parser.finish()])
    assert told.reasoning == "x"
    assert [call.name for call in told.tool_calls] == (["f"] if parsed else [])
    assert told.content == (said.removeprefix("<think>x</think>") if not parsed else "a")
    assert (
        planned.plan.prompts
        == plan_chat(
            ChatRequest(messages=request.messages, tools=tools).task(), chat_format, TOKENIZER, INFO
        ).plan.prompts
    )
