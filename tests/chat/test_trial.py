"""Grammars that take for ever to compile, and the processes that bear them."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import pytest

from llamafast.chat.compiler import StandIn
from llamafast.chat.grammar import json_schema_grammar
from llamafast.chat.trial import Task, Trials, outline

OUTLINE = outline(StandIn(600, {3: "<|end|>", 599: "<|call|>"}, [3]))
ENDLESS = {
    "patterns by name": {"patternProperties": {f"^a{i}_": {"type": "integer"} for i in range(1000)}},
    "patterns at once": {"allOf": [{"type": "string", "pattern": f"x.{{{i}}}y"} for i in range(1, 30)]},
    "multiples": {"allOf": [{"type": "integer", "multipleOf": 97 + i} for i in range(4)]},
}


def task(schema: object) -> Task:
    return Task(json.dumps({"grammars": [json_schema_grammar(schema, "x")]}), OUTLINE)


@pytest.fixture
def trials():
    trials = Trials(seconds=1)
    yield trials
    trials.close()


def test_what_takes_for_ever_is_ended(trials):
    with ThreadPoolExecutor(4) as pool:
        tasks = [task(schema) for schema in ({"type": "integer"}, *ENDLESS.values())]
        assert list(pool.map(trials.endured, tasks)) == [True, False, False, False]


def test_a_refusal_is_an_end(trials):
    start = monotonic()
    for schema in ({"type": "bogus"}, False, {"$ref": "#"}):
        assert trials.endured(task(schema))
    for text in ("start: <[598]>", "start: <[600]>", "start: <|call|>", "start: <|none|>", "start: ("):
        assert trials.endured(Task(json.dumps({"grammars": [{"lark_grammar": text}]}), OUTLINE))
    assert monotonic() - start < 10


def test_a_process_that_somebody_killed_is_replaced(trials):
    assert trials.endured(task(True))
    process = trials._idle.get()
    assert os.getsid(process.pid) == os.getsid(0)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) > os.getpriority(os.PRIO_PROCESS, 0)
    os.kill(process.pid, signal.SIGKILL)
    trials._idle.put(process)
    assert not trials.endured(task(True))
    assert trials.endured(task(True))


def test_a_process_that_ends_of_itself_is_a_bug(trials):
    with pytest.raises(RuntimeError, match="exited with 1"):
        trials.endured(Task("not JSON", outline(StandIn(600, {}, []))))
