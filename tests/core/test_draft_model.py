"""Drafts of a small model: what its memory has of whom, and that texts are those without."""

from __future__ import annotations

import logging

import pytest
from msgspec.structs import asdict

from core.inside import proposed, set_call_times, set_times
from core.test_drafts import KINDS, told, works
from core.test_nextn import CALLS, GREEDY_WORKS
from core.test_runner import Rig
from llamafast._core.context import Batch, Context
from llamafast._core.draft_model import DraftModel
from llamafast._core.drafter import Drafter
from llamafast._core.model import Model
from llamafast._core.runner import Runner
from llamafast._core.step import PAUSED
from llamafast._core.vocab import Vocab
from llamafast.engine.pace import Pace
from recipes import tiny_gguf
from recipes.tiny_gguf_vocabulary import Vocabulary

CHAIN = "tiny-llama-chain"
LONG = [33 + (7 * k) % 200 for k in range(300)]


class Paired(Rig):
    """A Rig whose second runner drafts by a model of its own context, steps of any size take as long, and calls of that
    next to nothing."""

    def __init__(self, path, small, *, least=0.0, most=4, draft_ctx=2048, stretch=1.2, **settings):
        super().__init__(path, **settings)
        self.plain = self.runner
        model = Model(str(small))
        n_ids = self.context.n_seq_max * (2 if model.is_recurrent or model.is_hybrid else 1)
        one = {"n_threads": 1, "n_threads_batch": 1, "kv_unified": True, "flash_attn_type": 0}
        self.own = own = Context(model, n_ctx=draft_ctx, n_batch=128, n_ubatch=128, n_seq_max=n_ids, **one)
        self.model = DraftModel(self.context, own, n_shared=self.vocab.n_tokens, least=least)
        set_call_times(self.model, **CALLS)
        self.drafter = Drafter(
            self.context, most=most, most_sequences=64, looks_up=False, answers_bytes=0, model=self.model
        )
        set_times(self.drafter, [1.0] * 64)
        pace = asdict(Pace(draft_stretch=stretch, target_itl=100.0, prefill_seconds=100.0))
        self.drafting = Runner(self.context, self.vocab, self.outbox, pace=pace, drafter=self.drafter)

    def both(self, run):
        """What ``run`` gives without drafts, what it gives with, and what was counted meanwhile."""
        self.runner = self.plain
        expected = run(self)
        self.runner = self.drafting
        before = self.counts()
        got = run(self)
        return expected, got, self.since(before)

    def counts(self):
        return self.drafting.counts()

    def since(self, before):
        return {key: value - before[key] for key, value in self.counts().items()}


@pytest.fixture(scope="module")
def rigs(tiny_model):
    made = {}

    def rig_of(name, small, **settings):
        key = (name, small, *sorted(settings.items()))
        if key not in made:
            made[key] = Paired(tiny_model(name), tiny_model(small), **settings)
        return made[key]

    yield rig_of
    for rig in made.values():
        rig.close()


@pytest.mark.parametrize("n", [1, 4])
def test_a_model_that_drafts_for_itself_is_always_right(rigs, n):
    expected, got, counts = rigs(CHAIN, CHAIN).both(lambda rig: told(rig, GREEDY_WORKS[:n]))
    assert got[:2] == expected[:2]
    assert counts["draft_tokens_accepted"] == counts["draft_tokens_verified"] > 0.7 * 60 * n
    assert counts["draft_model_accepted"] == counts["draft_tokens_accepted"]
    assert got[2] < expected[2] / 3
    assert counts["model_failures"] == 0


@pytest.mark.parametrize("small", ["tiny-llama", "tiny-gemma3-swa", "tiny-qwen35", "tiny-mamba"])
def test_whatever_its_memory_is_it_drafts_what_it_would_say(tiny_model, small):
    """A memory that is cut, and states that are not: what is drafted is what it says alone after the same tokens."""
    alone, rig = Rig(tiny_model(small)), Paired(tiny_model("tiny-llama"), tiny_model(small))
    rig.runner = rig.drafting
    sequence = rig.sequence([40, 50, 60, 70], 1, max_tokens=40, ignore_eos=True)
    rig.runner.add(sequence)
    n_drafted = 0
    while not sequence.finished:
        before = list(sequence.tokens())
        rig.runner.run(1)
        if drafted := proposed(sequence):
            said = alone.sequence(before, 1, max_tokens=len(drafted), ignore_eos=True)
            alone.run(said)
            assert list(said.tokens())[len(before) :] == drafted
            n_drafted += 1
    rig.tidy()
    assert n_drafted >= 4
    assert rig.counts()["model_failures"] == 0
    rig.close()
    alone.close()


