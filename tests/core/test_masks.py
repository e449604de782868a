"""Constrained sequences on a tiny model: the mask, forced tokens, and grammars that are late or fail."""

from __future__ import annotations

import ctypes
import threading
import time

import pytest
from support.masker_lanes import masking

from core.test_runner import Rig
from llamafast._core.constraint import Constraint


class Cycle:
    """A grammar of ``tokens`` one after another, and then nothing more.

    Behind every token that allows a second one (which must not be chosen) come ``forced`` that leave no choice.
    """

    def __init__(self, tokens, *, forced=0, pause=0.0, work=0.0, fails_at=None):
        self.tokens, self.at = list(tokens), 0
        self.forced, self.pause, self.work, self.fails_at = forced, pause, work, fails_at
        self.threads = set()
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def deep_copy(self):
        return self

    def consume_token(self, token):
        self.threads.add(threading.get_ident())
        assert token == self.tokens[self.at]
        self.at += 1
        return True

    def is_stopped(self):
        return self.at == len(self.tokens) or self.is_error()

    def is_error(self):
        return self.at == self.fails_at

    def get_error(self):
        return "too complex" if self.is_error() else ""

    def unsafe_compute_mask_ptr(self, pointer, n_bytes):
        assert self.may_go_on.wait(60)
        time.sleep(self.pause)
        until = time.thread_time() + self.work
        while time.thread_time() < until:
            pass
        words = (ctypes.c_uint32 * (n_bytes // 4)).from_address(pointer)
        ctypes.memset(words, 0, n_bytes)
        allowed = [self.tokens[self.at]] + [SECOND] * (self.at % (self.forced + 1) == 0)
        for token in allowed:
            words[token // 32] |= 1 << token % 32


@pytest.fixture(scope="module")
def rig(tiny_model):
    rig = Rig(tiny_model("tiny-llama"))
    with masking(rig.runner.masker) as rig.masking:
        yield rig
    rig.close()


def constrained(rig, tokens, tag=1, max_tokens=64, sampling=None, fast_forward=True, **grammar):
    matcher = Cycle(tokens, **grammar)
    constraint = Constraint(matcher, rig.vocab.n_tokens, fast_forward=fast_forward)
    sampling = {"logit_bias": [(SECOND, -1e9)], **(sampling or {"temperature": 1.0, "seed": tag})}
    return rig.sequence([40, 41, 42], tag=tag, max_tokens=max_tokens, constraint=constraint, sampling=sampling), matcher


def text_of(rig, tokens):
    return b"".join(map(rig.vocab.piece, tokens)).decode()


SECOND = 500
TOKENS = [72, 101, 108, 108, 111, 44, 32, 119, 111, 114, 108, 100]


@pytest.mark.parametrize("forced", [0, 1, 3, 64])
@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"temperature": 1.0, "top_p": 0.9}, {"top_k": 40}])
def test_only_what_the_grammar_allows_is_written(rig, forced, sampling):
    sequence, matcher = constrained(rig, TOKENS, forced=forced, sampling=sampling)
    steps = rig.runner.counts()["steps"]
    assert rig.run(sequence) == {1: (text_of(rig, TOKENS), len(TOKENS), 1)}
    assert matcher.threads == {rig.masking[0].ident}
    if forced == 64:
        # the first token is sampled, the others come without sampling
        assert rig.runner.counts()["steps"] - steps <= 4


def test_without_fast_forward_every_token_is_sampled(rig):
    sequence, _ = constrained(rig, TOKENS, forced=3, fast_forward=False)
    steps = rig.runner.counts()["steps"]
    assert rig.run(sequence)[1][:2] == (text_of(rig, TOKENS), len(TOKENS))
    assert rig.runner.counts()["steps"] - steps >= len(TOKENS)


def test_the_limit_cuts_forced_tokens_too(rig):
    sequence, _ = constrained(rig, TOKENS, forced=64, max_tokens=5)
    assert rig.run(sequence) == {1: (text_of(rig, TOKENS[:5]), 5, 2)}


def test_a_text_that_is_complete_at_the_limit_has_ended_by_itself(rig):
    sequence, _ = constrained(rig, TOKENS, forced=64, max_tokens=len(TOKENS))
    assert rig.run(sequence) == {1: (text_of(rig, TOKENS), len(TOKENS), 1)}


def test_a_stop_string_ends_a_constrained_text(rig):
    matcher = Cycle(TOKENS, forced=2)
    sequence = rig.sequence(
        [40],
        constraint=Constraint(matcher, rig.vocab.n_tokens),
        stops=(text_of(rig, TOKENS[3:5]).encode(),),
        sampling={"logit_bias": [(SECOND, -1e9)]},
    )
    assert rig.run(sequence)[1][0] == text_of(rig, TOKENS[:3])


def test_a_late_mask_delays_its_own_request_only(rig):
    slow, matcher = constrained(rig, TOKENS[:4], tag=1)
    matcher.may_go_on.clear()
    free = rig.sequence([50, 51], tag=2, max_tokens=60)
    alone = rig.run(rig.sequence([50, 51], tag=2, max_tokens=60))[2]
    rig.runner.add(slow)
    rig.runner.add(free)
    while not free.finished:
        rig.runner.run(1000)
        rig.tidy()
    assert not slow.finished
    matcher.may_go_on.set()
    texts = rig.collect()
    assert texts[2] == alone
    while rig.runner.n_running:
        rig.runner.run(1000)
        rig.tidy()
    assert texts.get(1, ("",))[0] + rig.collect()[1][0] == text_of(rig, TOKENS[:4])


