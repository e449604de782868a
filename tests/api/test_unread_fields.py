"""Fields that nothing here reads: another server's, mistyped ones, and new ones. Nothing vanishes with a 200."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from support.apps import make_app
from support.asgi_client import AsgiClient
from support.asgi_websocket import websocket
from support.fake_engine import INFO, FakeEngine

from llamafast.api import fields
from llamafast.api.adapters import LoadRequest
from llamafast.api.chat.schema import ChatRequest
from llamafast.api.fields import nearest, note, read_fields, shape_of
from llamafast.api.messages.schema import MessagesRequest
from llamafast.api.native.schema import CompletionBody, InfillBody
from llamafast.api.record import Identity, Record
from llamafast.api.responses.schema import ResponsesRequest
from llamafast.api.schema.completions import CompletionRequest
from llamafast.api.schema.embeddings import EmbeddingsRequest, RerankRequest, ScoreRequest
from llamafast.api.schema.foreign import CHANGING, SILENT, WHOSE
from llamafast.api.schema.tokens import DetokenizeRequest, TokenizeRequest
from llamafast.errors import UnknownParameter, UnsupportedParameter

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
USER = [{"role": "user", "content": "Hi"}]
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"messages": USER},
    TEXT: {"prompt": "a"},
    RESPONSES: {"input": "a"},
    "/v1/messages": {"messages": USER, "max_tokens": 9},
    "/v1/embeddings": {"input": "a"},
    "/completion": {"prompt": "a"},
    "/tokenize": {"content": "a"},
}
KINDS = [ChatRequest, CompletionRequest, ResponsesRequest, MessagesRequest, EmbeddingsRequest]
ASKED = [*KINDS, CompletionBody, InfillBody, RerankRequest, ScoreRequest, TokenizeRequest, DetokenizeRequest]


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "_warned", set())


def header(response: Any) -> list[str]:
    return [name for name in response.headers.get("x-llamafast-ignored", "").split(", ") if name]


@pytest.mark.parametrize(
    ("kind", "field", "meant"),
    [
        (ChatRequest, {"tools": [{"type": "function", "function": {"name": "a", "paramters": {}}}]}, "parameters"),
        (ChatRequest, {"functions": [{"name": "a", "descripton": "b"}]}, "description"),
        (
            ResponsesRequest,
            {"tools": [{"type": "web_search"}, {"type": "function", "name": "a", "stric": 1}]},
            "strict",
        ),
    ],
)
def test_a_mistyped_field_of_a_function(kind: Any, field: dict[str, Any], meant: str) -> None:
    with pytest.raises(UnknownParameter, match=rf"^`\w+\[[01]\](\.function)?\.\w+`: did you mean `{meant}`\?$"):
        read_fields(field, kind, Record("POST", Identity(b"x", b"")))
    silent = Record("POST", Identity(b"x", b""), "ignore")
    assert read_fields(field, kind, silent) == (field, {})


def test_of_functions_a_template_may_read_more() -> None:
    record = Record("POST", Identity(b"x", b""))
    more = {"name": "a", "returns": {"type": "object"}, "examples": []}
    tree = {"tools": [{"type": "function", "function": more}, {"type": "function", "function": None}, 5]}
    assert read_fields(tree, ChatRequest, record) == (tree, {})
    assert record.ignored == ()
    anthropic = {"messages": [], "max_tokens": 1, "tools": [{"name": "a", "descripton": "b"}]}
    assert read_fields(anthropic, MessagesRequest, record) == (anthropic, {})


# What a user tried of other servers' fields, and what has to become of it.
@pytest.mark.parametrize(
    ("path", "field", "meant"),
    [
        (CHAT, {"max_token": 5}, "`max_token`: did you mean `max_tokens`?"),
        (CHAT, {"temprature": 1}, "`temprature`: did you mean `temperature`?"),
        (CHAT, {"t_max_predict_ms": 50}, "send the request to /completion"),
        (CHAT, {"bad_words": ["x"]}, "`bad_words` is not supported yet"),
        (CHAT, {"allowed_token_ids": [1]}, "`allowed_token_ids` is not supported yet"),
        (CHAT, {"use_beam_search": True}, "`use_beam_search` is not supported yet"),
        (CHAT, {"logits_processors": ["x"]}, "`logits_processors` is not supported yet"),
        (CHAT, {"chat_template": "{{ x }}"}, "send `chat_template_kwargs`"),
        (CHAT, {"image_data": [{"data": "x"}]}, "send pictures and sound as parts of `messages`"),
        (CHAT, {"options": {"num_predict": 5}}, "send its fields beside `model`"),
        (CHAT, {"format": "xml"}, "send `response_format`"),
        (CHAT, {"system": "Be brief."}, "send a system message"),
        (CHAT, {"stream_options": {"include_usge": True}}, "did you mean `include_usage`?"),
        (RESPONSES, {"response_format": {"type": "json_object"}}, "send `text.format`"),
        (RESPONSES, {"max_tokens": 5}, "send `max_output_tokens`"),
        (RESPONSES, {"text": {"formt": {"type": "json_object"}}}, "`text.formt`: did you mean `format`?"),
        (RESPONSES, {"reasoning": {"efort": "low"}}, "`reasoning.efort`: did you mean `effort`?"),
        (TEXT, {"maxTokens": 5}, "`maxTokens`: did you mean `max_tokens`?"),
        (TEXT, {"lora_path": "x"}, "send the adapter's name as `model`, or `lora`"),
        ("/v1/embeddings", {"dimension": 5}, "`dimension`: did you mean `dimensions`?"),
        ("/tokenize", {"add_specials": True}, "`add_specials`: did you mean `add_special`?"),
        ("/completion", {"n_predct": 5}, "`n_predct`: did you mean `n_predict`?"),
    ],
)
async def test_what_would_change_the_answer_is_refused_by_name(
    client: AsgiClient, engine: FakeEngine, path: str, field: dict[str, Any], meant: str
) -> None:
    response = await client.post(path, GOOD[path] | field)
    assert (response.status, response.error["type"]) == (400, "invalid_request_error")
    assert meant in response.error["message"]
    assert response.error["param"].partition(".")[0] in field
    assert response.error["code"] == ("unknown_parameter" if "did you mean" in meant else "unsupported_parameter")
    assert not engine.generations


@pytest.mark.parametrize(
    ("path", "field", "found"),
    [
        (CHAT, {"n_predict": 2}, ("max_tokens", 2)),
        (CHAT, {"num_predict": 2}, ("max_tokens", 2)),
        (CHAT, {"max_new_tokens": 2}, ("max_tokens", 2)),
        (RESPONSES, {"max_new_tokens": 2}, ("max_tokens", 2)),
        (TEXT, {"num_predict": -1}, ("max_tokens", None)),
        (CHAT, {"stop_sequences": ["x"]}, ("stop", ("x",))),
        (TEXT, {"stop_sequence": ["x"]}, ("stop", ("x",))),
        ("/completion", {"min_new_tokens": 2}, ("min_tokens", 2)),
    ],
)
async def test_another_name_for_the_same_thing_is_taken(
    client: AsgiClient, engine: FakeEngine, path: str, field: dict[str, Any], found: tuple[str, Any]
) -> None:
    response = await client.post(path, GOOD[path] | field)
    assert response.status == 200, response.body
    assert header(response) == []
    assert getattr(engine.generations[-1].plan, found[0]) == found[1]


async def test_what_it_says_is_translated(client: AsgiClient, engine: FakeEngine) -> None:
    for field in ({"format": {"type": "object"}}, {"format": "json"}):
        assert (await client.post(CHAT, GOOD[CHAT] | field)).status == 200
        assert engine.generations[-1].plan.matcher is not None
    assert (await client.post(CHAT, GOOD[CHAT] | {"do_sample": False})).status == 200
    assert engine.generations[-1].plan.sampling.temperature == 0
    for field in ({"thinking": {"type": "disabled"}}, {"think": False}, {"think": "low"}, {"separate_reasoning": True}):
        assert (await client.post(CHAT, GOOD[CHAT] | field)).status == 200, field
    for field in ({"thinking": {"type": "off"}}, {"thinking": True}, {"think": 5}):
        assert (await client.post(CHAT, GOOD[CHAT] | field)).status == 400, field


async def test_an_error_says_the_name_that_the_client_has(client: AsgiClient) -> None:
    error = (await client.post(CHAT, GOOD[CHAT] | {"num_predict": "many"})).error
    assert (error["message"], error["param"]) == (
        "`num_predict`: expected `integer | null`, got `string`",
        "num_predict",
    )
    error = (await client.post(CHAT, GOOD[CHAT] | {"num_predict": 5, "max_tokens": 6})).error
    assert error["message"] == "`num_predict` says something else than `max_tokens`"
    error = (await client.post(CHAT, GOOD[CHAT] | {"num_predict": 5, "max_new_tokens": 6})).error
    assert error["message"] == "`max_new_tokens` says something else than `num_predict`"
    assert (await client.post(CHAT, GOOD[CHAT] | {"num_predict": 5, "max_tokens": 5})).status == 200


async def test_nothing_is_no_contradiction(client: AsgiClient, engine: FakeEngine) -> None:
    for field in ({"stop": ["a"], "stop_sequences": []}, {"stop": [], "stop_sequences": ["a"]}):
        response = await client.post(CHAT, GOOD[CHAT] | field)
        assert (response.status, header(response)) == (200, []), response.body
        assert engine.generations[-1].plan.stop == ("a",)
    for field in ({"enable_thinking": True, "think": False}, {"enable_thinking": False, "think": True}):
        assert (await client.post(CHAT, GOOD[CHAT] | field)).error["param"] == "think"


@pytest.mark.parametrize("path", GOOD.keys() - {"/v1/embeddings"})
async def test_the_rest_is_told_in_a_header_and_in_the_log(
    client: AsgiClient, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        response = await client.post(path, GOOD[path] | {"new_in_2031": {"a": [1]}, "keep_alive": "5m"})
        assert response.status == 200, response.body
        assert header(response) == ["new_in_2031", "keep_alive"]
    if path == CHAT:
        streamed = await client.post(path, GOOD[path] | {"new_in_2031": 1, "stream": True})
        assert header(streamed) == ["new_in_2031"]
    lines = [record.getMessage() for record in caplog.records if record.name == "llamafast.requests"]
    assert all(" ignored=new_in_2031,keep_alive" in line for line in lines[:2])
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert [text.split("`")[1] for text in warnings] == ["new_in_2031", "keep_alive"]
    assert "nothing here reads it (Ollama)" in warnings[1]


async def test_it_stands_beside_what_else_is_ignored(client: AsgiClient) -> None:
    body = GOOD[RESPONSES] | {"tools": [{"type": "web_search"}], "new_in_2031": 1}
    assert sorted(header(await client.post(RESPONSES, body))) == ["new_in_2031", "tools.web_search"]


async def test_odd_names_are_told_too(client: AsgiClient) -> None:
    odd = {"a b": 1, "x-y": 1, "é": 1, "a\r\nset-cookie: x": 1, "a,b": 1, "": 1, "x" * 65: 1}
    response = await client.post(CHAT, GOOD[CHAT] | odd)
    assert response.status == 200
    assert header(response) == ["a%20b", "x-y", "%C3%A9", "a%0D%0Aset-cookie%3A%20x", "a%2Cb", '""', "x" * 16]


async def test_a_header_has_few_names(client: AsgiClient, caplog: pytest.LogCaptureFixture) -> None:
    response = await client.post(CHAT, GOOD[CHAT] | {f"zz{n}zz": n for n in range(300)})
    assert response.status == 200
    assert header(response) == [f"zz{n}zz" for n in range(8)]
    assert len(fields._warned) == fields.MAX_WARNED
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == fields.MAX_WARNED


def test_of_very_many_names_few_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the event loop waits for it: a template reads none of as many as a body holds."""
    read = []

    class Sane:
        def fullmatch(self, name: str) -> bool:
            read.append(name)
            return True

    monkeypatch.setattr(fields, "_SANE", Sane())
    record = Record("POST", Identity(b"x", b""))
    names = [f"chat_template_kwargs.n{n}" for n in range(10_000)]
    note(names, record)
    assert read == names[: fields.MAX_READ]
    assert record.ignored == tuple(names[:8])


