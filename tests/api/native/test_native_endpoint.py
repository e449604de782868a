"""POST /completion and /infill, GET /props, as llama-server's clients read them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import asdict, replace
from support.apps import make_app
from support.asgi_client import AsgiClient, Response
from support.fake_engine import INFO, FakeEngine, play, say

from llamafast.engine.model_facts import FimTokens
from llamafast.engine.slot_info import SlotInfo
from llamafast.engine.types import Event, TokenLogprob
from llamafast.errors import EngineFailure

FIM = FimTokens(1, 2, 3, 4, 5, 6)
GAP = {"input_prefix": "def f(", "input_suffix": "):\n"}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(info=replace(INFO, fim=FIM))


@pytest.fixture
def client(engine: FakeEngine) -> AsgiClient:
    return AsgiClient(make_app(engine))


def pieces(response: Response) -> list[Any]:
    return [json.loads(frame.removeprefix("data: ")) for frame in response.frames]


@pytest.mark.parametrize("path", ["/completion", "/completions"])
async def test_an_answer_field_by_field(client: AsgiClient, engine: FakeEngine, path: str) -> None:
    engine.cached_tokens = 1
    answer = (await client.post(path, {"prompt": "hi", "n_predict": 9})).json
    timings = answer.pop("timings")
    assert answer == {
        "index": 0, "content": "Hello world", "tokens": [], "stop": True, "id_slot": 0, "tokens_predicted": 3,
        "tokens_evaluated": 3, "model": "org/fake-model", "has_new_line": False, "truncated": False,
        "stop_type": "eos", "stopping_word": "", "tokens_cached": 1,
    }  # fmt: skip
    assert (timings["cache_n"], timings["prompt_n"], timings["predicted_n"]) == (1, 2, 3)
    assert engine.plan.max_tokens == 9


async def test_a_stream(client: AsgiClient) -> None:
    *told, last = pieces(await client.post("/completion", {"prompt": "hi", "stream": True}))
    assert [(piece["content"], piece["stop"]) for piece in told] == [("Hello", False), (" world", False)]
    assert (last["content"], last["stop"], last["stop_type"]) == ("", True, "eos")
    assert last["timings"]["predicted_n"] == 3


@pytest.mark.parametrize(
    ("event", "stop"),
    [
        (Event(0, "", 1, "length"), ("limit", "")),
        (Event(0, "", 1, "stop", matched_stop="END"), ("word", "END")),
        (Event(0, "", 1, "stop", matched_stop=7), ("eos", "")),
    ],
)
async def test_why_it_stopped(client: AsgiClient, engine: FakeEngine, event: Event, stop: tuple[str, str]) -> None:
    engine.script = play([Event(0, "a\nb", 2)], [event])
    answer = (await client.post("/completion", {"prompt": "x", "stop": ["END"]})).json
    assert (answer["stop_type"], answer["stopping_word"], answer["has_new_line"]) == (*stop, True)


async def test_prompts_of_texts_and_ids(client: AsgiClient, engine: FakeEngine) -> None:
    for prompt in ("ab", [97, 98], ["a", 98, "c</s>"], [97, "b"]):
        await client.post("/completion", {"prompt": prompt})
    prompts = [generation.plan.prompts[0].tolist() for generation in engine.generations]
    assert prompts == [[256, 97, 98], [97, 98], [256, 97, 98, 99, 257], [97, 98]]


async def test_texts_and_ids_that_cannot_fit_are_not_tokenised(client: AsgiClient) -> None:
    error = (await client.post("/completion", {"prompt": ["x" * 50_000, 97, "x" * 50_000]})).error
    assert error["code"] == "context_length_exceeded"
    assert "more than 25000 tokens" in error["message"]


async def test_limits(client: AsgiClient, engine: FakeEngine) -> None:
    for fields in ({}, {"n_predict": -1}, {"n_predict": 0}, {"max_tokens": 4}):
        await client.post("/completion", {"prompt": "x", **fields})
    assert [generation.plan.max_tokens for generation in engine.generations] == [None, None, 0, 4]


async def test_tokens_and_their_probabilities(client: AsgiClient, engine: FakeEngine) -> None:
    logprobs = [TokenLogprob(97, -0.5, [(97, -0.5), (98, -1.0)])]
    script = play([Event(0, "a", 1, None, logprobs, token_ids=[97])], [Event(0, "", 1, "stop", token_ids=[257])])
    engine.script = script
    fields = {"prompt": "x", "return_tokens": True, "n_probs": 2}
    answer = (await client.post("/completion", fields)).json
    assert answer["tokens"] == [97, 257]
    (token,) = answer["completion_probabilities"]
    assert (token["id"], token["token"], token["bytes"], token["logprob"]) == (97, "a", [97], -0.5)
    assert [(top["id"], top["logprob"]) for top in token["top_logprobs"]] == [(97, -0.5), (98, -1.0)]
    assert (engine.plan.top_logprobs, engine.plan.tell_tokens) == (2, True)
    told = pieces(await client.post("/completion", {**fields, "stream": True}))
    assert [piece["tokens"] for piece in told] == [[97], [257], []]


async def test_only_some_fields_are_wanted(client: AsgiClient) -> None:
    fields = ["content", "timings/predicted_n", "nothing/there"]
    answer = (await client.post("/completion", {"prompt": "x", "response_fields": fields})).json
    assert answer == {"content": "Hello world", "timings/predicted_n": 3}
    assert (await client.post("/completion", {"prompt": "x", "response_fields": [""]})).json == {}
    whole = (await client.post("/completion", {"prompt": "x", "response_fields": []})).json
    assert whole.keys() == (await client.post("/completion", {"prompt": "x"})).json.keys()


async def test_behind_its_time_an_answer_ends_with_its_line(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = play([Event(0, "a", 1)], 0.03, [Event(0, "b", 1)], [Event(0, "c\nd", 1)], [Event(0, "e", 1)])
    answer = (await client.post("/completion", {"prompt": "x", "t_max_predict_ms": 10})).json
    assert (answer["content"], answer["stop_type"]) == ("abc", "limit")
    assert engine.generations[0].cancelled


async def test_what_is_filled_in(client: AsgiClient, engine: FakeEngine) -> None:
    extra = [{"text": "x = 1", "filename": "a.py"}]
    request = {**GAP, "prompt": "se", "input_extra": extra, "n_predict": 5, "samplers": ["top_k", "top_p", "infill"]}
    response = await client.post("/infill", request)
    assert response.json["content"] == "Hello world"
    text = engine.tokenizer.detokenize(engine.plan.prompts[0])
    assert text == "<s>\5myproject\n\6a.py\nx = 1\6filename\n\1def f(se\2):\n\3"
    assert engine.plan.sampling.samplers == ("top_k", "top_p", "infill")
    assert engine.plan.stop_token_ids == (4, 5, 6)


async def test_what_editors_send(client: AsgiClient, engine: FakeEngine) -> None:
    """llama.vim's request, and what it sends while nobody types."""
    vim = {
        **GAP, "input_extra": [], "prompt": "", "n_predict": 128, "stop": [], "n_indent": 0, "top_k": 40, "top_p": 0.9,
        "samplers": ["top_k", "top_p", "infill"], "stream": False, "cache_prompt": True, "t_max_prompt_ms": 500,
        "t_max_predict_ms": 1000, "id_slot": 0,
        "response_fields": ["content", "timings/prompt_n", "timings/predicted_ms", "truncated", "tokens_cached"],
    }  # fmt: skip
    answer = (await client.post("/infill", vim)).json
    assert answer.keys() == set(vim["response_fields"])
    engine.script = play([Event(0, "", 0, "length")])
    idle = {**vim, "input_prefix": "", "input_suffix": "", "n_predict": 0, "samplers": [], "response_fields": [""]}
    assert (await client.post("/infill", idle)).json == {}
    assert engine.generations[-1].plan.max_tokens == 0


