"""Adapters that a prompt invokes: rows before that place are as without them, those behind it as with them, and nobody
takes from another what is not as its own would be."""

from __future__ import annotations

from array import array
from struct import iter_unpack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.inside import logits_of, n_cached
from core.test_adapters import PROMPT, adapter_of, apart, merged, said, sequence
from core.test_logprobs import tell
from core.test_runner import Rig
from llamafast._core.invocation import Invocation
from llamafast._core.step import FINISHED, PAUSED, SAVE_DUE

NAME = "lora-tiny-llama"
# tokens that running prefixes are found by
BLOCK = 16
MODES = {
    "mixed": {},
    "in turns": {"bare": True},
    "partitioned": {"kv_unified": False},
    "few rows": {"n_batch": 8},
}


def invoking(at, group=1, salt=b"adapters"):
    return Invocation(at=at, group=group, salt=salt + b"%d" % group, seed=group)


def with_adapter(path, **settings):
    rig = Rig(path, n_seq_max=6, **settings)
    rig.context.adapters.define(1, [(adapter_of(rig, NAME), 1.0)])
    rig.context.adapters.define(2, [(adapter_of(rig, "lora-tiny-llama-2"), 1.0)])
    rig.context.adapters.define(3, [(adapter_of(rig, NAME), 1.0), (adapter_of(rig, "lora-tiny-llama-2"), 1.0)])
    return rig


def logprobs(logits):
    values = np.frombuffer(logits, np.float32).astype(np.float64)
    return values - values.max() - np.log(np.exp(values - values.max()).sum())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at", [1, 16, 23, len(PROMPT) - 1])
def test_it_is_as_llama_cpp_computes_one_part_after_the_other(tiny_model, mode, at):
    rig = with_adapter(tiny_model("tiny-llama"), type_k=0, type_v=0, **MODES[mode])
    told = said(rig, invocation=invoking(at))
    adapter, n_vocab = adapter_of(rig, NAME), rig.vocab.n_tokens
    pieces = [(array("i", PROMPT[:at]), None), (array("i", PROMPT[at:]), adapter)]
    pieces += [(array("i", [token]), adapter) for token, _, _ in told[:-1]]
    _, *expected = map(logprobs, logits_of(rig.model, n_vocab, pieces))
    for (token, logprob, top), row in zip(told, expected, strict=True):
        assert abs(logprob - row[token]) < 1e-3
        assert all(abs(one - row[other]) < 1e-3 for other, one in top)
    assert told != said(rig)
    assert told != said(rig, group=1)
    rig.close()


@pytest.mark.parametrize("at", [9, 32])
def test_it_is_as_merged_weights_behind_the_base_models_memory(tiny_model, tmp_path, at):
    base = Rig(tiny_model("tiny-llama"))
    whole = Rig(merged(tiny_model("tiny-llama"), NAME, 1.0, tmp_path / "merged.gguf"))
    rig = with_adapter(tiny_model("tiny-llama"))
    told = said(rig, invocation=invoking(at))
    before = base.sequence(PROMPT[: at + 1], 1)
    before.save_at = at
    base.runner.add(before)
    while before.n_past < at:
        base.runner.run(1)
    saved = base.runner.save(before, 0, at)
    behind = sequence(whole)
    whole.runner.add(behind, at)
    assert whole.runner.restore(behind, saved, 0, at)
    expected = finish(whole, behind)
    assert apart(told, expected) < 1e-3
    for one in (base, whole, rig):
        one.close()


def finish(rig, running):
    """Log probabilities of one that runs, to its end."""
    found = []
    while rig.runner.n_running:
        assert rig.runner.run(1) in (FINISHED, PAUSED, SAVE_DUE)
        rig.tidy()
        for _, _, _, _, _, told, *_ in rig.outbox.drain():
            if told is not None:
                pairs = list(iter_unpack("if", told[1]))
                found += [(*pairs[at], pairs[at + 1 : at + 4]) for at in range(0, len(pairs), 4)]
    assert running.finished
    return found


AT = 35
# what each of several prompts of the same tokens may take of another: all but its last token, up to where either
# invokes what the other does not, or nothing
KINDS = {
    "plain": dict,
    "invoking": lambda: {"invocation": invoking(AT)},
    "later": lambda: {"invocation": invoking(AT + 2)},
    "another": lambda: {"invocation": invoking(AT, 2)},
    "always": lambda: {"group": 1},
}
TAKES = {
    ("plain", "invoking"): AT, ("plain", "later"): AT + 2, ("plain", "another"): AT,
    ("invoking", "later"): AT, ("invoking", "another"): AT, ("later", "another"): AT,
}  # fmt: skip


