"""Grammars that many requests ask for, and those that take long, beside requests that ask for none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace
from support.asgi_client import AsgiClient
from support.fake_engine import INFO, ByteTokenizer, FakeEngine

from llamafast.api import grammars as grammars_module
from llamafast.api.grammars import Grammars
from llamafast.chat.grammar.asked import Ask, Asked
from llamafast.chat.grammar.constraints import Constraints
from llamafast.chat.grammar.trial import PROCESSES, Trials
from llamafast.engine.types import Plan, SamplingParams
from llamafast.errors import InvalidRequest

PLAN = Plan(prompts=(), sampling=SamplingParams(), n=1)
COMPLETIONS = "/v1/completions"


def ask(schema: Any) -> Ask:
    return Asked({"json_schema": schema}).ask()


def endless(i: int) -> dict[str, Any]:
    return {"allOf": [{"type": "integer", "multipleOf": 97 + i + k} for k in range(4)]}


@pytest.fixture
def engine() -> FakeEngine:
    """With room for tools in its prompts."""
    engine = FakeEngine()
    engine.info = replace(INFO, max_seq_len=1 << 18)
    return engine


@pytest.fixture
def trials(monkeypatch):
    """Counts what is compiled."""
    quick, slow = Trials(0.25, 1), Trials(300.0, 1)
    quick.asked = []
    true = quick.outcome
    monkeypatch.setattr(quick, "outcome", lambda *args: (quick.asked.append(args[1].key), true(*args))[1])
    monkeypatch.setattr("llamafast.chat.grammar.constraints.quick_trials", lambda: quick)
    monkeypatch.setattr("llamafast.chat.grammar.constraints.trials", lambda: slow)
    yield quick
    quick.close()
    slow.close()


@pytest.fixture
def grammars():
    return Grammars(Constraints(ByteTokenizer()))


async def test_equal_grammars_are_compiled_once(trials, grammars):
    plans = await asyncio.gather(*(grammars.constrained(PLAN, ask({"type": "integer"})) for _ in range(20)))
    assert all(plan.matcher is plans[0].matcher is not None for plan in plans)
    assert len(trials.asked) == 1
    await grammars.constrained(PLAN, ask({"type": "integer"}))
    assert len(trials.asked) == 1
    assert await grammars.constrained(PLAN, None) is PLAN


async def test_refusals_are_kept_by_what_was_asked(trials, grammars):
    for _ in range(3):
        with pytest.raises(InvalidRequest, match="`json_schema` cannot be followed"):
            await grammars.constrained(PLAN, ask({"type": "bogus"}))
    assert len(trials.asked) == 1


async def test_what_is_kept_has_a_size(trials, grammars, monkeypatch):
    monkeypatch.setattr(grammars_module, "KEPT_BYTES", 4_000)
    for i in range(8):
        await grammars.constrained(PLAN, ask({"enum": [f"{i}" * 900]}))
    assert len(grammars._kept) == 3
    assert grammars._n_bytes == sum(kept.n_bytes for kept in grammars._kept.values()) <= 4_000
    monkeypatch.setattr(grammars_module, "KEPT", 2)
    await grammars.constrained(PLAN, ask(True))
    assert len(grammars._kept) == 2


async def test_who_leaves_frees_the_place(trials, grammars):
    """More grammars than there are places, none of which ends: who comes when they have left is answered."""
    waiting = [asyncio.create_task(grammars.constrained(PLAN, ask(endless(i)))) for i in range(2 * PROCESSES)]
    twice = asyncio.create_task(grammars.constrained(PLAN, ask(endless(0))))
    await asyncio.sleep(0.5)
    waiting[0].cancel()
    await asyncio.sleep(0.1)
    assert not twice.done()
    for task in [*waiting, twice]:
        task.cancel()
    await asyncio.gather(*waiting, twice, return_exceptions=True)
    plan = await asyncio.wait_for(grammars.constrained(PLAN, ask({"type": "boolean"})), 60)
    assert plan.matcher is not None
    assert not grammars._running


async def test_a_usual_grammar_waits_for_none_that_takes_long(trials, grammars):
    slow = [asyncio.create_task(grammars.constrained(PLAN, ask(endless(i)))) for i in range(6)]
    plan = await asyncio.wait_for(grammars.constrained(PLAN, ask({"type": "boolean"})), 60)
    assert plan.matcher is not None
    assert not any(task.done() for task in slow)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)


async def test_a_large_request_waits_for_no_grammar(client: AsgiClient, trials):
    slow = [
        asyncio.create_task(client.post(COMPLETIONS, {"prompt": "x", "json_schema": endless(i)})) for i in range(40)
    ]
    await asyncio.sleep(0.2)
    # more than one step of the event loop decodes
    body = {"prompt": "x", "max_tokens": 3, "user": "u" * 40_000}
    response = await asyncio.wait_for(client.post(COMPLETIONS, body), 30)
    assert response.status == 200
    assert not any(task.done() for task in slow)
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"json_schema": {"oneOf": [{"type": 5}, {"type": "string"}]}}, "json_schema", "cannot be followed"),
        ({"json_schema": {"type": "bogus\nid=1 forged"}}, "json_schema", "bogus id=1 forged"),
        ({"grammar": 'root ::= "a"' + "\n" * 20_000 + "x"}, "grammar", "not a valid grammar"),
        ({"grammar": "start: nowhere"}, "grammar", 'unknown name: "nowhere"'),
        ({"guided_whitespace_pattern": " ?"}, "guided_whitespace_pattern", "says how JSON is written"),
        ({"structured_outputs": {"disable_any_whitespace": True}}, "structured_outputs", "says how JSON is written"),
        ({"structured_outputs": {"json": {}, "whitespace_pattern": 3}}, "structured_outputs", "must be a string"),
        ({"guided_regex": "a", "guided_whitespace_pattern": " "}, "guided_whitespace_pattern", "asks for none"),
    ],
)
async def test_what_cannot_be_followed(client: AsgiClient, fields: dict[str, Any], param: str, words: str):
    response = await client.post(COMPLETIONS, {"prompt": "x", **fields})
    assert (response.status, response.error["param"]) == (400, param)
    assert words in response.error["message"]
    assert "\n" not in response.error["message"]


async def test_a_tool_that_cannot_be_followed_is_named(client: AsgiClient):
    def function(name: str, schema: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "strict": True, "parameters": schema}}

    sound = {"type": "object", "properties": {"a": {"type": "string"}}}
    for broken, words in (
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=x)y"}}}, "look-around"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}, "'/$defs/none' does not exist"),
        ({"type": "object", "properties": {"a": {"type": "string", "format": "nope"}}}, "Unknown format: nope"),
    ):
        tools = [function(f"t{i}", broken if i == 3 else sound) for i in range(6)]
        body = {"messages": [{"role": "user", "content": "x"}], "tools": tools}
        response = await client.post("/v1/chat/completions", body)
        assert (response.status, response.error["param"]) == (400, "tools[3].function.parameters")
        assert response.error["message"].startswith("`tools[3].function.parameters` of t3")
        assert words in response.error["message"]
        assert "%json" not in response.error["message"]
        assert "start:" not in response.error["message"]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"syntax": "lark", "definition": "start: nowhere"}, 'unknown name: "nowhere"'),
        ({"syntax": "lark", "definition": 'root ::= ("a"'}, "is not a valid grammar"),
        ({"syntax": "lark", "definition": 'start: "\\n" ~A\nA: "a"'}, "which writes JSON"),
        ({"syntax": "lark", "definition": "start: /[a" + "[" * 100_000}, "cannot be followed"),
        ({"syntax": "regex", "definition": "(?=a)b"}, "which writes JSON"),
    ],
)
async def test_a_custom_tool_that_cannot_be_followed_is_named(client: AsgiClient, form: dict[str, Any], words: str):
    tools = [
        {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}},
        {"type": "custom", "name": "edit", "format": {"type": "grammar", **form}},
    ]
    response = await client.post("/v1/responses", {"input": "x", "tools": tools})
    assert (response.status, response.error["param"]) == (400, "tools[1].format.definition")
    assert words in response.error["message"]
    assert "tools[1].format.definition" in response.error["message"]
    assert "%lark" not in response.error["message"]