async def test_messages_pass_over_whatever_is_new(client: AsgiClient, engine: FakeEngine) -> None:
    unknown = {
        "max_token": 5,
        "num_predict": 4,
        "chat_template": "x",
        "thinking": {"type": "enabled", "budget_token": 1},
    }
    response = await client.post("/v1/messages", GOOD["/v1/messages"] | unknown)
    assert response.status == 200
    assert header(response) == ["max_token", "num_predict", "chat_template", "thinking.budget_token", "thinking"]
    assert engine.generations[-1].plan.max_tokens == 9


async def test_the_config_says_what_becomes_of_them(engine: FakeEngine) -> None:
    silent = AsgiClient(make_app(engine, unknown_fields="ignore"))
    response = await silent.post(CHAT, GOOD[CHAT] | {"max_token": 5, "new_in_2031": 1})
    assert (response.status, header(response)) == (200, [])
    # what would change the answer is refused all the same
    assert (await silent.post(CHAT, GOOD[CHAT] | {"chat_template": "x"})).status == 400
    strict = AsgiClient(make_app(engine, unknown_fields="refuse"))
    for field in ({"new_in_2031": 1}, {"keep_alive": "5m"}, {"stream_options": {"more": 1}}):
        error = (await strict.post(CHAT, GOOD[CHAT] | field)).error
        assert error["code"] == "unknown_parameter"
        assert error["message"].endswith("is no field of this endpoint")
    assert (await strict.post(CHAT, GOOD[CHAT] | {"num_predict": 5})).status == 200
    assert (await strict.post("/v1/messages", GOOD["/v1/messages"] | {"new_in_2031": 1})).status == 200


