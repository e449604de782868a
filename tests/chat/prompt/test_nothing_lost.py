"""What a client sent is in the prompt, whatever its template knows; what cannot be is refused by name."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from functools import cache
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from chat.prompt.test_template import CONVERSATIONS, QUESTION, SYSTEM, TOOL, TOOL_CONVERSATIONS, call
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fake_engine import INFO, ByteTokenizer
from support.templates import SPARSE_TEMPLATES, TEMPLATES

from llamafast.api.chat.schema import ChatRequest
from llamafast.chat.format import ChatFormat
from llamafast.chat.grammar.constraints import Constraints
from llamafast.chat.plan import plan_chat
from llamafast.chat.prompt import printed
from llamafast.chat.prompt.control import MARKS, NO_CONTROL_TOKENS
from llamafast.chat.prompt.conversation import Conversation
from llamafast.chat.reply.deltas import assemble
from llamafast.chat.reply.dialects.tables import DIALECTS, GENERIC, HERMES
from llamafast.chat.request import ChatTask
from llamafast.chat.tools import read_tools
from llamafast.config import ModelConfig
from llamafast.errors import InvalidRequest

ALL = TEMPLATES | SPARSE_TEMPLATES
TOKENIZER = ByteTokenizer()
SHORT = "{% for m in messages %}{{ m.content[:20] }}{% endfor %}"


def user(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, **fields}


def answer(text: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def result(key: str, text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": key, "content": text}


CALL = answer(None, tool_calls=[call("call_12345678", '{"city": "Lyon"}')])
BESIDE = {**CALL, "content": "Let me look."}
RAIN = result("call_12345678", "rain")
TURNS = {
    "system later": ([QUESTION, answer("Sunny."), system("In French."), user("Now?")], "Sunny.|In French.|Now?"),
    "system last": ([SYSTEM, QUESTION, system("In French.")], "Be brief.|Paris?|In French."),
    "system behind an answer": ([SYSTEM, QUESTION, answer("Sunny."), system("Go on.")], "Be brief.|Sunny.|Go on."),
    "developer later": (
        [SYSTEM, QUESTION, answer("Sunny."), {"role": "developer", "content": "In French."}, user("Now?")],
        "Be brief.|Sunny.|In French.|Now?",
    ),
    "system alone": ([SYSTEM], "Be brief."),
    "assistant first": ([answer("Welcome."), QUESTION], "Welcome.|Paris?"),
    "system, assistant": ([SYSTEM, answer("Welcome."), QUESTION], "Be brief.|Welcome.|Paris?"),
    "two answers": ([QUESTION, answer("Sunny."), answer("Really."), user("Why?")], "Sunny.|Really.|Why?"),
    "a call without a result": ([QUESTION, CALL, user("Well?")], "Paris?|get_weather|Lyon|Well?"),
    "a result without a call": ([QUESTION, result("lost", "rain"), user("Well?")], "Paris?|rain|Well?"),
    "user behind a result": ([QUESTION, CALL, RAIN, user("Well?")], "Paris?|Lyon|rain|Well?"),
    "system behind a result": ([QUESTION, CALL, RAIN, system("In French.")], "Paris?|Lyon|rain|In French."),
    "system before a result": ([QUESTION, CALL, system("In French."), RAIN], "Paris?|Lyon|rain|In French."),
    "text beside a call": (
        [SYSTEM, QUESTION, BESIDE, RAIN, answer("Rain."), user("Well?")],
        "Be brief.|Paris?|Let me look.|Lyon|rain|Rain.|Well?",
    ),
    "calls only": ([CALL, RAIN], "get_weather|Lyon|rain"),
    "names": (
        [user("Hi.", name="Alice"), answer("Hi."), user("Hello.", name="Bob")],
        "Alice|Hi.|Bob|Hello.",
    ),
    "thoughts in an answer": ([QUESTION, answer("<think>June?</think>\n\nSunny."), user("Why?")], "Paris?|Sunny.|Why?"),
    "broken arguments": (
        [QUESTION, answer(None, tool_calls=[call("one", '{"city": "Ly')]), result("one", "no JSON")],
        "get_weather|Ly|no JSON",
    ),
}  # fmt: skip
CASES = {name: (messages, words.split("|")) for name, (messages, words) in TURNS.items()}
CASES |= CONVERSATIONS | TOOL_CONVERSATIONS


def chat_format(source: str, *, control_tokens: tuple[str, ...] = INFO.control_tokens, **config: Any) -> ChatFormat:
    info = msgspec.structs.replace(INFO, chat_template=source, max_seq_len=1 << 14, control_tokens=control_tokens)
    return ChatFormat(ModelConfig(**config), info, TOKENIZER)


plain_format = cache(chat_format)


def text_of(source: str, messages: list[dict[str, Any]], **fields: Any) -> str:
    chat = plain_format(source)
    return chat.control.unmark(Conversation(ChatRequest(messages=messages, **fields).task(), chat).text)


@pytest.mark.parametrize("source", ALL.values(), ids=ALL)
@pytest.mark.parametrize(("messages", "words"), CASES.values(), ids=CASES)
def test_every_word_is_in_the_prompt(source: str, messages: list[dict[str, Any]], words: list[str]) -> None:
    text = text_of(source, messages)
    assert [word for word in words if word not in text] == []
    text = text_of(source, messages, tools=[TOOL])
    assert [word for word in [*words, "get_weather", "city", "where"] if word not in text] == []


@pytest.mark.parametrize("source", ALL.values(), ids=ALL)
@pytest.mark.parametrize(
    "tool",
    [
        {"name": "now"},
        {"name": "now", "description": None, "parameters": None},
        {"name": "now", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}},
    ],
)
def test_tools_need_no_descriptions(source: str, tool: dict[str, Any]) -> None:
    text = text_of(source, [user("hi")], tools=[{"type": "function", "function": tool}])
    assert "now" in text
    assert "zone" in text or not tool.get("parameters")


@pytest.mark.parametrize("source", ALL.values(), ids=ALL)
def test_parts_of_parameters_are_told(source: str) -> None:
    inner = {"type": "object", "properties": {"street": {"type": "string", "enum": ["left", "right"]}}}
    outer = {"type": "object", "properties": {"place": {**inner, "description": "where"}}}
    text = text_of(source, [user("hi")], tools=[{"type": "function", "function": {"name": "go", "parameters": outer}}])
    assert all(word in text for word in ("go", "place", "where", "street", "left", "right"))


@pytest.mark.parametrize("source", ALL.values(), ids=ALL)
def test_documents_are_in_the_prompt(source: str) -> None:
    documents = [{"title": "A title", "text": "Its text", "page": 7}, {"text": "Another"}]
    text = text_of(source, [SYSTEM, user("hi")], documents=documents)
    assert all(word in text for word in ("A title", "Its text", "7", "Another", "Be brief.", "hi"))


def test_only_what_a_template_does_not_print_is_changed() -> None:
    """Forms that it prints are those that ``transformers`` would be given."""
    source = TEMPLATES["chatml"]
    assert "# Tools" not in text_of(source, [QUESTION, CALL, RAIN], tools=[TOOL])
    assert text_of(source, [user("a"), system("b"), user("c")]).count("<|im_start|>system") == 1
    assert text_of(SPARSE_TEMPLATES["documents"], [user("hi", name="Al")]) == "<user name=Al>hi"


def test_generic_tools_stand_behind_the_instructions() -> None:
    text = text_of(SPARSE_TEMPLATES["roles only"], [SYSTEM, QUESTION], tools=[TOOL])
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n")
    assert json.dumps(TOOL, ensure_ascii=False) in text
    assert HERMES.written([("function_name", {"parameter_name": "value"})]) in text
    assert (
        text_of(SPARSE_TEMPLATES["roles only"], [QUESTION], tools=[TOOL], tool_choice="none").count("get_weather") == 0
    )


def test_calls_and_results_of_the_history_are_in_the_same_form() -> None:
    text = text_of(SPARSE_TEMPLATES["strict turns"], [QUESTION, BESIDE, RAIN, user("Well?")])
    call_text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Lyon"}}\n</tool_call>'
    assert f"<start_of_turn>assistant\nLet me look.\n{call_text}<end_of_turn>\n" in text
    assert "<start_of_turn>user\n<tool_response>\nrain\n</tool_response>\n\nWell?<end_of_turn>\n" in text


def test_systems_stay_in_their_place() -> None:
    text = text_of(TEMPLATES["vision"], [SYSTEM, QUESTION, answer("Sunny."), system("In French."), user("Now?")])
    assert "<assistant>Sunny.</assistant>\n<user>In French.\n\nNow?</user>\n" in text
    assert "<user>a\n\nb</user>\n<assistant>c" in text_of(TEMPLATES["vision"], [user("a"), system("b"), answer("c")])


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_generic_call_is_forced_and_read(choice: Any) -> None:
    chat = chat_format(SPARSE_TEMPLATES["roles only"])
    request = ChatRequest(messages=[QUESTION], tools=[TOOL], tool_choice=choice).task()
    info = msgspec.structs.replace(INFO, max_seq_len=1 << 14)
    plan = plan_chat(request, chat, TOKENIZER, info)
    assert "get_weather" in TOKENIZER.detokenize(plan.plan.prompts[0])
    written = GENERIC.forms[0].written([("get_weather", {"city": "Nice"})])
    parser = plan.new_parser()
    (found,) = assemble(parser.feed(written) + parser.finish()).tool_calls
    assert (found.name, json.loads(found.arguments)) == ("get_weather", {"city": "Nice"})
    if choice != "auto":
        assert plan.ask is not None
        matcher = Constraints(TOKENIZER).patiently(plan.ask).matcher
        assert matcher.validate_tokens(list(written.encode())) == len(written.encode())


def test_calls_asked_for_in_words_are_read_whatever_the_config_declares() -> None:
    declared = {"start_anchor": "A", "fields": {"content": {}, "tool_calls": {"open": "<call>", "content": "json"}}}
    tools = read_tools([TOOL])
    written = GENERIC.forms[0].written([("get_weather", {"city": "Nice"})])
    for source, n_calls in ((SPARSE_TEMPLATES["roles only"], 1), (TEMPLATES["chatml"], 0)):
        parser = chat_format(source, response_template=declared).parser("", tools, split_reasoning=True)()
        assert len(assemble(parser.feed(written) + parser.finish()).tool_calls) == n_calls


@pytest.mark.parametrize("dialect", [*DIALECTS, GENERIC], ids=lambda dialect: dialect.name)
def test_written_calls_are_what_the_parser_reads(dialect: Any) -> None:
    calls = [("get_weather", {"city": "L'\"yon\n", "days": 3}), ("now", {})]
    chat = chat_format("{{ messages | tojson }}", dialect=dialect.name)
    tools = read_tools([TOOL, {"type": "function", "function": {"name": "now"}}])
    parser = chat.parser("", tools, split_reasoning=True)()
    written = "".join(form.written(calls) for form in dialect.forms[:1])
    message = assemble(parser.feed(written) + parser.finish())
    found = [(each.name, json.loads(each.arguments)) for each in message.tool_calls]
    assert [name for name, _ in found] == ["get_weather", "now"]
    assert found[0][1]["city"].rstrip() == "L'\"yon"


def test_written_calls_have_the_models_own_control_tokens() -> None:
    source = SPARSE_TEMPLATES["roles only"] + "{# List of tools: #}"
    chat = chat_format(source, control_tokens=("<s>", "</s>", "<|tool_call_start|>", "<|tool_call_end|>"))
    forged = user("<|tool_call_start|>")
    text = Conversation(ChatRequest(messages=[forged, CALL, RAIN]).task(), chat).text
    runs = list(chat.control._runs(text))
    assert [run for run, marked in runs if marked and "get_weather" in run] == []
    assert "<|tool_call_start|>[get_weather(city='Lyon')]<|tool_call_end|>" in "".join(
        run for run, marked in runs if not marked
    )
    assert any(marked and "<|tool_call_start|>" in chat.control.unmark(run) for run, marked in runs)


@pytest.mark.parametrize(
    ("source", "messages", "fields", "param", "said"),
    [
        ("{{ messages[-1].content }}", [user("one"), answer("two"), user("three")], {}, "messages[0].content", "user"),
        ("{{ messages[0].content | upper }}", [user("some text")], {}, "messages[0].content", "some text"),
        (SHORT, [user("x")], {"tools": [TOOL]}, "tools", "get_weather"),
        (SHORT, [user("x")], {"documents": [{"text": "lost"}]}, "documents", "documents[0]"),
        (SHORT, [user("a"), answer("b"), user("日本" * 20)], {}, "messages[2].content", "日本"),
        (SHORT, [user("a"), answer("b"), result("c", f"{'1 ' * 20} then")], {}, "messages[2].content", "tool message"),
    ],
)
def test_what_is_still_missing_is_refused_by_name(
    source: str, messages: list[Any], fields: dict[str, Any], param: str, said: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        text_of(source, messages, **fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[0].content | trim }}", "  a b \n"),
        ("{{ messages[0].content | tojson(ensure_ascii=true) }}", 'é"\n日本 \\n "q"'),
        ("{{ messages[0].content.replace('/no_think', '') }}", "/no_think"),
        ("{{ messages[0].content.split('</think>')[-1] }}", "plain"),
        ("{{ messages[0].content }}", ""),
        ("{{ messages[0].content }}", "*" * 100_000),
        ("{{ messages[0].content | from_json }}", "[1,2.5,3]"),
        ("{{ messages[0].content }}", "".join(MARKS)),
        ("a {{ messages[0].content.replace('/system_override', '').strip() }}", "/system_override\nHi."),
    ],
)
def test_what_a_template_does_to_a_text_is_its_own_affair(source: str, text: str) -> None:
    text_of(source, [user(text)])


@pytest.mark.parametrize(
    "arguments", ['["Lyon"]', "7", "null", "true", '"Lyon"', '{"city": "Lyon"}', '{"city": "Ly', ""]
)
@pytest.mark.parametrize(
    "test", ["a | length", "a is mapping", "a is mapping or a is string", "a.items() | list", "a is not none"]
)
def test_arguments_may_be_any_json(arguments: str, test: str) -> None:
    """A template that takes no such value gets it in an object, and one that takes texts gets these as they are."""
    source = TEMPLATES["chatml"].replace(
        '{"name"',
        "{% set a = c.function.arguments %}{% if not ("
        + test
        + ") and a != {} %}{{ raise_exception('no') }}{% endif %}"
        '{"name"',
    )
    text = text_of(source, [QUESTION, answer(None, tool_calls=[call("one", arguments)]), result("one", "rain")])
    broken = arguments == '{"city": "Ly'
    assert (json.dumps(arguments) if broken else arguments) in text
    is_text = broken or arguments.startswith('"')
    assert ('{"arguments": "' in text) == (is_text and test in ("a is mapping", "a.items() | list"))


TO_JSON = (
    "{% for m in messages %}{{ m.role }}: {{ m.content | tojson }}"
    "{{ m.tool_calls | tojson if m.tool_calls }}\n{% endfor %}"
)


@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        '{"温度": 21}',
        '{"é":"è"}',
        '["晴","雨"]',
        "Привет\n",
        '"½"\n',
        '["\\"", 7]',
        "🌧\n",
        '{"\U00010400": "\U00010400"}',
    ],
)
def test_results_may_be_json_in_any_script(text: str, escaped: bool) -> None:
    source = TO_JSON.replace("tojson", "tojson(ensure_ascii=true)") if escaped else TO_JSON
    prompt = text_of(source, [QUESTION, CALL, result("call_12345678", text), user(f"É {text}")])
    assert json.dumps(text, ensure_ascii=escaped) in prompt


@pytest.mark.parametrize(
    ("role", "text"),
    [
        ("user", "1 " * 300 + "a1" * 100_000),
        ("user", " " * 100 + "/think " * 30_000),
        ("user", "1 " * 100_000),
        ("user", '"\\' * 100_000),
        ("assistant", "</think>" * 30_000),
        ("assistant", " " * 200_000),
    ],
)
def test_only_the_beginning_of_a_text_is_read(role: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a pattern reads a text, no other thread runs."""
    read: list[int] = []

    class Reading:
        def __init__(self, pattern: Any) -> None:
            self._pattern = pattern

        def findall(self, text: str) -> list[str]:
            read.append(len(text))
            return self._pattern.findall(text)

        def sub(self, change: str, text: str) -> str:
            read.append(len(text))
            return self._pattern.sub(change, text)

    patterns = [name for name, value in vars(printed).items() if isinstance(value, re.Pattern)]
    assert "_WORDS" in patterns
    for name in patterns:
        monkeypatch.setattr(printed, name, Reading(getattr(printed, name)))
    messages = [user("before"), {"role": role, "content": text}]
    for prompt in ("before\n" + "x" * 20_000 + json.dumps(text), "before"):
        with suppress(InvalidRequest):
            printed.check_printed(prompt, ChatTask(messages=messages), NO_CONTROL_TOKENS)
    assert max(read, default=0) <= 1 << 13


