"""Prompts in a context of their own, on a tiny model."""

from __future__ import annotations

import threading
import time
from array import array

import pytest
from msgspec.structs import asdict

from core.inside import n_cached
from core.test_runner import Rig
from llamafast._core.context import Context
from llamafast._core.model import Model
from llamafast._core.prefiller import Prefiller, suits
from llamafast._core.runner import Runner
from llamafast._core.step import FINISHED, PAUSED, PREFILLED
from llamafast.engine.pace import Pace

LONG = array("i", [(5 * k) % 300 + 33 for k in range(400)])
SETTINGS = {"n_ctx": 2048, "n_batch": 512, "n_ubatch": 512, "n_threads": 1, "n_threads_batch": 1, "flash_attn_type": 0}


@pytest.fixture
def rig(tiny_model):
    """A Rig whose Runner gives slices to ``rig.prefiller``, hardly any time to each."""
    rig = Rig(tiny_model("tiny-llama"), n_batch=512)
    rig.prefiller = Prefiller(Context(rig.model, **SETTINGS, n_seq_max=2, kv_unified=True))
    pace = asdict(Pace(target_itl=1e-9))
    rig.runner = Runner(rig.context, rig.vocab, rig.outbox, pace=pace, prefiller=rig.prefiller)
    rig.thread = threading.Thread(target=rig.prefiller.run)
    rig.thread.start()
    yield rig
    rig.prefiller.close()
    rig.thread.join(10)
    assert not rig.thread.is_alive()
    rig.close()


def test_others_go_on_between_slices_and_the_text_is_the_same(rig):
    expected = rig.run(rig.sequence(LONG, 2, max_tokens=20))[2]
    decoding, long = rig.sequence([40], 1, max_tokens=2000), rig.sequence(LONG, 2, max_tokens=20)
    rig.runner.add(decoding)
    assert rig.runner.run(5) == PAUSED
    before = decoding.n_tokens
    rig.runner.add(long, apart=True)
    rig.prefiller.add(0, LONG, 0, 399)
    rig.prefiller.begin()
    assert rig.prefiller.working
    assert rig.runner.run(1 << 20) == PREFILLED
    assert (rig.prefiller.working, rig.prefiller.code, long.n_past) == (False, 0, 0)
    assert decoding.n_tokens - before > 3
    assert rig.runner.counts()["prompt_tokens"] == 400 + 1 + 399
    rig.runner.prefilled(long, 399)
    for start, stop in ((0, 150), (150, 399)):
        assert rig.runner.restore(long, rig.prefiller.save(0, start, stop), start, stop)
    rig.collect()
    while not long.finished:
        assert rig.runner.run(1 << 20) == FINISHED
    assert rig.collect()[2] == expected
    assert n_cached(long) == 0
    rig.runner.clear()


@pytest.mark.parametrize("max_tokens", [1, 20])
def test_the_first_token_is_chosen_from_the_prefillers_logits(rig, max_tokens):
    expected = rig.run(rig.sequence(LONG, 2, max_tokens=max_tokens))[2]
    before = rig.runner.counts()
    long = rig.sequence(LONG, 2, max_tokens=max_tokens)
    rig.runner.add(long, 120, apart=True)
    assert rig.prefiller.add(0, LONG, 0, 300) == 299
    rig.prefiller.begin()
    assert rig.runner.run(1 << 20) == PREFILLED
    rig.prefiller.settle()
    assert rig.prefiller.add(1, LONG, 0, 20) == 19
    row = rig.prefiller.add(0, LONG, 300, 400, True)
    assert row == 119
    rig.prefiller.begin()
    assert rig.runner.run(1 << 20) == PREFILLED
    with pytest.raises(ValueError, match="row 119 for 399 of 400"):
        rig.runner.prefilled(long, 399, row)
    with pytest.raises(ValueError, match="row 118 for 400 of 400"):
        rig.runner.prefilled(long, 400, 118)
    rig.runner.prefilled(long, 400, row)
    assert (long.n_tokens, n_cached(long), long.finished) == (401, 120, max_tokens == 1)
    assert rig.runner.restore(long, rig.prefiller.save(0, 0, 400), 0, 400)
    while not long.finished:
        assert rig.runner.run(1 << 20) == FINISHED
    assert rig.collect()[2] == expected
    after = rig.runner.counts()
    assert after["generated_tokens"] - before["generated_tokens"] == max_tokens
    # none but the Prefiller's two, and one for each token after the first
    assert after["steps"] - before["steps"] == 2 + max_tokens - 1
    assert n_cached(long) == 120
    rig.runner.clear()