async def test_frames_of_a_socket_are_read_as_bodies_are(engine: FakeEngine, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llamafast.requests")
    async with websocket(make_app(engine)) as socket:
        socket.create(input="Hi", max_output_token=5)
        assert (await socket.event())["error"]["message"] == "`max_output_token`: did you mean `max_output_tokens`?"
        await socket.answer(input="Hi", new_in_2031=5, num_predict=2)
    assert engine.generations[-1].plan.max_tokens == 2
    assert "ignored=new_in_2031" in caplog.messages[-1]


def test_requests_of_administrators_too() -> None:
    record = Record("POST", Identity(b"x", b""))
    with pytest.raises(UnknownParameter, match="did you mean `load_inplace`"):
        read_fields({"lora_name": "x", "lora_path": "y", "load_in_place": True}, LoadRequest, record)
    assert read_fields({"lora_name": "x", "is_3d_lora_weight": True}, LoadRequest, record)[1] == {}
    assert record.ignored == ("is_3d_lora_weight",)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_tokes", "max_tokens"), ("max_tokesn", "max_tokens"), ("maxtokens", "max_tokens"), ("streem", "stream"),
        ("tempreature", "temperature"), ("seeds", "seed"), ("sed", None), ("k", None), ("nn", None), ("name", None),
        ("type", None),
        ("usr", None), ("users", "user"), ("stops", "stop"), ("loras", "lora"), ("temperatures", "temperature"),
        ("max_output_tokens_", None), ("x" * 300, None), ("tmperatur", "temperature"), ("temp_rature_x", None),
    ],
)  # fmt: skip
def test_what_was_meant(name: str, meant: str | None) -> None:
    assert nearest(name, shape_of(ChatRequest).names) == meant