def test_a_thought_ends_where_its_last_end_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for piece in (3, 8, 1 << 20):
        monkeypatch.setattr(printed, "_PIECE", piece)
        for text in ("</think>", "a</think>b</think>answer", "answer", "", "</think></thin"):
            assert text[printed._answer_begins(text) :] == text.split("</think>")[-1]


def test_what_does_not_fit_is_refused_before_it_is_looked_for() -> None:
    lost = [user("x" * 100_000), user("lost")]
    source = "{{ messages[0].content[:50000] }}"
    with pytest.raises(InvalidRequest) as caught:
        plan_chat(ChatRequest(messages=lost).task(), chat_format(source), TOKENIZER, INFO)
    assert caught.value.code == "context_length_exceeded"


def test_texts_that_are_not_there_cost_a_bounded_reading() -> None:
    class Counted(str):
        read = 0

        def find(self, words: str, start: int, stop: int) -> int:
            found = super().find(words, start, stop)
            Counted.read += (stop if found < 0 else found) - start
            return found

    prompt = Counted("x" * (1 << 20))
    search = printed._Search(prompt)
    found = [search.finds_words_of(f"é {i} missing") for i in range(3000)]
    assert (found[0], found[-1]) == (False, True)
    assert Counted.read < 70 << 20


def test_looking_for_texts_takes_time_linear_in_them() -> None:
    """Those that are out of order cost a look at the whole prompt, so only so many are looked for."""
    texts = [f"{'a' * 40}{i}b" for i in range(2000)]
    backwards = "{% for m in messages | reverse %}{{ m.content }}\n{% endfor %}"
    assert text_of(backwards, [user(text) for text in texts]).count("b\n") == 2000


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["", "text", "user", "a b c", '{"a": 1}', "</think>"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "name"]), inner),
    max_leaves=3,
)


