"""Grammars that take for ever to compile, and the processes that bear them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Timer
from time import monotonic
from typing import Any

import pytest

from llamafast.chat.asked import Ask, Asked
from llamafast.chat.compiler import StandIn
from llamafast.chat.trial import Attempt, Outcome, Stopped, Trials, outline

OUTLINE = outline(StandIn(600, {3: "<|end|>", 599: "<|call|>"}, [3]))
ENDLESS = {
    "patterns by name": {"patternProperties": {f"^a{i}_": {"type": "integer"} for i in range(1000)}},
    "patterns at once": {"allOf": [{"type": "string", "pattern": f"x.{{{i}}}y"} for i in range(1, 30)]},
    "multiples": {"allOf": [{"type": "integer", "multipleOf": 97 + i} for i in range(4)]},
}


def ask(schema: Any) -> Ask:
    return Asked({"json_schema": schema}).ask()


def accepts(outcome: Outcome) -> bool:
    return outcome.refusal is None


@pytest.fixture
def trials():
    trials = Trials(seconds=1, niceness=1)
    yield trials
    trials.close()


def test_what_takes_for_ever_is_ended(trials):
    with ThreadPoolExecutor(4) as pool:
        asks = [ask(schema) for schema in ({"type": "integer"}, *ENDLESS.values())]
        outcomes = list(pool.map(lambda one: trials.outcome(OUTLINE, one), asks))
    assert [accepts(outcome) for outcome in outcomes] == [True, False, False, False]
    # the kernel's verdict would be the same again
    assert all(outcome.certain for outcome in outcomes)


def test_a_refusal_is_an_end(trials):
    start = monotonic()
    for schema in ({"type": "bogus"}, False, {"$ref": "#"}):
        refusal = trials.outcome(OUTLINE, ask(schema)).refusal
        assert refusal is not None
        assert refusal.param == "json_schema"
    for text in ("start: <[598]>", "start: <[600]>", "start: <|call|>", "start: <|none|>", "start: ("):
        trials.outcome(OUTLINE, Asked({"grammar": text}).ask())
    assert monotonic() - start < 10


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_that_somebody_killed_a_process_says_nothing_of_a_grammar(trials, kind):
    assert accepts(trials.outcome(OUTLINE, ask(True)))
    process = trials._idle.get()
    assert os.getsid(process.pid) == os.getsid(0)
    assert os.getpriority(os.PRIO_PROCESS, process.pid) > os.getpriority(os.PRIO_PROCESS, 0)
    os.kill(process.pid, kind)
    trials._idle.put(process)
    assert accepts(trials.outcome(OUTLINE, ask({"type": "integer"})))


def test_what_is_killed_twice_is_refused_for_now(trials, monkeypatch):
    dies = [sys.executable, "-c", "import os; input(); os.kill(os.getpid(), 9)"]
    monkeypatch.setattr(
        "llamafast.chat.trial._started",
        lambda call: subprocess.Popen(dies, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE),
    )
    outcome = trials.outcome(OUTLINE, ask(True))
    assert outcome.refusal is not None
    assert not outcome.certain


def test_a_process_that_is_stopped_holds_nobody_for_good():
    trials = Trials(wall_seconds=60, niceness=1)
    assert accepts(trials.outcome(OUTLINE, ask(True)))
    trials._wall_seconds = 0.3
    process = trials._idle.get()
    os.kill(process.pid, signal.SIGSTOP)
    trials._idle.put(process)
    outcome = trials.outcome(OUTLINE, ask(True))
    assert outcome.refusal is not None
    assert not outcome.certain
    trials.close()


def test_who_leaves_frees_the_place():
    trials, attempt = Trials(seconds=60, niceness=1), Attempt()
    Timer(0.5, attempt.stop).start()
    start = monotonic()
    with pytest.raises(Stopped):
        trials.outcome(OUTLINE, ask(ENDLESS["multiples"]), attempt)
    assert monotonic() - start < 10
    with pytest.raises(Stopped):
        trials.outcome(OUTLINE, ask(True), attempt)
    trials.close()


def test_a_process_that_ends_of_itself_is_a_bug(trials):
    with pytest.raises(RuntimeError, match="exited with 1"):
        trials.outcome(outline(StandIn(600, {}, [])), Ask(b"", b"not JSON"))


def test_hard_limits_that_are_there_stay():
    """Only root may raise one: nobody tries."""
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (300, 300)); "
        "resource.setrlimit = lambda kind, limits, true=resource.setrlimit: "
        "(resource.getrlimit(kind)[1] in (limits[1], -1) or 1 / 0) and true(kind, limits); "
        "import sys; sys.stdin = open(sys.argv[1]); "
        "from llamafast.chat.trial import answer_lines; answer_lines(4, 1)"
    )
    done = subprocess.run([sys.executable, "-c", script, os.devnull], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
