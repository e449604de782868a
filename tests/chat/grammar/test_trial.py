"""Grammars that take for ever to compile, and the processes that bear them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Timer
from time import monotonic
from typing import Any

import pytest

from llamafast.chat.grammar import trial
from llamafast.chat.grammar.asked import Ask, Asked
from llamafast.chat.grammar.compiler import StandIn
from llamafast.chat.grammar.trial import Attempt, Outcome, Stopped, Trials, outline
from llamafast.errors import EngineUnavailable

OUTLINE = outline(StandIn(600, {3: "<|end|>", 599: "<|call|>"}, [3]))
ENDLESS = {
    "patterns by name": {"patternProperties": {f"^a{i}_": {"type": "integer"} for i in range(1000)}},
    "patterns at once": {"allOf": [{"type": "string", "pattern": f"x.{{{i}}}y"} for i in range(1, 30)]},
    "multiples": {"allOf": [{"type": "integer", "multipleOf": 97 + i} for i in range(4)]},
}


# Of address space, once all modules are there: hardly more than they have.
PAGES = "int(open('/proc/self/statm').read().split()[0])"
LITTLE = f"resource.setrlimit(resource.RLIMIT_AS, ({PAGES} * resource.getpagesize() + (1 << 20),) * 2)"


def ask(schema: Any) -> Ask:
    return Asked({"json_schema": schema}).ask()


def accepts(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.refusal is None


@pytest.fixture
def trials():
    trials = Trials(1.0, 1)
    yield trials
    trials.close()


@pytest.mark.heavy
def test_what_takes_for_ever_is_ended(trials):
    with ThreadPoolExecutor(4) as pool:
        asks = [ask(schema) for schema in ({"type": "integer"}, *ENDLESS.values())]
        outcomes = list(pool.map(lambda one: trials.outcome(OUTLINE, one), asks))
    assert accepts(outcomes[0])
    assert outcomes[1:] == [None, None, None]


def test_a_refusal_is_an_end(trials, monkeypatch):
    """None of the process: another one would have to be started."""
    calls, started = [], trial._started
    monkeypatch.setattr(trial, "_started", lambda call: calls.append(call) or started(call))
    for schema in ({"type": "bogus"}, False, {"$ref": "#"}):
        refusal = trials.outcome(OUTLINE, ask(schema)).refusal
        assert refusal is not None
        assert refusal.param == "json_schema"
    for text in ("start: <[598]>", "start: <[600]>", "start: <|call|>", "start: <|none|>", "start: ("):
        assert trials.outcome(OUTLINE, Asked({"grammar": text}).ask()) is not None
    assert len(calls) == 1


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_that_somebody_killed_a_process_says_nothing_of_a_grammar(trials, kind):
    assert accepts(trials.outcome(OUTLINE, ask(True)))
    process = trials._idle.get()
    assert os.getsid(process.pid) == os.getsid(0)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) > os.getpriority(os.PRIO_PROCESS, 0)
    os.kill(process.pid, kind)
    trials._idle.put(process)
    assert accepts(trials.outcome(OUTLINE, ask({"type": "integer"})))


def test_what_somebody_else_killed_twice_may_be_tried_again(trials, monkeypatch):
    dies = [sys.executable, "-c", "import os; input(); os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(
        "llamafast.chat.grammar.trial._started",
        lambda call: subprocess.Popen(dies, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE),
    )
    with pytest.raises(EngineUnavailable, match="try again") as caught:
        trials.outcome(OUTLINE, ask(True))
    assert (caught.value.status, caught.value.retry_after) == (503, 1.0)


def test_a_process_that_is_stopped_holds_nobody_for_good():
    trials = Trials(4.0, 1, wall_seconds=60)
    assert accepts(trials.outcome(OUTLINE, ask(True)))
    trials._wall_seconds = 0.3
    process = trials._idle.get()
    os.kill(process.pid, signal.SIGSTOP)
    trials._idle.put(process)
    with pytest.raises(EngineUnavailable, match="try again"):
        trials.outcome(OUTLINE, ask(True))
    trials.close()


def test_who_leaves_frees_the_place():
    trials, attempt = Trials(60.0, 1), Attempt()
    Timer(0.5, attempt.stop).start()
    start = monotonic()
    with pytest.raises(Stopped):
        trials.outcome(OUTLINE, ask(ENDLESS["multiples"]), attempt)
    assert monotonic() - start < 30
    with pytest.raises(Stopped):
        trials.outcome(OUTLINE, ask(True), attempt)
    trials.close()


def test_a_process_that_ends_of_itself_is_a_bug(trials):
    with pytest.raises(RuntimeError, match="exited with 1"):
        trials.outcome(outline(StandIn(600, {}, [])), Ask(b"", b"not JSON"))


def test_limits_that_are_there_stay():
    """Only root may raise a hard limit: nobody tries."""
    limits = [(resource.RLIMIT_CPU, 300), (resource.RLIMIT_AS, 1 << 30)]
    before = "; ".join(f"resource.setrlimit({kind}, ({most}, {most}))" for kind, most in limits)
    after = "; ".join(f"assert resource.getrlimit({kind}) == ({most}, {most})" for kind, most in limits)
    script = (
        f"import resource; {before}; import sys; sys.stdin = open(sys.argv[1]); "
        f"from llamafast.chat.grammar.trial import answer_lines; answer_lines(4.0, 1); {after}"
    )
    done = subprocess.run([sys.executable, "-c", script, os.devnull], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_takes_all_memory_is_ended(trials, monkeypatch):
    started = trial._started
    monkeypatch.setattr(trial, "_started", lambda call: started(f"import resource; {LITTLE}; {call}"))
    outcome = trials.outcome(OUTLINE, ask({"enum": [f"{i}" * 900 for i in range(60)]}))
    assert outcome is not None
    assert outcome.refusal is not None
    assert "too much memory" in outcome.refusal.message