@pytest.mark.parametrize("kind", ASKED)
def test_a_known_name_is_no_mistyped_one(kind: Any) -> None:
    """No client of another server, or of another endpoint, is told that it cannot spell."""
    names = shape_of(kind).names
    assert names == frozenset(kind.__struct_fields__)
    known = {*WHOSE, "speculation", "normalized", "top_h"}.union(*(shape_of(other).names for other in ASKED))
    for name in known - names - kind.foreign.keys():
        record = Record("POST", Identity(b"x", b""))
        try:
            read_fields({name: 1}, kind, record)
        except UnsupportedParameter:
            assert name in CHANGING


def test_the_table_is_one() -> None:
    silent = [name for names in SILENT.values() for name in names.split()]
    assert len(silent) == len(set(silent))
    assert not set(silent) & CHANGING.keys()
    served = {field for kind in KINDS for field in kind.__struct_fields__} | {"text_1", "text_2", "documents", "top_n"}
    for one in CHANGING.values():
        assert one.same or one.translated or one.instead
        assert set(one.same) <= served | {"return_documents"}


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "foreign-fields.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [foreign_row(name) for name in CHANGING]
    for who, names in SILENT.items():
        assert f"| {who} | {', '.join(f'`{name}`' for name in sorted(names.split()))} |" in page