def mostly(valid: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 24).flatmap(lambda n: valid if n else VALUES)


PARTS = st.fixed_dictionaries({"type": st.just("text"), "text": mostly(st.just("part"))}) | st.fixed_dictionaries(
    {"type": st.just("refusal"), "refusal": mostly(st.just("no"))}, optional={"text": VALUES}
)
FUNCTIONS = st.fixed_dictionaries(
    {"name": mostly(st.sampled_from(["f", "get_weather"]))},
    optional={
        "arguments": mostly(st.sampled_from(["", "{}", '{"a": 1}', '{"a', "[1]", {"a": [None]}])),
        "input": VALUES,
    },
)
CALLS = st.fixed_dictionaries({"function": mostly(FUNCTIONS)}, optional={"id": mostly(st.sampled_from(["a", "b"]))}) | (
    st.fixed_dictionaries({"id": mostly(st.just("c")), "custom": FUNCTIONS}, optional={"function": VALUES})
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"])},
    optional={
        "content": mostly(st.sampled_from(["", " ", "said", "x" * 100, None]) | st.lists(PARTS, max_size=3)),
        "tool_calls": mostly(st.none() | st.lists(mostly(CALLS), max_size=2)),
        "function_call": mostly(st.none() | FUNCTIONS),
        "tool_call_id": mostly(st.sampled_from(["a", "b", None])),
        "name": mostly(st.sampled_from(["Al", "f", None])),
        "refusal": mostly(st.sampled_from(["no", None])),
        "reasoning_content": mostly(st.sampled_from(["thought", None])),
    },
)