def test_a_slow_grammar_has_a_thread_of_its_own(rig):
    slow, pathological = constrained(rig, TOKENS, tag=1, work=0.01)
    quick, matcher = constrained(rig, TOKENS, tag=2)
    texts = rig.run(slow, quick)
    assert texts[1] == texts[2] == (text_of(rig, TOKENS), len(TOKENS), 1)
    assert matcher.threads == {rig.masking[0].ident}
    assert pathological.threads == {rig.masking[1].ident}


def test_no_step_waits_for_a_slow_grammar(rig):
    slow, matcher = constrained(rig, TOKENS, tag=1, work=0.05)
    free = rig.sequence([50, 51], tag=2, max_tokens=60)
    rig.runner.add(slow)
    while matcher.at < 2:
        rig.runner.run(1)
    matcher.may_go_on.clear()
    rig.runner.add(free)
    while not free.finished:
        rig.runner.run(1000)
        rig.tidy()
    assert matcher.at < len(TOKENS)
    matcher.may_go_on.set()
    while rig.runner.n_running:
        rig.runner.run(1000)
        rig.tidy()
    assert rig.collect()[1][0] == text_of(rig, TOKENS)


def test_a_grammar_that_fails_refuses_its_own_request(rig):
    failing, _ = constrained(rig, TOKENS, tag=1, fails_at=3)
    free = rig.sequence([50, 51], tag=2)
    texts = rig.run(failing, free)
    assert texts[1][2] == 3
    assert texts[2][1:] == (16, 2)


def test_a_grammar_that_takes_too_long_refuses_its_own_request(rig):
    slow, matcher = constrained(rig, TOKENS, tag=1, work=0.25)
    free = rig.sequence([50, 51], tag=2)
    texts = rig.run(slow, free)
    assert texts[1][2] == 3
    assert matcher.at == 0
    assert texts[2][1:] == (16, 2)


def test_forced_tokens_are_not_looked_for_too_long(rig):
    sequence, _ = constrained(rig, TOKENS, forced=64, work=0.015)
    steps = rig.runner.counts()["steps"]
    assert rig.run(sequence)[1][:2] == (text_of(rig, TOKENS), len(TOKENS))
    assert rig.runner.counts()["steps"] - steps >= len(TOKENS) // 2


def test_a_preempted_sequence_goes_on_where_it_was(rig):
    sequence, _ = constrained(rig, TOKENS, pause=0.02)
    rig.runner.add(sequence)
    while sequence.n_tokens < 3 + 4:
        rig.runner.run(1)
    rig.runner.remove(sequence)
    before = rig.collect().get(1, ("",))[0]
    assert before + rig.run(sequence)[1][0] == text_of(rig, TOKENS)


def test_a_sequence_that_leaves_while_its_mask_is_computed(rig):
    for _ in range(20):
        sequence, _ = constrained(rig, TOKENS, pause=0.005)
        rig.runner.add(sequence)
        rig.runner.run(2)
        rig.runner.remove(sequence)
        del sequence
    rig.collect()
    finished, _ = constrained(rig, TOKENS)
    assert rig.run(finished)[1][0] == text_of(rig, TOKENS)


def test_bad_arguments(rig):
    with pytest.raises(ValueError, match="n_vocab"):
        Constraint(Cycle([1]), 0)
    with pytest.raises(TypeError):
        Constraint(None, 10)


def test_a_matcher_is_copied_by_the_thread_that_walks_it(rig):
    """Making Constraints is cheap, however many share a matcher."""
    copied = []

    class Shared:
        def deep_copy(self):
            copied.append(threading.get_ident())
            return Cycle(TOKENS)

    shared = Shared()
    constraints = [Constraint(shared, rig.vocab.n_tokens) for _ in range(3)]
    assert not copied
    bias = {"logit_bias": [(SECOND, -1e9)]}
    sequences = [rig.sequence([40, k], tag=k, constraint=one, sampling=bias) for k, one in enumerate(constraints)]
    answers = rig.run(*sequences)
    assert {text for text, _, _ in answers.values()} == {text_of(rig, TOKENS)}
    assert copied == [rig.masking[0].ident] * 3


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


@pytest.mark.parametrize("method", ["consume_token", "unsafe_compute_mask_ptr", "deep_copy"])
def test_a_panic_ends_the_request_with_a_line_in_the_log(rig, caplog, monkeypatch, method):
    sequence, matcher = constrained(rig, TOKENS)

    def panic(*_):
        raise Panic("index out of bounds:\nforged line")

    monkeypatch.setattr(matcher, method, panic)
    assert rig.run(sequence)[1][2] == 3
    assert "Panic: index out of bounds: forged line" in caplog.text


def test_a_reason_is_one_line_of_the_log(rig, caplog, monkeypatch):
    sequence, matcher = constrained(rig, TOKENS, fails_at=2)
    monkeypatch.setattr(matcher, "get_error", lambda: "too complex:\n\rforged " + "x" * 5000)
    assert rig.run(sequence)[1][2] == 3
    (record,) = caplog.records
    assert "too complex: forged xxx" in record.getMessage()
    assert len(record.getMessage().splitlines()) == 1
    assert len(record.getMessage()) < 600