async def test_suffixes_of_completions(client: AsgiClient, engine: FakeEngine) -> None:
    body = (await client.post("/v1/completions", {"prompt": "def f(", "suffix": "):", "max_tokens": 5})).json
    assert body["choices"][0]["text"] == "Hello world"
    assert engine.tokenizer.detokenize(engine.plan.prompts[0]).endswith("\1def f(\2):\3")
    for fields, told in (
        ({"prompt": ["a"]}, "one `prompt`"),
        ({"prompt": "a", "echo": True}, "`echo`"),
        ({"prompt": "a", "best_of": 2}, "`best_of`"),
    ):
        response = await client.post("/v1/completions", {"suffix": "b", **fields})
        assert (response.status, response.error["param"]) == (400, "suffix")
        assert told in response.error["message"]


async def test_a_model_that_fills_nothing_in() -> None:
    client = AsgiClient(make_app(FakeEngine()))
    response = await client.post("/infill", GAP)
    assert (response.status, response.error["param"]) == (400, "input_suffix")
    response = await client.post("/v1/completions", {"prompt": "a", "suffix": "b"})
    assert (response.status, response.error["param"]) == (400, "suffix")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/completion", {}, "prompt"),
        ("/completion", {"prompt": []}, "prompt"),
        ("/completion", {"prompt": [["a"]]}, "prompt[0]"),
        ("/completion", {"prompt": ["abc ", "def"]}, "prompt"),
        ("/completion", {"prompt": ["a", -1]}, "prompt[1]"),
        ("/completion", {"prompt": ["a", 10**6]}, "prompt"),
        ("/completion", {"prompt": "a", "n_predict": -3}, "n_predict"),
        ("/completion", {"prompt": "a", "n": 2}, "n"),
        ("/completion", {"prompt": "a", "image_data": [{"id": 1, "data": ""}]}, "image_data"),
        ("/completion", {"prompt": "a", "messages": [{}]}, "messages"),
        ("/completion", {"prompt": "a", "echo": True}, "echo"),
        ("/completion", {"prompt": "a", "logprobs": 2}, "logprobs"),
        ("/completion", {"prompt": "a", "post_sampling_probs": True}, "post_sampling_probs"),
        ("/infill", {"input_prefix": "a"}, "input_suffix"),
        ("/infill", {**GAP, "input_extra": [{"filename": "x"}]}, "input_extra[0].text"),
        ("/infill", {**GAP, "samplers": ["unheard"]}, "samplers"),
    ],
)
async def test_bad_requests(client: AsgiClient, path: str, fields: dict[str, Any], param: str) -> None:
    response = await client.post(path, fields)
    assert (response.status, response.error["param"]) == (400, param)