@pytest.mark.parametrize(("small", "settings"), [("tiny-qwen35", {"n_rs_seq": 4}), ("tiny-gemma3-swa", {})])
def test_a_model_of_another_memory_that_drafts_for_itself_is_right(rigs, small, settings):
    rig = rigs(small, small, **settings)
    prompts = [([33 + 5 * tag + k for k in range(6)], tag, {"max_tokens": 40}) for tag in range(4)]
    expected, got, counts = rig.both(lambda rig: told(rig, prompts))
    assert got[:2] == expected[:2]
    assert counts["draft_tokens_accepted"] > 0.95 * counts["draft_tokens_verified"] > 50


# kinds that differ from others only in how cells are divided, or what is computed with them
OTHERS = ("window, full", "window, partitioned", "experts", "flash", "q8_0")


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.heavy) if kind in OTHERS else kind for kind in KINDS]
)
def test_texts_do_not_depend_on_the_draft_model(rigs, kind):
    """Of all ways to sample, of prompts that come while others decode, in every memory that drafts are for."""
    name, settings = KINDS[kind]
    rig = rigs(name, "tiny-llama", **settings)
    for n in (1, 4, 16):
        expected, got, counts = rig.both(lambda rig, n=n: told(rig, works(n), late=n // 3))
        assert got[:2] == expected[:2]
        assert counts["model_failures"] == 0
    assert rig.counts()["model_calls"] > 0


def test_a_model_that_knows_nothing_is_soon_asked_no_more(tiny_model):
    """Where a row costs a fifth of a step."""
    rig = Paired(tiny_model("tiny-llama"), tiny_model("tiny-qwen3moe"))
    set_times(rig.drafter, [1 + 0.2 * k for k in range(64)])
    every = [([33 + 11 * tag, 50, 60], tag, {"max_tokens": 60, "ignore_eos": True}) for tag in range(6)]
    expected, got, counts = rig.both(lambda rig: [told(rig, [work])[:2] for work in every])
    assert got == expected
    again, got, later = rig.both(lambda rig: [told(rig, [work])[:2] for work in every])
    assert got == again
    assert 0 < counts["draft_tokens_verified"] < 6 * 60 / 4
    assert later["model_calls"] < 6 * 60 / 8
    rig.close()


def test_what_was_wrong_is_tried_again_where_all_texts_are_long(tiny_model):
    """Nobody's text is near, for none is computed any more: once in so many steps one is all the same."""
    rig = Paired(tiny_model("tiny-llama"), tiny_model("tiny-qwen3moe"))
    rig.runner = rig.drafting
    set_times(rig.drafter, [1 + 0.2 * k for k in range(64)])
    for tag in range(6):
        rig.run(rig.sequence([33 + 11 * tag, 50, 60], tag, max_tokens=60, ignore_eos=True))
    before = rig.counts()
    for tag in range(4):
        rig.run(rig.sequence([34 + 11 * tag, *LONG[:60]], tag, max_tokens=100, ignore_eos=True))
    counts = rig.since(before)
    assert 0 < counts["draft_tokens_proposed"] < 8
    assert counts["model_calls"] < 4 * 100 / 8
    rig.close()


def test_a_prompt_is_fed_in_slices_while_it_is_computed(rigs):
    """When the first token comes the small model's memory lacks little."""
    rig = rigs(CHAIN, CHAIN)
    rig.runner = rig.drafting
    before = rig.counts()
    rig.run(rig.sequence(LONG, 1, max_tokens=40))
    counts = rig.since(before)
    assert counts["draft_tokens_accepted"] == counts["draft_tokens_verified"] > 25
    assert len(LONG) <= counts["model_rows"] < len(LONG) + 60


def test_a_slice_takes_its_share_of_a_step(tiny_model):
    """A call of the small model takes as long as a step here: a row or none, where a step may be no longer, and the
    prompt goes on being computed."""
    rig = Paired(tiny_model(CHAIN), tiny_model(CHAIN))
    rig.runner = rig.drafting
    set_times(rig.drafter, [1e-7] * 64)
    before = rig.counts()
    rig.run(rig.sequence(LONG, 1, max_tokens=40))
    assert rig.since(before)["model_calls"] == 0
    rig.close()


def test_no_prompt_is_fed_for_an_answer_that_is_too_short(rigs):
    rig = rigs(CHAIN, CHAIN)
    rig.runner = rig.drafting
    before = rig.counts()
    rig.run(rig.sequence(LONG[:200], 1, max_tokens=1))
    assert rig.since(before)["model_rows"] == 0


def test_who_was_away_goes_on_being_drafted_for(rigs):
    rig = rigs(CHAIN, CHAIN)
    rig.runner = rig.drafting
    first = rig.sequence(LONG[:100], 1, max_tokens=80)
    rig.runner.add(first)
    while first.n_tokens < 130:
        rig.runner.run(1)
    rig.runner.remove(first)
    other = rig.sequence([90, 91, 92], 2, max_tokens=20)
    rig.run(other)
    before = rig.counts()
    rig.run(first)
    counts = rig.since(before)
    assert counts["draft_tokens_accepted"] == counts["draft_tokens_verified"] > 30


def test_what_one_has_another_of_its_salt_is_lent(rigs):
    """A second turn, choices of one prompt, somebody who follows: nothing is computed twice, but for strangers."""
    rig = rigs(CHAIN, CHAIN)
    rig.runner = rig.drafting
    prompt = [34, *LONG[:200]]

    def rows(*sequences):
        before = rig.counts()
        rig.run(*sequences)
        counts = rig.since(before)
        assert counts["draft_tokens_accepted"] == counts["draft_tokens_verified"] > 0
        return counts["model_rows"] - counts["draft_tokens_verified"]

    first = rig.sequence(prompt, 1, max_tokens=30)
    assert rows(first) >= len(prompt)
    second = rig.sequence([*first.tokens(), 40, 41], 2, max_tokens=30)
    assert rows(second) < 60
    choices = [rig.sequence([*prompt, 77], tag, max_tokens=30) for tag in range(3, 7)]
    assert rows(*choices) < 4 * 60
    assert rows(rig.sequence(prompt, 8, max_tokens=30, salt=b"other")) >= len(prompt)


def test_a_restored_prefix_is_caught_up(rigs):
    rig = rigs(CHAIN, CHAIN)
    rig.runner = rig.plain
    saver = rig.sequence(LONG[:150], 1, max_tokens=4)
    rig.runner.add(saver)
    saver.save_at = 128
    while saver.n_past < 128:
        rig.runner.run(1)
    saved = rig.runner.save(saver, 0, 128)
    rig.runner.remove(saver)
    rig.collect()
    rig.runner = rig.drafting
    before = rig.counts()
    other = rig.sequence(LONG[:150], 2, max_tokens=60)
    rig.runner.add(other, 128)
    assert rig.runner.restore(other, saved, 0, 128)
    while not other.finished:
        assert rig.runner.run(1) >= PAUSED
    rig.tidy()
    rig.collect()
    counts = rig.since(before)
    assert counts["draft_tokens_accepted"] == counts["draft_tokens_verified"] > 30


def test_who_finds_no_room_in_its_memory_waits(tiny_model):
    """Too small for all of them: nobody fails, whoever is there is drafted for, and texts are those without."""
    rig = Paired(tiny_model(CHAIN), tiny_model(CHAIN), draft_ctx=256)
    every = [([33 + k, *LONG[:90]], k, {"max_tokens": 60, "ignore_eos": True}) for k in range(8)]
    for _ in range(2):
        expected, got, counts = rig.both(lambda rig: told(rig, every))
        assert got[:2] == expected[:2]
        assert counts["model_failures"] == 0
        assert counts["draft_tokens_accepted"] == counts["draft_tokens_verified"] > 0
    rig.close()


def test_what_was_paid_for_is_decoded(tiny_model):
    """A call that is dearer than what nobody has saved yet may cost: whoever was asked is heard."""
    rig = Paired(tiny_model(CHAIN), tiny_model(CHAIN))
    set_call_times(rig.model, fixed=0.6, per_row=0.0, per_fed=0.0)
    expected, got, counts = rig.both(lambda rig: told(rig, GREEDY_WORKS[:1]))
    assert got[:2] == expected[:2]
    assert counts["draft_tokens_accepted"] == counts["draft_tokens_verified"] > 10
    rig.close()


def test_a_draft_model_that_fails_costs_nobody_anything(tiny_model, caplog):
    """It is told once, steps go on without drafts, and after a while it drafts again."""
    rig = Paired(tiny_model(CHAIN), tiny_model(CHAIN), draft_ctx=512)
    prompt = [50, *LONG[:40]]
    rig.runner = rig.plain
    expected = rig.run(rig.sequence(prompt, 1, max_tokens=80))
    rig.runner = rig.drafting
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            rig.runner.forget_answers()
            occupied = Batch(128)
            for start in range(0, 512, 128):
                occupied.clear()
                for k in range(start, start + 128):
                    occupied.add(40, k, 15, False)
                rig.own.decode(occupied)
            before = rig.counts()
            assert rig.run(rig.sequence(prompt, 1, max_tokens=80)) == expected
            counts = rig.since(before)
            assert counts["model_failures"] == 1
            assert counts["draft_tokens_verified"] == 0
            for k in range(4):
                rig.run(rig.sequence([200 - k, 50, 60], k, max_tokens=100, ignore_eos=True))
            assert rig.since(before)["draft_tokens_accepted"] > 60
    assert caplog.text.count("llama_decode returned 1 to who drafts") == 1
    rig.close()


def test_tokens_below_a_probability_are_not_drafted(tiny_model):
    rig = Paired(tiny_model("tiny-llama"), tiny_model("tiny-llama"), least=0.9)
    expected, got, counts = rig.both(lambda rig: told(rig, GREEDY_WORKS))
    assert got[:2] == expected[:2]
    assert counts["model_calls"] > 0
    assert counts["draft_tokens_verified"] < 10
    rig.close()


def test_who_wants_no_drafts_is_not_computed_for(rigs):
    rig = rigs(CHAIN, CHAIN)
    rig.runner = rig.drafting
    before = rig.counts()
    rig.run(rig.sequence(LONG[:120], 1, max_tokens=40, speculative=False))
    assert rig.since(before)["model_rows"] == 0


def test_what_was_forgotten_is_computed_anew(rigs):
    rig = rigs(CHAIN, CHAIN)
    rig.runner = rig.drafting
    prompt = [35, *LONG[:100]]
    for forgets, more in ((False, False), (True, True)):
        rig.run(rig.sequence(prompt, 1, max_tokens=30))
        if forgets:
            rig.runner.forget_answers()
        before = rig.counts()
        rig.run(rig.sequence(prompt, 2, max_tokens=30))
        assert (rig.since(before)["model_rows"] > len(prompt)) == more


def test_a_draft_model_needs_room_and_the_vocabulary(tiny_model):
    rig = Rig(tiny_model("tiny-llama"))
    one = {"n_threads": 1, "n_threads_batch": 1, "kv_unified": True}
    own = Context(Model(str(tiny_model("tiny-mamba"))), n_ctx=256, n_batch=64, n_ubatch=64, n_seq_max=16, **one)
    with pytest.raises(ValueError, match="room for 16 sequences: 16 may run"):
        DraftModel(rig.context, own, n_shared=512, least=0.0)
    own = Context(rig.context.model, n_ctx=256, n_batch=64, n_ubatch=64, n_seq_max=16, **one)
    with pytest.raises(ValueError, match="513 tokens in common of 512"):
        DraftModel(rig.context, own, n_shared=513, least=0.0)
    rig.close()


def test_vocabularies_differ_where_tokens_stand_for_something_else(tiny_model, tmp_path):
    tiny_gguf.llama(tmp_path / "larger.gguf", Vocabulary(520))
    paths = tiny_model("tiny-llama"), tiny_model("tiny-mamba"), tmp_path / "larger.gguf"
    vocab, same, larger = (Vocab(Model(str(path), vocab_only=True)) for path in paths)
    assert vocab.differing(same, 3) == vocab.differing(vocab, 3) == []
    assert vocab.differing(larger, 2) == larger.differing(vocab, 2)
    assert len(vocab.differing(larger, 2)) == 2
    assert len(vocab.differing(larger, 1000)) < 1000
