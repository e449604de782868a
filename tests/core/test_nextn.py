"""Drafts of a model's own head: what it needs of a step, and that texts are those without."""

from __future__ import annotations

import pytest
from msgspec.structs import asdict

from core.inside import set_call_times, set_times
from core.test_drafts import told, works
from core.test_runner import Rig
from llamafast._core.context import Context
from llamafast._core.drafter import Drafter
from llamafast._core.model import Model
from llamafast._core.nextn import Head, available
from llamafast._core.runner import Runner
from llamafast.engine.pace import Pace

HEAD = {"n_threads": 1, "n_threads_batch": 1}
# Beside steps of a second.
CALLS = {"fixed": 1e-3, "per_row": 1e-4, "per_fed": 1e-5}


class Headed(Rig):
    """A Rig whose second runner drafts by the model's head, steps of any size take as long, and calls of it next to
    nothing."""

    def __init__(self, path, *, least=0.0, **settings):
        super().__init__(path, with_heads=True, n_rs_seq=4, **settings)
        self.plain = self.runner
        self.head = Head(self.context, self.model, least=least, **HEAD)
        set_call_times(self.head, **CALLS)
        self.drafter = Drafter(self.context, most=4, most_sequences=64, looks_up=False, answers_bytes=0, head=self.head)
        set_times(self.drafter, [1.0] * 64)
        self.headed = Runner(self.context, self.vocab, self.outbox, pace=asdict(Pace()), drafter=self.drafter)

    def both(self, run):
        """What ``run`` gives without drafts, what it gives with, and what was counted meanwhile."""
        self.runner = self.plain
        expected = run(self)
        self.runner = self.headed
        before = self.headed.counts()
        got = run(self)
        after = self.headed.counts()
        return expected, got, {key: after[key] - before[key] for key in after}


@pytest.fixture(scope="module")
def rigs(tiny_model):
    made = {}

    def rig_of(name):
        if name not in made:
            made[name] = Headed(tiny_model(name))
        return made[name]

    yield rig_of
    for rig in made.values():
        rig.close()


GREEDY_WORKS = [([40 + 7 * tag, 50, 60], tag, {"max_tokens": 60}) for tag in range(4)]


@pytest.mark.parametrize("n", [1, 4])
def test_a_head_that_says_what_the_model_says_is_always_right(rigs, n):
    expected, got, counts = rigs("tiny-qwen35-mtp-chain").both(lambda rig: told(rig, GREEDY_WORKS[:n]))
    assert got[:2] == expected[:2]
    assert counts["draft_tokens_accepted"] == counts["draft_tokens_verified"] > 0.7 * 60 * n
    assert got[2] < expected[2] / 3
    assert counts["head_failures"] == 0


def test_a_head_that_is_wrong_for_a_third_is_right_for_two(rigs):
    """Of whatever loop the chain is in."""
    every = [([50, 60, 40 + 23 * tag], tag, {"max_tokens": 60}) for tag in range(16)]
    expected, got, counts = rigs("tiny-qwen35-mtp-chain70").both(lambda rig: told(rig, every))
    assert got[:2] == expected[:2]
    first = sum(counts[f"draft_length_{k}"] for k in range(1, 5)) / counts["draft_batches_verified"]
    assert first >= 0.6


@pytest.mark.parametrize("name", ["tiny-qwen35-mtp", "tiny-qwen35-mtp-chain70"])
def test_texts_do_not_depend_on_the_head(rigs, name):
    """Of all ways to sample, of prompts that come while others decode."""
    for n in (1, 4, 16):
        expected, got, counts = rigs(name).both(lambda rig, n=n: told(rig, works(n), late=n // 3))
        assert got[:2] == expected[:2]
        assert counts["head_calls"] > 0


def test_a_sequence_goes_on_being_drafted_for_after_it_was_away_and_with_a_prefix_of_others(rigs):
    rig = rigs("tiny-qwen35-mtp-chain")
    rig.runner = rig.headed
    first = rig.sequence([40, 50, 60], 1, max_tokens=60)
    rig.runner.add(first)
    for _ in range(6):
        rig.runner.run(1)
    rig.runner.remove(first)
    before = rig.runner.counts()
    rig.run(first)
    after = rig.runner.counts()
    assert after["draft_tokens_accepted"] - before["draft_tokens_accepted"] > 15
    leader = rig.sequence([40, 50, 60, *range(70, 130)], 2, max_tokens=40)
    rig.runner.add(leader)
    for _ in range(3):
        rig.runner.run(1)
    follower = rig.sequence([*leader.tokens(), 90], 3, max_tokens=40)
    rig.runner.add(follower)
    before = rig.runner.counts()
    while rig.runner.n_running:
        rig.runner.run(1)
        rig.runner.check()
        rig.tidy()
    after = rig.runner.counts()
    drafted, accepted = (
        after[f"draft_tokens_{key}"] - before[f"draft_tokens_{key}"] for key in ("verified", "accepted")
    )
    assert accepted == drafted > 40
    rig.collect()


def test_tokens_below_a_probability_are_not_drafted(tiny_model):
    rig = Headed(tiny_model("tiny-qwen35-mtp"), least=0.9)
    expected, got, counts = rig.both(lambda rig: told(rig, GREEDY_WORKS))
    assert got[:2] == expected[:2]
    assert counts["head_calls"] > 0
    assert counts["draft_tokens_verified"] < 10


def test_a_head_that_fails_costs_nobody_anything(tiny_model):
    """Its memory is full: whoever is drafted for begins anew."""
    rig = Headed(tiny_model("tiny-qwen35-mtp-chain"), n_ctx=256)
    works = [([33 + k, *range(60, 100)], k, {"max_tokens": 60}) for k in range(8)]
    for _ in range(4):
        expected, got, counts = rig.both(lambda rig: {k: v for w in works for k, v in told(rig, [w])[1].items()})
        assert got == expected
        assert counts["draft_tokens_accepted"] > 100


def test_models_without_a_head_have_none(tiny_model):
    assert available()
    model = Model(str(tiny_model("tiny-qwen35")), with_heads=True)
    context = Context(model, n_ctx=256, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1)
    with pytest.raises(ValueError, match="no head"):
        Head(context, model, least=0.0, **HEAD)
    left_out = Model(str(tiny_model("tiny-qwen35-mtp")))
    context = Context(left_out, n_ctx=256, n_batch=64, n_ubatch=64, n_threads=1, n_threads_batch=1)
    assert left_out.n_heads == 1
    with pytest.raises(ValueError, match="no head"):
        Head(context, left_out, least=0.0, **HEAD)