def test_what_cannot_be_restored_after_the_first_token_is_computed(rig):
    expected = rig.run(rig.sequence(LONG, 1, max_tokens=9))[1]
    sequence = rig.sequence(LONG, 1, max_tokens=9)
    rig.runner.add(sequence, apart=True)
    row = rig.prefiller.add(0, LONG, 0, 400, True)
    rig.prefiller.begin()
    assert rig.runner.run(1 << 20) == PREFILLED
    rig.runner.prefilled(sequence, 400, row)
    assert not rig.runner.restore(sequence, b"no state", 0, 400)
    while not sequence.finished:
        assert rig.runner.run(1 << 20) == FINISHED
    assert rig.collect()[1] == expected
    rig.runner.clear()


def test_a_last_token_is_not_computed_beside_the_prefiller(rig):
    """All before it may be there already: somebody who asks the same waits for just that."""
    expected = rig.run(rig.sequence(LONG, 1, max_tokens=9))[1]
    sequence = rig.sequence(LONG, 1, max_tokens=9)
    rig.runner.add(sequence, apart=True)
    rig.prefiller.add(0, LONG, 0, 399)
    rig.prefiller.begin()
    assert rig.runner.run(1 << 20) == PREFILLED
    rig.prefiller.settle()
    assert rig.runner.restore(sequence, rig.prefiller.save(0, 0, 399), 0, 399)
    assert rig.runner.run(1) == PAUSED
    assert sequence.n_tokens == 400
    row = rig.prefiller.add(0, LONG, 399, 400, True)
    rig.prefiller.begin()
    assert rig.runner.run(1 << 20) == PREFILLED
    rig.runner.prefilled(sequence, 400, row)
    assert rig.runner.restore(sequence, rig.prefiller.save(0, 399, 400), 399, 400)
    while not sequence.finished:
        assert rig.runner.run(1 << 20) == FINISHED
    assert rig.collect()[1] == expected
    rig.runner.clear()


def test_who_was_halted_gets_no_token_from_the_prefiller(rig):
    sequence = rig.sequence(LONG, 1, max_tokens=9)
    rig.runner.add(sequence, apart=True)
    row = rig.prefiller.add(0, LONG, 0, 400, True)
    rig.prefiller.begin()
    assert rig.runner.run(1 << 20) == PREFILLED
    rig.runner.halt(sequence)
    rig.runner.prefilled(sequence, 400, row)
    assert (sequence.n_tokens, rig.collect()) == (400, {})
    rig.runner.clear()


def test_a_saved_part_is_taken_and_the_rest_cut(rig):
    expected = rig.run(rig.sequence(LONG[:200], 1, max_tokens=9))[1]
    rig.prefiller.add(0, LONG, 0, 300)
    rig.prefiller.begin()
    assert rig.runner.run(1 << 20) == PREFILLED
    rig.prefiller.settle()
    saved = rig.prefiller.save(0, 0, 120)
    rig.prefiller.cut(0, 0)
    assert rig.prefiller.restore(1, saved, 0, 100)
    rig.prefiller.add(1, LONG, 100, 199)
    rig.prefiller.begin()
    assert rig.runner.run(1 << 20) == PREFILLED
    sequence = rig.sequence(LONG[:200], 1, max_tokens=9)
    rig.runner.add(sequence, 100, apart=True)
    rig.runner.prefilled(sequence, 199)
    assert rig.runner.restore(sequence, rig.prefiller.save(1, 0, 199), 0, 199)
    while not sequence.finished:
        rig.runner.run(100)
    assert (rig.collect()[1], n_cached(sequence)) == (expected, 100)
    rig.runner.clear()


def test_closing_aborts_what_it_computes(rig):
    rig.runner.add(rig.sequence([40], 1, max_tokens=100))
    rig.prefiller.add(0, LONG, 0, 400)
    rig.prefiller.begin()
    assert rig.runner.run(3) == PAUSED
    assert rig.prefiller.working
    started = time.monotonic()
    rig.prefiller.close()
    rig.thread.join(10)
    assert time.monotonic() - started < 5
    assert rig.prefiller.code == 2
    rig.runner.clear()