def foreign_row(name: str) -> str:
    one = CHANGING[name]
    becomes = " or ".join(f"`{same}`" for same in one.same)
    becomes = (
        f"is {becomes}" if one.same else "is translated; what cannot be is refused" if one.translated else "is refused"
    )
    told = f": send {one.instead}" if one.instead else ""
    idle = ", ".join(f"`{json.dumps(value)}`" for value in one.idle)
    return f"| `{name}` | {one.who} | {becomes}{told} | {idle} |"


def test_many_unknown_fields_cost_little() -> None:
    """Also beside all those of other servers: each is looked at once."""
    many = {f"max_tokenz{n:05}": n for n in range(20_000)}
    others = dict.fromkeys(CHANGING.keys() - shape_of(ChatRequest).names)

    def seconds(tree: dict[str, Any]) -> float:
        record = Record("POST", Identity(b"x", b""))
        start = time.thread_time()
        assert read_fields(tree, ChatRequest, record)[1] == {}
        return time.thread_time() - start

    assert len(others) > 100
    plain = min(seconds(many) for _ in range(3))
    assert min(seconds(many | others) for _ in range(2)) < 4 * plain + 0.02


def test_no_name_is_remembered_that_is_long() -> None:
    """Of a megabyte each, a thousand would stay."""
    before = fields._nearest.cache_info().currsize
    for n in range(9):
        assert nearest("x" * 100_000 + str(n), shape_of(ChatRequest).names) is None
    assert fields._nearest.cache_info().currsize == before


async def test_what_the_template_does_not_read_is_told() -> None:
    """The fake's template reads none of these; the other one reads some."""
    plain = AsgiClient(make_app(FakeEngine()))
    thinks = (
        "{% if enable_thinking %}x{% endif %}{% set style = tone %}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    reads = AsgiClient(make_app(FakeEngine(info=replace(INFO, chat_template=thinks))))
    variables = {"tone": "kind", "enable_thinkng": True}
    for path, body, nothing, some in (
        (CHAT, {"reasoning_effort": "low"}, ["reasoning_effort"], []),
        (CHAT, {"enable_thinking": False, "verbosity": "low"}, ["enable_thinking", "verbosity"], ["verbosity"]),
        (CHAT, {"thinking_token_budget": 0}, [], []),
        (
            CHAT,
            {"chat_template_kwargs": variables},
            ["chat_template_kwargs.tone", "chat_template_kwargs.enable_thinkng"],
            ["chat_template_kwargs.enable_thinkng"],
        ),
        ("/apply-template", {"messages": USER, "reasoning_effort": "low"}, ["reasoning_effort"], []),
        (
            RESPONSES,
            {"reasoning": {"effort": "low"}, "text": {"verbosity": "low"}},
            ["reasoning.effort", "text.verbosity"],
            ["text.verbosity"],
        ),
        ("/v1/messages", {"output_config": {"effort": "low"}}, ["output_config.effort"], []),
        ("/v1/messages", {"thinking": {"type": "enabled"}}, ["thinking"], []),
        ("/v1/messages", {"thinking": {"type": "disabled", "new": 1}}, ["thinking.new", "thinking"], ["thinking.new"]),
    ):
        whole = GOOD.get(path, {}) | body
        assert [header(await client.post(path, whole)) for client in (plain, reads)] == [nothing, some], body
