"""POST /v1/messages: replies and streams, field by field."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.anthropic_api import MODEL, NOW, TOOLS, TURNS, WEATHER, Messages, events_of, hermes, hermes_app
from support.apps import make_app
from support.fake_engine import FakeEngine, play, say

from llamafast.engine.types import Event
from llamafast.errors import AnswerTimeout, EngineFailure, EngineUnavailable, LlamafastError, QueueFull, QueueTimeout

USAGE = {
    "input_tokens": 21,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 3,
    "output_tokens_details": {"thinking_tokens": 0},
    "service_tier": "standard",
}


@pytest.fixture
def api() -> Messages:
    return Messages()


async def test_a_message_field_by_field(api: Messages) -> None:
    message = await api.message()
    assert re.fullmatch(r"msg_[0-9a-f]{24}", message.pop("id"))
    prompt = len("<user>hi") + len("<assistant>") + 1
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [{"type": "text", "text": "Hello world"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
        "usage": {**USAGE, "input_tokens": prompt},
    }


async def test_a_stream_event_by_event(api: Messages) -> None:
    start, *middle, delta, stop = await api.events()
    message = start.pop("message")
    assert (message["content"], message["stop_reason"], message["usage"]["output_tokens"]) == ([], None, 1)
    assert start == {"type": "message_start"}
    assert middle == [
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " world"}},
        {"type": "content_block_stop", "index": 0},
    ]
    assert delta["delta"] == {
        "stop_reason": "end_turn", "stop_sequence": None, "stop_details": None, "container": None,
    }  # fmt: skip
    assert delta["usage"] == {**message["usage"], "output_tokens": 3}
    assert stop == {"type": "message_stop"}


async def test_blocks_in_the_order_written_one_open_at_a_time(api: Messages) -> None:
    texts = ("<think>I ", "look.</think>", "Let me ", "see.", *WEATHER.partition("Par"), NOW)
    api.engine.script = say(*texts)
    message = await api.message(tools=TOOLS)
    ids = [block.pop("id") for block in message["content"][2:]]
    assert all(re.fullmatch(r"toolu_[0-9a-f]{24}", id) for id in ids)
    assert len(set(ids)) == 2
    assert message["content"] == [
        {"type": "thinking", "thinking": "I look.", "signature": "llamafast"},
        {"type": "text", "text": "Let me see."},
        {"type": "tool_use", "name": "get_weather", "input": {"city": "Paris"}},
        {"type": "tool_use", "name": "now", "input": {}},
    ]
    assert message["stop_reason"] == "tool_use"
    assert message["usage"]["output_tokens_details"]["thinking_tokens"] == 2
    api.engine.script = say(*texts)
    events = await api.events(tools=TOOLS)
    open_blocks: list[int] = []
    starts: list[Any] = []
    for event in events:
        if event["type"] == "content_block_start":
            assert open_blocks == []
            open_blocks.append(event["index"])
            starts.append(event["content_block"])
        elif event["type"] == "content_block_stop":
            assert open_blocks == [event["index"]]
            open_blocks.clear()
        elif event["type"] == "content_block_delta":
            assert open_blocks == [event["index"]]
    assert [block["type"] for block in starts] == ["thinking", "text", "tool_use", "tool_use"]
    assert starts[0] == {"type": "thinking", "thinking": "", "signature": ""}
    assert [block["input"] for block in starts[2:]] == [{}, {}]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("thinking", "") for delta in deltas) == "I look."
    assert [delta["type"] for delta in deltas if delta["type"] == "signature_delta"] == ["signature_delta"]
    pieces = [d["partial_json"] for e, d in ((e, e.get("delta", {})) for e in events) if d.get("partial_json")]
    assert "".join(pieces) == '{"city": "Paris"}{}'


async def test_thoughts_may_be_omitted(api: Messages) -> None:
    api.engine.script = say("<think>secret</think>", "Hi")
    thinking = {"type": "adaptive", "display": "omitted"}
    message = await api.message(thinking=thinking)
    block = message["content"][0]
    assert (block["type"], block["thinking"]) == ("thinking", "")
    assert "secret" not in str([message, await api.events(thinking=thinking)])
    # but come back with the block, so that the next prompt has them
    prompt = await api.prompted([*TURNS, {"role": "assistant", "content": message["content"]}, *TURNS])
    assert "<think>secret</think>Hi" in prompt


async def test_a_stop_sequence_is_told_and_not_looked_for_in_thoughts_and_calls(api: Messages) -> None:
    api.engine.script = say("<think>END</think>", "An E", "ND. More", " and more")
    message = await api.message(stop_sequences=["END"])
    assert [block.get("text") for block in message["content"]] == [None, "An "]
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")
    assert message["usage"]["output_tokens"] == 3
    assert api.engine.generations[-1].cancelled
    assert api.engine.plan.stop == ()
    *_, delta, stop = await api.events(stop_sequences=["END"])
    assert (delta["delta"]["stop_reason"], delta["delta"]["stop_sequence"]) == ("stop_sequence", "END")
    assert stop == {"type": "message_stop"}
    api.engine.script = say('<tool_call>\n{"name": "get_weather", "arguments": {"city": "END"}}\n</tool_call>')
    message = await api.message(tools=TOOLS, stop_sequences=["END"])
    assert (message["content"][0]["input"], message["stop_reason"]) == ({"city": "END"}, "tool_use")


async def test_where_nothing_is_parsed_the_core_looks_for_stop_sequences() -> None:
    engine = FakeEngine(play([Event(0, "a", 1)], [Event(0, "", 1, "stop", matched_stop="END")]))
    message = await Messages(engine, make_app(engine)).message(stop_sequences=["END"])
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", "END")
    assert engine.plan.stop == ("END",)


@pytest.mark.parametrize(
    ("n_tokens", "max_tokens", "reason"),
    [(100, 100, "max_tokens"), (4096, 32000, "model_context_window_exceeded"), (50, 32000, "max_tokens")],
)
async def test_why_an_answer_is_short(api: Messages, n_tokens: int, max_tokens: int, reason: str) -> None:
    api.engine.script = play([Event(0, "a", n_tokens, "length")])
    message = await api.message(max_tokens=max_tokens)
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, None)


async def test_a_call_that_breaks_off(api: Messages) -> None:
    text = WEATHER[:50]
    api.engine.script = play([Event(0, text, 1)], [Event(0, "", 1, "length")])
    message = await api.message(tools=TOOLS, max_tokens=2)
    assert (message["content"][0]["input"], message["stop_reason"]) == ({}, "max_tokens")
    events = await api.events(tools=TOOLS, max_tokens=2)
    pieces = [event["delta"]["partial_json"] for event in events if "partial_json" in event.get("delta", {})]
    assert "".join(pieces) == '{"city'[: len("".join(pieces))] != ""


async def test_no_tokens_are_the_prompt_only(api: Messages) -> None:
    api.engine.script = play([Event(0, "", 0, "length")])
    message = await api.message(max_tokens=0)
    assert (message["content"], message["stop_reason"]) == ([], "max_tokens")
    assert message["usage"]["output_tokens"] == 0
    assert api.engine.plan.max_tokens == 0
    kinds = [event["type"] for event in await api.events(max_tokens=0)]
    assert kinds == ["message_start", "message_delta", "message_stop"]


async def test_cached_tokens_are_counted_apart(api: Messages) -> None:
    api.engine.cached_tokens = 15
    usage = (await api.message())["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (5, 15)
    start, *_, delta, _ = await api.events()
    for told in (start["message"]["usage"], delta["usage"]):
        assert (told["input_tokens"], told["cache_read_input_tokens"]) == (5, 15)


async def test_the_start_is_told_before_the_first_token(api: Messages) -> None:
    api.engine.script = lambda plan: [[Event(0, "", 0)], 60.0]
    async with api.client.open_post("/v1/messages", _request(stream=True)) as connection:
        await connection.until_writes(1)
        (start,) = events_of(connection.response)
        assert start["message"]["usage"]["output_tokens"] == 0
    assert api.engine.plan.announce
    api.engine.script = say("x")
    await api.message()
    assert not api.engine.generations[-1].plan.announce


async def test_a_silent_stream_pings(api: Messages) -> None:
    api = Messages(ping_seconds=0.02)
    api.engine.script = play(0.05, [Event(0, "x", 1)], 0.05, [Event(0, "", 1, "stop")])
    events = await api.events()
    assert {"type": "ping"} in events
    assert events[-1] == {"type": "message_stop"}


async def test_an_error_in_mid_stream_is_its_last_event(api: Messages) -> None:
    api.engine.script = play([Event(0, "so far", 1)], EngineFailure("llama_decode failed"))
    *_, last = await api.events()
    assert last["type"] == "error"
    assert last["error"] == {"type": "api_error", "message": "llama_decode failed", "details": None}
    api.engine.script = play([Event(0, "x", 1)], ZeroDivisionError("secret"))
    *_, last = await api.events()
    assert last["error"]["message"] == "the server had an internal error"


async def test_what_goes_wrong_before_anything_is_told_by_the_status(api: Messages) -> None:
    api.engine.script = play(QueueTimeout("waited too long"))
    response = await api.post(stream=True)
    assert (response.status, response.json["error"]["type"]) == (529, "overloaded_error")


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (QueueFull("full"), 529, "overloaded_error"),
        (EngineUnavailable("draining"), 529, "overloaded_error"),
        (EngineFailure("broken"), 500, "api_error"),
        (AnswerTimeout("late"), 504, "timeout_error"),
    ],
)
async def test_what_the_engine_refuses(api: Messages, error: LlamafastError, status: int, kind: str) -> None:
    api.engine.refusal = error
    response = await api.post()
    assert (response.status, response.json["error"]["type"]) == (status, kind)
    assert ("retry-after" in response.headers) == (status == 529)


@pytest.mark.parametrize(
    ("fields", "status", "kind", "told"),
    [
        ({"model": "claude-x"}, 404, "not_found_error", "does not exist"),
        ({"max_tokens": None}, 400, "invalid_request_error", "`max_tokens` is required"),
        ({"max_tokens": -1}, 400, "invalid_request_error", "`max_tokens`"),
        ({"messages": []}, 400, "invalid_request_error", "`messages`"),
        ({"stop_sequences": [""]}, 400, "invalid_request_error", "`stop_sequences`"),
        ({"stop_sequences": "x"}, 400, "invalid_request_error", "`stop_sequences`"),
        ({"thinking": {"type": "sometimes"}}, 400, "invalid_request_error", "`thinking.type`"),
        ({"mcp_servers": [{"url": "x"}]}, 400, "invalid_request_error", "`mcp_servers`"),
        ({"container": {"skills": [{}]}}, 400, "invalid_request_error", "`container.skills`"),
        ({"n": 2}, 400, "invalid_request_error", "`n`"),
        ({"n_predict": 5}, 400, "invalid_request_error", "send `max_tokens`"),
        ({"reasoning_budget": 5}, 400, "invalid_request_error", "send `thinking.budget_tokens`"),
        ({"reasoning_budget_tokens": 5}, 400, "invalid_request_error", "send `thinking.budget_tokens`"),
        ({"thinking_budget_tokens": 0}, 400, "invalid_request_error", "send `thinking.budget_tokens`"),
        ({"enable_thinking": False}, 400, "invalid_request_error", "send `thinking`"),
        ({"truncate_prompt_tokens": -1}, 400, "invalid_request_error", "a text that fits"),
        ({"parallel_tool_calls": False}, 400, "invalid_request_error", "`tool_choice.disable_parallel_tool_use`"),
        ({"add_generation_prompt": False}, 400, "invalid_request_error", "as the last turn"),
        ({"documents": [{"text": "x"}]}, 400, "invalid_request_error", "type document"),
        ({"output_config": {"format": {"type": "xml"}}}, 400, "invalid_request_error", "`output_config.format"),
        ({"system": [{"type": "image"}]}, 400, "invalid_request_error", "system[0]"),
    ],
)
async def test_bad_requests(api: Messages, fields: dict[str, Any], status: int, kind: str, told: str) -> None:
    for stream in (False, True):
        found = await api.error(**{"messages": TURNS, **fields}, stream=stream)
        assert found[:2] == (status, kind)
        assert told in found[2]
    assert not api.engine.generations


async def test_a_conversation_that_would_be_kept_elsewhere_is_refused_so_that_clients_send_all(api: Messages) -> None:
    for thread in ({"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}):
        response = await api.post(thread=thread)
        assert response.status == 400
        assert response.json["error"]["details"] == {"error_code": "thread_unsupported_request", "unsupported": []}


async def test_a_prompt_that_is_too_long_says_by_how_much(api: Messages) -> None:
    text = "x" * 5000
    status, kind, told = await api.error([{"role": "user", "content": text}])
    n_tokens = len("<user>") + 5000 + 1 + len("<assistant>")
    assert (status, kind, told) == (
        400, "invalid_request_error", f"prompt is too long: {n_tokens} tokens > 4096 maximum",
    )  # fmt: skip
    _, _, told = await api.error([{"role": "user", "content": "x" * 100_000}])
    found = re.fullmatch(r"prompt is too long: (\d+) tokens > 4096 maximum", told)
    assert found is not None
    assert int(found[1]) > 4096


async def test_tokens_are_counted_as_a_message_sums_them(api: Messages) -> None:
    asked: dict[str, Any] = {"system": "Be brief.", "tools": TOOLS}
    usage = (await api.message(**asked))["usage"]
    api.engine.cached_tokens = 7
    counted = await api.post(path="/v1/messages/count_tokens", **asked)
    assert counted.json == {"input_tokens": usage["input_tokens"]}
    assert len(api.engine.generations) == 1
    # also where they would not fit, whatever the vocabulary's longest word is
    api = Messages(hermes(longest_piece=512))
    long = [{"role": "user", "content": "x" * 5000}]
    assert (await api.post(long, "/v1/messages/count_tokens", max_tokens=None)).json["input_tokens"] > 5000
    long = [{"role": "user", "content": "x" * (1 << 20)}]
    api = Messages(hermes(longest_piece=4), hermes_app(hermes(longest_piece=4), max_body_bytes=1 << 22))
    status, _, told = await api.error(long, path="/v1/messages/count_tokens", max_tokens=None)
    assert (status, "at most 1048576 are tokenised" in told) == (400, True)


async def test_thinking_is_a_switch_of_the_template(api: Messages) -> None:
    assert (await api.prompted(thinking={"type": "disabled"})).endswith("</think>\n\n")
    for on in ({"type": "enabled", "budget_tokens": 10}, {"type": "adaptive"}, {"type": "between_tools"}, None):
        assert (await api.prompted(thinking=on)).endswith("<assistant>")


async def test_thinking_has_a_budget(api: Messages) -> None:
    await api.message(thinking={"type": "enabled", "budget_tokens": 10})
    budget = api.engine.plan.budget
    assert budget is not None
    assert (budget.n_tokens, budget.begun) == (10, -1)
    begun = Messages(hermes("{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"))
    await begun.message(thinking={"type": "enabled", "budget_tokens": 0})
    assert begun.engine.plan.budget == budget._replace(n_tokens=0, begun=0)
    assert (await api.error(thinking={"type": "enabled", "budget_tokens": -1}))[0] == 400


async def test_thoughts_that_the_last_turn_begins_go_on(api: Messages) -> None:
    block = {"type": "thinking", "thinking": "Hm, <b>\n", "signature": "s"}
    turns = [{"role": "user", "content": "a <think>"}, {"role": "assistant", "content": [block]}]
    for tools in (None, TOOLS):
        api.engine.script = say("so", "</think>", "Yes")
        message = await api.message(turns, tools=tools, thinking={"type": "enabled", "budget_tokens": 10})
        assert [(each["type"], *list(each.values())[1:2]) for each in message["content"]] == [
            ("thinking", "so"), ("text", "Yes"),
        ]  # fmt: skip
        budget = api.engine.generations[-1].plan.budget
        assert budget is not None
        assert budget.begun == 0
    api.engine.script = say("Yes")
    turns[1]["content"] = "It is"
    assert (await api.message(turns))["content"] == [{"type": "text", "text": "Yes"}]


async def test_effort_and_further_variables_reach_the_template() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}|{{ reasoning_effort }}|{{ style }}"
    for effort, shown in (("low", "low"), ("high", "high"), ("xhigh", "high"), ("max", "high")):
        api = Messages(hermes(template))
        prompt = await api.prompted(output_config={"effort": effort}, chat_template_kwargs={"style": "odd"})
        assert prompt == f"hi|{shown}|odd"


@pytest.mark.parametrize("where", ["output_config", "output_format"])
async def test_a_schema_is_followed_strictly(api: Messages, where: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
    await api.message(**{where: form if where == "output_format" else {"format": form}})
    assert api.engine.plan.matcher is not None
    form["schema"] = {"type": "nonsense"}
    _, _, told = await api.error(**{where: form if where == "output_format" else {"format": form}})
    assert "output_config.format" in told


async def test_sampling_and_extensions(api: Messages) -> None:
    await api.message(temperature=0.5, top_p=0.7, top_k=5, min_p=0.1, seed=3, cache_salt="s")
    sampling = api.engine.plan.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p, sampling.seed) == (
        0.5,
        0.7,
        5,
        0.1,
        3,
    )
    assert api.engine.plan.cache_salt == "s"


async def test_what_says_nothing_of_the_answer_is_taken(api: Messages) -> None:
    fields = {
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "container": "c",
        "speed": "fast",
        "inference_geo": "eu",
        "diagnostics": {},
        "mcp_servers": [],
        "anything_new": [1],
    }
    assert (await api.post(**fields)).status == 200
    response = await api.client.post("/v1/messages", _request(), anthropic_version="2031-01-01", anthropic_beta="a,b")
    assert response.status == 200


async def test_the_models_in_both_forms(api: Messages) -> None:
    listed = await api.client.get("/v1/models", anthropic_version="2023-06-01")
    entry = {
        "type": "model", "id": MODEL, "display_name": MODEL, "created_at": "2023-11-14T22:13:20Z",
        "lifecycle": "active", "max_input_tokens": 4096, "max_tokens": 4096,
    }  # fmt: skip
    assert listed.json == {"data": [entry], "has_more": False, "first_id": MODEL, "last_id": MODEL}
    one = await api.client.get(f"/v1/models/{MODEL}", anthropic_version="2026-10-21")
    assert one.json == entry
    for response in (listed, one, plain := await api.client.get("/v1/models")):
        assert "anthropic-version" in response.headers["vary"]
    assert plain.json["object"] == "list"
    missing = await api.client.get("/v1/models/other", anthropic_version="2023-06-01")
    assert (missing.status, missing.json["error"]["type"]) == (404, "not_found_error")
    assert (await api.client.get("/v1/models/other")).error["code"] == "model_not_found"


async def test_every_error_below_the_endpoint_has_its_form(api: Messages) -> None:
    for path, method, status in (("/v1/messages/x", "POST", 404), ("/v1/messages", "GET", 405)):
        response = await api.client.get(path, method)
        assert (response.status, response.json["type"]) == (status, "error")
    response = await api.client.post("/v1/messages", b"x" * ((1 << 20) + 1))
    assert (response.status, response.json["error"]["type"]) == (413, "request_too_large")
    assert (await api.client.post("/v1/messages", b"{")).json["error"]["type"] == "invalid_request_error"


async def test_a_client_that_leaves_ends_the_work(api: Messages) -> None:
    api.engine.script = play([Event(0, "x", 1)], 60.0)
    async with api.client.open_post("/v1/messages", _request(stream=True)) as connection:
        await connection.until_writes(1)
    assert api.engine.generations[0].cancelled


def _request(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 100, "messages": TURNS, **fields}