@pytest.mark.parametrize("mode", ["mixed", "in turns"])
def test_what_is_before_it_is_shared_and_no_more(tiny_model, mode):
    rig = with_adapter(tiny_model("tiny-llama"), **MODES[mode])
    alone = {kind: rig.run(sequence(rig, 1, **options()))[1] for kind, options in KINDS.items()}
    assert len({text for text, *_ in alone.values()}) == len(KINDS)
    for first in KINDS:
        for second in KINDS:
            both = [sequence(rig, tag, **KINDS[kind]()) for tag, kind in enumerate((first, second))]
            assert rig.run(*both) == {0: alone[first], 1: alone[second]}
            most = len(PROMPT) - 1 if first == second else TAKES.get((first, second), TAKES.get((second, first), 0))
            assert [n_cached(one) for one in both] == [0, most]
    rig.close()


def test_a_step_ends_where_it_is_invoked(tiny_model):
    rig = with_adapter(tiny_model("tiny-llama"))
    one = sequence(rig, invocation=invoking(20))
    rig.runner.add(one)
    assert rig.runner.run(1) == PAUSED
    assert (one.n_past, one.group) == (20, 1)
    assert rig.runner.run(1) == PAUSED
    assert one.n_past == len(PROMPT)
    rig.runner.remove(one)
    rig.collect()
    # one that was taken out begins again as the model itself
    expected = said(rig, invocation=invoking(20))
    rig.runner.add(one)
    assert [token for token, _, _ in finish(rig, one)] == [token for token, _, _ in expected[1:]]
    rig.close()


def test_a_group_of_its_own_may_go_before_it(tiny_model):
    rig = with_adapter(tiny_model("tiny-llama"))
    both = said(rig, group=2, invocation=invoking(20, 3))
    assert both != said(rig, group=2)
    assert both != said(rig, invocation=invoking(20, 3))
    first, second = sequence(rig, 1, group=2), sequence(rig, 2, group=2, invocation=invoking(20, 3))
    told = tell(rig, first, second, n_top=3)
    assert n_cached(second) == 20
    assert apart(told[2][2], both) < 1e-3
    rig.close()


def test_what_is_no_invocation(tiny_model):
    rig = with_adapter(tiny_model("tiny-llama"))
    for at, group in ((0, 1), (-1, 1), (5, 0), (5, 128)):
        with pytest.raises(ValueError, match="from token"):
            invoking(at, group)
    with pytest.raises(ValueError, match="an invocation at token 40 of 40"):
        sequence(rig, invocation=invoking(len(PROMPT)))
    rig.close()


# prompts that share much, and places in them on both sides of the ends of blocks
PROMPTS = [[*PROMPT, *range(40 + 7 * k, 60 + 7 * k)] for k in range(2)] + [PROMPT[:33]]
JOBS = st.tuples(
    st.integers(0, len(PROMPTS) - 1),
    st.sampled_from([None, 1, BLOCK - 1, BLOCK, BLOCK + 1, 30, 32]),
    st.sampled_from([0, 2]),
    st.sampled_from([1, 3]),
    st.sampled_from([b"", b"tenant"]),
)


@pytest.fixture(scope="module", params=["mixed", pytest.param("in turns", marks=pytest.mark.heavy)])
def rigs(request, tiny_model):
    both = [with_adapter(tiny_model("tiny-llama"), drafts={}, **MODES[request.param]) for _ in range(2)]
    yield (*both, {})
    for rig in both:
        rig.close()


def made(rig, tag, job, max_tokens=14):
    prompt, at, before, group, tenant = job
    invocation = None if at is None else invoking(at, group, b"%d %b" % (before, tenant))
    options = {"group": before, "salt": b"%d %b" % (before, tenant), "invocation": invocation, "ignore_eos": True}
    return rig.sequence(PROMPTS[prompt], tag, max_tokens=max_tokens, show_control=True, **options)


@settings(max_examples=10)
@given(st.lists(st.tuples(JOBS, st.sampled_from([0, 0, 1, 3]), st.booleans()), min_size=2, max_size=12))
def test_nobody_is_given_what_another_has_computed_otherwise(rigs, jobs):
    """Some come later, some are taken out and come again: what each says is what it says alone."""
    rig, alone, truths = rigs
    for job, _, _ in jobs:
        if job not in truths:
            truths[job] = alone.run(made(alone, 1, job))[1][0]
            alone.runner.clear()
    waiting = [(made(rig, tag, job), later, again) for tag, (job, later, again) in enumerate(jobs)]
    texts = dict.fromkeys(range(len(jobs)), "")
    while waiting or rig.runner.n_running:
        while waiting and rig.runner.n_free:
            one, later, again = waiting.pop(0)
            rig.runner.add(one)
            for _ in range(later):
                rig.runner.run(1)
            if again and not one.finished:
                rig.runner.remove(one)
                waiting.append((one, 0, False))
        rig.runner.run(1)
        rig.runner.check()
        rig.tidy()
        for tag, (text, _, _) in rig.collect().items():
            texts[tag] += text
    assert texts == {tag: truths[job] for tag, (job, _, _) in enumerate(jobs)}