@settings(max_examples=400)
@given(
    st.sampled_from(sorted(ALL)),
    st.lists(MESSAGES, min_size=1, max_size=5),
    st.sampled_from([None, [], [TOOL]]),
    st.none()
    | st.lists(st.dictionaries(st.sampled_from(["title", "text", "id"]), mostly(st.just("page"))), max_size=2),
    st.booleans(),
)
def test_any_conversation_is_rendered_or_refused(
    name: str, messages: list[Any], tools: Any, documents: Any, continued: bool
) -> None:
    with suppress(InvalidRequest):
        text = text_of(ALL[name], messages, tools=tools, documents=documents, continue_final_message=continued)
        assert all(
            str(message.get("content", "")).strip() in text
            for message in messages
            if message["role"] == "user" and isinstance(message.get("content"), str)
        )


def test_turns_alternate_where_they_have_to() -> None:
    for messages, _ in CASES.values():
        text = text_of(SPARSE_TEMPLATES["strict turns"], messages)
        roles = [turn.split("\n", 1)[0] for turn in text.split("<start_of_turn>")[1:]]
        assert all(first != second for first, second in pairwise(roles))


def test_values_nested_too_deeply_are_refused() -> None:
    deep: Any = {}
    for _ in range(10_000):
        deep = {"properties": {"a": deep}}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    for source in SPARSE_TEMPLATES.values():
        with pytest.raises(InvalidRequest, match="nested too deeply"):
            text_of(source, [user("hi")], tools=[tool])