async def test_failures(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = play([Event(0, "a", 1)], EngineFailure("broken"))
    assert (await client.post("/completion", {"prompt": "x"})).status == 500
    *_, last = pieces(await client.post("/completion", {"prompt": "x", "stream": True}))
    assert last["error"]["message"] == "broken"
    engine.script = say("x")


async def test_a_keystroke_ends_the_work(client: AsgiClient, engine: FakeEngine) -> None:
    engine.script = play([Event(0, "a", 1)], 60.0)
    async with client.open_post("/infill", {**GAP, "stream": True}) as connection:
        await connection.until_writes(1)
    assert engine.generations[0].cancelled


@pytest.mark.parametrize("path", ["/props", "/v1/props"])
async def test_props(client: AsgiClient, engine: FakeEngine, path: str) -> None:
    engine.info = replace(INFO, n_seq_max=4)
    # a sequence that ends at this moment is in neither count
    engine.series = {"free_sequences": 2, "running": 1}
    props = (await client.get(path)).json
    settings = props["default_generation_settings"]
    assert (settings["n_ctx"], settings["params"]["temperature"], props["total_slots"]) == (512, 0.8, 4)
    assert (props["model_alias"], props["bos_token"], props["eos_token"]) == ("org/fake-model", "<s>", "</s>")
    assert props["chat_template"] == INFO.chat_template
    assert props["modalities"] == {"vision": False, "audio": False}
    assert (await client.get(path, "POST")).status == 405


async def test_slots_are_numbers(client: AsgiClient, engine: FakeEngine) -> None:
    engine.info = replace(INFO, n_seq_max=2)
    engine.series = {"free_sequences": 0, "running": 1}
    engine.running_slots = [
        SlotInfo(slot=1, task=7, n_prompt=30, n_computed=20, n_cached=10, n_memory=34, n_generated=5, n_left=4)
    ]
    idle, busy = (await client.get("/slots")).json
    assert idle == {
        "id": 0, "n_ctx": 512, "speculative": False, "is_processing": False, "n_prompt_tokens": 0,
        "n_prompt_tokens_processed": 0, "n_prompt_tokens_cache": 0,
        "next_token": [{"has_next_token": False, "n_remain": 0, "n_decoded": 0}],
    }  # fmt: skip
    assert busy == {
        "id": 1, "n_ctx": 512, "speculative": False, "is_processing": True, "id_task": 7, "n_prompt_tokens": 34,
        "n_prompt_tokens_processed": 20, "n_prompt_tokens_cache": 10,
        "next_token": [{"has_next_token": True, "n_remain": 4, "n_decoded": 5}],
    }  # fmt: skip
    assert (await client.get("/slots?fail_on_no_slot=1")).status == 200
    engine.info = replace(INFO, n_seq_max=1)
    engine.series = {"draft_calls": 3}
    engine.running_slots = [SlotInfo(**{**asdict(engine.running_slots[0]), "slot": 0})]
    (busy,) = (await client.get("/slots")).json
    assert busy["speculative"]
    full = await client.get("/slots?fail_on_no_slot=1")
    assert (full.status, full.error["message"]) == (503, "no slot is idle")
    assert (await client.get("/slots", "POST")).status == 405


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "least", "content"),
    [
        ("x = 1\n    y = 2\nz = 3\n", 4, "x = 1\n    y = 2\n"),
        ("x\n\n    y\n\n  z\n    a", 4, "x\n\n    y\n\n  "),
        ("  x\n\ty\n\tz", 1, "  x\n\ty\n\tz"),
        ("x\ny", 0, "x\ny"),
        ("x\n    ", 4, "x\n    "),
    ],
)
async def test_an_answer_ends_before_a_line_that_is_indented_less(
    client: AsgiClient, engine: FakeEngine, size: int, text: str, least: int, content: str
) -> None:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    engine.script = say(*pieces)
    answer = (await client.post("/infill", {**GAP, "n_indent": least})).json
    assert answer["content"] == content
    assert answer["stop_type"] == ("eos" if content == text else "limit")
    assert (await client.post("/completion", {"prompt": "a", "n_indent": -1})).status == 400


async def test_the_stage_for_what_is_filled_in(client: AsgiClient, engine: FakeEngine) -> None:
    response = await client.post("/infill", {**GAP, "samplers": ["top_k", "top_p", "infill"]})
    assert response.status == 200
    assert engine.plan.sampling.samplers == ("top_k", "top_p", "infill")
    await client.post("/completion", {"prompt": "a", "samplers": "kpi"})
    assert engine.generations[-1].plan.sampling.samplers == ("top_k", "top_p", "infill")