def test_a_batch_that_nobody_wants_is_aborted_and_the_next_one_is_right(rig):
    expected = rig.run(rig.sequence(LONG, 2, max_tokens=6))[2]
    rig.runner.add(rig.sequence([40], 1, max_tokens=100))
    rig.prefiller.add(0, LONG[::-1], 0, 400)
    rig.prefiller.begin()
    assert rig.runner.run(3) == PAUSED
    assert rig.prefiller.working
    rig.prefiller.abort()
    assert (rig.prefiller.working, rig.prefiller.code) == (False, 2)
    rig.prefiller.abort()
    rig.prefiller.settle()
    rig.prefiller.cut(0, 0)
    long = rig.sequence(LONG, 2, max_tokens=6)
    rig.runner.add(long, apart=True)
    row = rig.prefiller.add(0, LONG, 0, 400, True)
    rig.prefiller.begin()
    while (status := rig.runner.run(1 << 20)) != PREFILLED:
        assert status == FINISHED
        rig.tidy()
    rig.runner.prefilled(long, 400, row)
    assert rig.runner.restore(long, rig.prefiller.save(0, 0, 400), 0, 400)
    while not long.finished:
        rig.runner.run(1 << 20)
    assert rig.collect()[2] == expected
    rig.runner.clear()


def test_parts_come_while_the_rest_is_computed_and_are_lent_at_once(rig):
    """Who shares 200 of its tokens need not wait for the other 200, and who shares few does not wait at all."""
    rig.runner.least_wait = 30
    long, short, other = rig.sequence(LONG, 1), rig.sequence([*LONG[:200], 40], 2), rig.sequence([*LONG[:24], 40], 3)
    expected = {2: rig.run(rig.sequence([*LONG[:200], 40], 2))[2], 3: rig.run(rig.sequence([*LONG[:24], 40], 3))[3]}
    assert rig.runner.shareable(short) == (0, 0)
    rig.runner.add(long, apart=True)
    assert (rig.runner.shareable(short), rig.runner.shareable(other)) == ((200, 0), (0, 0))
    rig.runner.add(short)
    rig.runner.add(other)
    assert (rig.runner.awaited(long), rig.runner.awaited(short)) == (200, 201)
    assert rig.runner.followers(long) == [short]
    while not other.finished:
        rig.runner.run(1)
    assert (n_cached(other), short.n_past) == (0, 0)
    assert other.queue_seconds is not None
    assert short.queue_seconds is None
    rig.prefiller.add(0, LONG, 0, 250)
    rig.prefiller.begin()
    assert rig.runner.run(1 << 20) == PREFILLED
    rig.prefiller.settle()
    saved = rig.prefiller.save(0, 0, 250)
    assert rig.runner.restore(long, saved, 0, 250)
    assert rig.runner.awaited(long) == 400
    while not short.finished:
        rig.runner.run(1)
    assert (long.n_past, n_cached(short)) == (250, 200)
    results = rig.collect()
    assert {tag: results[tag] for tag in (2, 3)} == expected
    rig.runner.clear()


def test_a_sequence_may_wait_for_less(rig):
    sequence = rig.sequence(LONG[:50], 1, max_tokens=3)
    expected = rig.run(rig.sequence(LONG[:50], 1, max_tokens=3))
    rig.runner.add(sequence, apart=True)
    assert rig.runner.run(10) == PAUSED
    assert sequence.n_past == 0
    with pytest.raises(ValueError, match="50 instead of 49"):
        rig.runner.prefilled(sequence, 50)
    rig.runner.prefilled(sequence, 0)
    assert rig.runner.run(10) == FINISHED
    assert rig.collect() == expected
    rig.runner.clear()


def test_bad_batches_are_refused(rig):
    with pytest.raises(ValueError, match="empty"):
        rig.prefiller.begin()
    for seq_id, start, stop in ((0, 5, 5), (0, -1, 5), (0, 0, 401), (2, 0, 5), (-1, 0, 5)):
        with pytest.raises(ValueError, match="sequence"):
            rig.prefiller.add(seq_id, LONG, start, stop)
    rig.prefiller.add(0, LONG, 0, 400)
    with pytest.raises(IndexError, match="512 rows"):
        rig.prefiller.add(1, LONG, 0, 113)
    rig.prefiller.begin()
    with pytest.raises(ValueError, match="already"):
        rig.prefiller.begin()


@pytest.mark.parametrize(("name", "options"), [("tiny-llama", {"kv_unified": False}), ("tiny-gemma3-swa", {}),
                                               ("tiny-mamba", {})])  # fmt: skip
def test_memory_that_cannot_be_moved_in_parts_is_refused(tiny_model, name, options):
    context = Context(Model(str(tiny_model(name))), **SETTINGS, n_seq_max=2, **{"kv_unified": True} | options)
    assert not suits(context)
    with pytest.raises(ValueError, match="in parts"):
        Prefiller(context)
